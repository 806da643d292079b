import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { IpiPacker, type IpiWindow, packIpi } from "../../guest/mod.ts";

type Width = 64 | 32;
/** A window: low long, high long, lowest ID. */
type Golden = readonly [low: bigint, high: bigint, min: number];

const ONES = 2n ** 64n - 1n;
const ONES32 = 0xffff_ffffn;

function range(from: number, to: number, step = 1): number[] {
  const ids: number[] = [];
  for (let id = from; id <= to; id += step) ids.push(id);
  return ids;
}

/** The destinations that a window names. */
function members({ bitmapLow, bitmapHigh, min }: IpiWindow, width: Width): number[] {
  const bitmap = bitmapLow | (bitmapHigh << BigInt(width));
  const ids: number[] = [];
  for (let bit = 0; bitmap >> BigInt(bit) !== 0n; bit++) {
    if (((bitmap >> BigInt(bit)) & 1n) === 1n) ids.push(min + bit);
  }
  return ids;
}

/**
 * The packing as a list of IDs: an ID joins the open window below it while the highest fits, or above it while it fits
 * itself; else it opens the next. The highest is that which an ID has raised it to.
 */
function packSlowly(ids: readonly number[], width: Width): number[][] {
  const cluster = 2 * width;
  const windows: number[][] = [];
  let min = 0;
  let max = 0;
  for (const id of ids) {
    const open = windows.at(-1);
    if (open !== undefined && id < min && max - id < cluster) {
      min = id;
      open.push(id);
    } else if (open !== undefined && id > min && id < min + cluster) {
      max = Math.max(max, id);
      open.push(id);
    } else {
      min = max = id;
      windows.push([id]);
    }
  }
  return windows.map((window) => window.sort((a, b) => a - b));
}

describe("packing destinations: golden vectors", () => {
  // The example windows of the kernel's algorithm, worked out by hand from its rules (arch/x86/kernel/kvm.c,
  // __send_ipi_mask); IDs in the order of their processors.
  const GOLDEN_64: readonly (readonly [string, readonly number[], readonly Golden[]])[] = [
    ["nobody", [], []],
    ["0 to 79", range(0, 79), [[ONES, 0xffffn, 0]]],
    ["1 to 79", range(1, 79), [[ONES, 0x7fffn, 1]]],
    ["0 to 127", range(0, 127), [[ONES, ONES, 0]]],
    ["0 to 128", range(0, 128), [[ONES, ONES, 0], [1n, 0n, 128]]],
    ["0, 127", [0, 127], [[1n, 2n ** 63n, 0]]],
    ["0, 128", [0, 128], [[1n, 0n, 0], [1n, 0n, 128]]],
    ["127, 0", [127, 0], [[1n, 2n ** 63n, 0]]],
    ["128, 0", [128, 0], [[1n, 0n, 128], [1n, 0n, 0]]],
    ["64, 0, 127", [64, 0, 127], [[1n, 0x8000_0000_0000_0001n, 0]]],
    ["64, 0, 128", [64, 0, 128], [[1n, 1n, 0], [1n, 0n, 128]]],
    ["10, 5, 140", [10, 5, 140], [[0x21n, 0n, 5], [1n, 0n, 140]]],
    ["200, 100, 72, 73", [200, 100, 72, 73], [[1n, 2n ** 36n, 100], [3n, 0n, 72]]],
    ["1, 128, 2, 0: the highest stays 128, so the last does not fit", [1, 128, 2, 0], [
      [3n, 2n ** 63n, 1],
      [1n, 0n, 0],
    ]],
    ["even IDs, 0 to 254", range(0, 254, 2), [
      [0x5555_5555_5555_5555n, 0x5555_5555_5555_5555n, 0],
      [0x5555_5555_5555_5555n, 0x5555_5555_5555_5555n, 128],
    ]],
  ];
  const GOLDEN_32: typeof GOLDEN_64 = [
    ["0 to 79", range(0, 79), [[ONES32, ONES32, 0], [0xffffn, 0n, 64]]],
    ["3, 1, 64, 0: the third raised the highest, so the fourth does not fit", [3, 1, 64, 0], [
      [5n, 0x8000_0000n, 1],
      [1n, 0n, 0],
    ]],
  ];
  for (const [width, golden] of [[64, GOLDEN_64], [32, GOLDEN_32]] as const) {
    for (const [name, ids, windows] of golden) {
      it(`${name}, longs of ${width} bits`, () => {
        const packed = packIpi(ids, width).map((w): Golden => [w.bitmapLow, w.bitmapHigh, w.min]);
        assertEquals(packed, windows);
      });
    }
  }

  it("N neighbours are ceil(N / 128) windows, with longs of 32 bits ceil(N / 64)", () => {
    for (const count of [1, 63, 64, 65, 127, 128, 129, 256, 257, 1024]) {
      assertEquals(packIpi(range(0, count - 1), 64).length, Math.ceil(count / 128));
      assertEquals(packIpi(range(0, count - 1), 32).length, Math.ceil(count / 64));
    }
  });

  it("an ID that is none is refused, naming what is allowed", () => {
    for (const id of [-1, 0.5, 2 ** 32, NaN]) {
      assertThrows(
        () => new IpiPacker(64).add(id),
        RangeError,
        `Cannot send an IPI to APIC ID ${id}: allowed are 0 to 2^32 - 1`,
      );
    }
  });
});

describe("packing destinations: any of them", () => {
  const width = fc.constantFrom<Width>(64, 32);
  const near = fc.uniqueArray(fc.nat(400), { maxLength: 200 });
  const far = fc.uniqueArray(fc.nat(0xffff_ffff), { maxLength: 20 });
  const ids = fc.oneof(
    near,
    far,
    fc.uniqueArray(fc.oneof(fc.nat(200), fc.integer({ min: 2 ** 32 - 200, max: 2 ** 32 - 1 }))),
  );

  it("loses nobody, adds nobody and names nobody twice", () => {
    fc.assert(fc.property(ids, width, (ids, width) => {
      const named = packIpi(ids, width).flatMap((window) => members(window, width));
      assertEquals(named.toSorted((a, b) => a - b), ids.toSorted((a, b) => a - b));
    }));
  });

  it("makes windows of two longs that begin with somebody", () => {
    fc.assert(fc.property(ids, width, (ids, width) => {
      for (const { bitmapLow, bitmapHigh } of packIpi(ids, width)) {
        assertEquals(bitmapLow & 1n, 1n);
        assertEquals([bitmapLow >> BigInt(width), bitmapHigh >> BigInt(width)], [0n, 0n]);
      }
    }));
  });

  it("makes the windows of the slow and obvious algorithm", () => {
    fc.assert(fc.property(ids, width, (ids, width) => {
      assertEquals(packIpi(ids, width).map((window) => members(window, width)), packSlowly(ids, width));
    }));
  });
});
