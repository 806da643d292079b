import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { formatSchedule, Machine, parseSchedule, SCHEDULE_LIMIT, SeededEntropy } from "../../../host/mod.ts";

describe("a schedule", () => {
  it("prints as runs of steps", () => {
    assertEquals(formatSchedule([0, 0, 0, 3, 0, 0]), "0*3.3.0*2");
    assertEquals(formatSchedule([]), "");
  });

  it("is the same after it has been printed and parsed", () => {
    fc.assert(fc.property(fc.array(fc.nat(3)), (schedule) => {
      assertEquals(parseSchedule(formatSchedule(schedule)), schedule);
    }));
  });

  it("that is no schedule is refused, with the place", () => {
    for (
      const [line, place] of [["0*3.x.1", 2], ["0..1", 2], ["-1", 1], ["1*", 1], ["1*2*3", 1], ["1,2", 1]]
    ) {
      assertThrows(() => parseSchedule(line as string), SyntaxError, `run ${place} is`);
    }
    assertThrows(() => new Machine({ policy: { replay: "0.no" } }), SyntaxError, 'run 2 is "no"');
  });

  it("that would fill memory is refused", () => {
    assertEquals(parseSchedule("7*1000").length, 1000);
    assertThrows(() => parseSchedule(`0.1*${SCHEDULE_LIMIT}`), SyntaxError, "more than 10000000 steps");
  });
});

describe("entropy from a seed", () => {
  const draw = (entropy: SeededEntropy) => Array.from({ length: 8 }, () => entropy.bits());

  it("is the same for the same seed, and unlike for another seed or stream", () => {
    fc.assert(fc.property(fc.maxSafeNat(), fc.maxSafeNat(), (a, b) => {
      assertEquals(draw(new SeededEntropy(a)), draw(new SeededEntropy(a)));
      const streams = [draw(new SeededEntropy(a)), draw(new SeededEntropy(a, 1))].map(String);
      assertEquals(new Set(streams).size, 2);
      if (a !== b) assertEquals(String(draw(new SeededEntropy(b))) === streams[0], false);
    }));
  });

  it("chooses every one of a few, and none outside", () => {
    fc.assert(fc.property(fc.nat(), fc.integer({ min: 1, max: 9 }), (seed, count) => {
      const entropy = new SeededEntropy(seed);
      const chosen = new Set(Array.from({ length: 300 }, () => entropy.choose(count)));
      assertEquals([...chosen].sort(), Array.from({ length: count }, (_, n) => n));
    }));
  });

  it("refuses seeds and choices that cannot be", () => {
    for (const seed of [-1, 1.5, NaN, 2 ** 53]) {
      assertThrows(() => new SeededEntropy(seed), RangeError, `Cannot use seed ${seed}`);
      assertThrows(() => new Machine({ policy: { random: seed } }), RangeError, `Cannot use seed ${seed}`);
    }
    for (const count of [0, -1, 2 ** 32 + 1, 0.5]) {
      assertThrows(() => new SeededEntropy(0).choose(count), RangeError, `among ${count}`);
    }
  });
});
