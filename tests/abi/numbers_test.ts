import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  apicId,
  cycles,
  type Gpa,
  gpa,
  type Gva,
  gva,
  hex,
  high,
  highestBit,
  highOf,
  join,
  layout,
  low,
  lowestBit,
  lowOf,
  msrIndex,
  PHYSICAL_ADDRESS_LIMIT,
  popcount,
  u64,
  vcpuId,
  vector,
  vpid,
} from "../../abi/mod.ts";

const u32 = fc.nat(0xffff_ffff);

describe("halves of 64-bit values", () => {
  it("make the value again, as a number below 2^53 and as a bigint", () => {
    fc.assert(fc.property(fc.maxSafeNat(), (value) => {
      assertEquals(join(low(value), high(value)), value);
      assertEquals(u64(low(value), high(value)), BigInt(value));
    }));
    fc.assert(fc.property(fc.bigInt({ min: -(2n ** 64n), max: 2n ** 65n }), (value) => {
      assertEquals(u64(lowOf(value), highOf(value)), BigInt.asUintN(64, value));
    }));
  });

  it("may be signed words", () => {
    assertEquals(u64(-1, -1), 2n ** 64n - 1n);
    assertEquals(join(-1, 0), 0xffff_ffff);
  });
});

describe("bits of a word", () => {
  it("are counted and found as in its binary digits", () => {
    fc.assert(fc.property(u32, (word) => {
      for (const form of [word, word | 0]) {
        const digits = word.toString(2).padStart(32, "0");
        assertEquals(popcount(form), digits.replaceAll("0", "").length);
        assertEquals(highestBit(form), digits.includes("1") ? 31 - digits.indexOf("1") : -1);
        assertEquals(lowestBit(form), digits.includes("1") ? 31 - digits.lastIndexOf("1") : -1);
      }
    }));
  });

  it("print in hexadecimal", () => {
    assertEquals([hex(0), hex(0xfee0_0000), hex(2n ** 63n)], ["0x0", "0xfee00000", "0x8000000000000000"]);
  });
});

describe("a branded number", () => {
  const brands: [string, (value: number) => number, number][] = [
    ["a guest-physical address", gpa, PHYSICAL_ADDRESS_LIMIT],
    ["a linear address", gva, PHYSICAL_ADDRESS_LIMIT],
    ["an APIC ID", apicId, 2 ** 32],
    ["a vCPU ID", vcpuId, 2 ** 32],
    ["a vector", vector, 256],
    ["a VPID", vpid, 65536],
    ["a number of cycles", cycles, Number.MAX_SAFE_INTEGER],
    ["an MSR index", msrIndex, 2 ** 32],
  ];

  it("is vouched for, or refused with what is allowed", () => {
    for (const [what, vouch, limit] of brands) {
      assertEquals([vouch(0), vouch(limit - 1)], [0, limit - 1]);
      for (const bad of [-1, 0.5, NaN, Infinity, limit]) {
        assertThrows(
          () => vouch(bad),
          RangeError,
          `Cannot use ${bad} as ${what}: allowed are whole numbers from 0 to ${limit - 1}`,
        );
      }
    }
  });

  it("is not mixed with another one, nor made from a number in passing", () => {
    const physical: Gpa = gpa(0x1000);
    const plain: number = physical; // A brand is a number to whoever takes any.
    // @ts-expect-error: a plain number is nobody's address.
    const a: Gpa = 0x1000;
    // @ts-expect-error: a physical address is no linear one.
    const b: Gva = physical;
    assertEquals([a, b, plain], [0x1000, physical as number, 0x1000]);
  });
});

describe("a layout", () => {
  it("places fields one behind the other, each with its size", () => {
    const types = fc.constantFrom("u8", "s8", "u16", "u32", "u64", "s64");
    const specs = fc.array(fc.tuple(types, fc.integer({ min: 1, max: 9 })), { maxLength: 12 });
    const bytes = { u8: 1, s8: 1, u16: 2, u32: 4, u64: 8, s64: 8 };
    fc.assert(fc.property(specs, fc.boolean(), (specs, big) => {
      const named = Object.fromEntries(
        specs.map(([type, count], n) => [`f${n}`, count === 1 ? type : [type, count] as const]),
      );
      const made = layout("test", named, big ? { endian: "big" } : {});
      let offset = 0;
      for (const [n, [type, count]] of specs.entries()) {
        const size = bytes[type] * count;
        assertEquals(made.fields[`f${n}`], { offset, size, type, count });
        offset += size;
      }
      assertEquals([made.size, made.endian, made.align], [offset, big ? "big" : "little", 1]);
    }));
  });

  it("may be larger than its fields, never smaller", () => {
    assertEquals(layout("padded", { a: "u32" }, { size: 64, align: 64 }).size, 64);
    assertThrows(
      () => layout("tight", { a: "u32", b: "u8" }, { size: 4 }),
      RangeError,
      "Cannot lay out tight in 4 bytes: its fields need 5",
    );
  });

  it("knows its fields' names", () => {
    const pair = layout("pair", { lo: "u32", hi: "u32" });
    assertEquals(pair.fields.hi.offset, 4);
    // @ts-expect-error: no field has that name.
    assertEquals(pair.fields.middle, undefined);
  });
});
