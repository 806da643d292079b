import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { words } from "../../abi/mod.ts";

describe("small arrays side by side", () => {
  it("begin as zeroes, keep what they hold, and never overlap", () => {
    const arrays = Array.from({ length: 3000 }, (_, n) => words(n % 50));
    for (const [n, array] of arrays.entries()) {
      assertEquals([array.length, array.some((word) => word !== 0)], [n % 50, false]);
      array.fill(n + 1);
    }
    for (const [n, array] of arrays.entries()) assertEquals(array.every((word) => word === n + 1), true);
  });

  it("share memory with their neighbours, each from a cache line of its own on", () => {
    const [one, other] = [words(40), words(1)];
    assertEquals(one.buffer === other.buffer || other.byteOffset === 0, true);
    assertEquals([one.byteOffset % 64, other.byteOffset % 64], [0, 0]);
  });

  it("may be larger than what others share", () => {
    const large = words(100_000);
    large.fill(7);
    assertEquals([large.length, words(3)[0]], [100_000, 0]);
  });

  it("are refused where their length is none", () => {
    for (const length of [-1, 0.5, NaN, Infinity]) {
      assertThrows(() => words(length), RangeError, `Cannot make an array of ${length} words`);
    }
    assertThrows(() => words(2 ** 40), RangeError);
    assertEquals(words(2).length, 2, "nothing is lost by that");
  });
});
