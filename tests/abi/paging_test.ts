import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  beyondPhysicalHigh,
  cr3Takes,
  entryAddress,
  entryOf,
  EPT_WB,
  type EptFeatures,
  eptMisconfigured,
  eptPointerValid,
  highOf,
  linearAddress,
  linearHigh,
  lowOf,
  mapPage,
  PAGE_SHIFT_1G,
  PAGE_SHIFT_2M,
  PAGE_SHIFT_4K,
  type PageTables,
  reservedBitSet,
  tableIndex,
  tableRoot,
  u64,
} from "../../abi/mod.ts";

const halves = (value: bigint) => ({ low: lowOf(value), high: highOf(value) });

describe("a linear address", () => {
  it("is a signed number, and canonical where bits 63:47 are equal", () => {
    const cases: [bigint, number | undefined][] = [
      [0n, 0],
      [0x7fff_ffff_ffffn, 2 ** 47 - 1],
      [0x8000_0000_0000n, undefined],
      [0xffff_7fff_ffff_ffffn, undefined],
      [0xffff_8000_0000_0000n, -(2 ** 47)],
      [0xffff_ffff_ffff_ffffn, -1],
      [0x1_0000_0000_0000n, undefined],
    ];
    for (const [address, expected] of cases) {
      assertEquals(linearAddress(lowOf(address), highOf(address)), expected, address.toString(16));
    }
  });

  it("has in each table the index that its bits say", () => {
    fc.assert(fc.property(fc.bigInt({ min: -(2n ** 47n), max: 2n ** 47n - 1n }), (address) => {
      const linear = linearAddress(lowOf(address), highOf(address))!;
      assertEquals(BigInt(linear), address);
      assertEquals([linear >>> 0, linearHigh(linear)], [lowOf(address), highOf(address)]);
      for (let level = 1; level <= 4; level++) {
        assertEquals(BigInt(tableIndex(linear, level)), (address >> BigInt(3 + 9 * level)) & 0x1ffn);
      }
    }));
  });
});

describe("an entry", () => {
  // SDM 3A tables 4-14 to 4-20: which bits are reserved, for MAXPHYADDR 46.
  const RESERVED: [what: string, level: number, entry: bigint, reserved: bigint][] = [
    ["PML4E", 4, 1n, 1n << 7n],
    ["PDPTE to a table", 3, 1n, 0n],
    ["PDPTE of 1 GiB", 3, 0x81n, 0x3fff_e000n],
    ["PDE to a table", 2, 1n, 0n],
    ["PDE of 2 MiB", 2, 0x81n, 0x1f_e000n],
    ["PTE", 1, 0x81n, 0n],
  ];
  const BEYOND = 0x3fn << 46n;

  it("has its level's reserved bits, and no others", () => {
    for (const [what, level, entry, reserved] of RESERVED) {
      for (let bit = 0n; bit < 64n; bit++) {
        if (bit === 7n && level < 4) continue; // PS makes another entry of it, or is PAT.
        const set = { ...halves(entry | (1n << bit)), nx: true };
        const features = { maxPhysicalBits: 46, pages1G: true };
        assertEquals(
          reservedBitSet(set, level, features),
          ((reserved | BEYOND) >> bit & 1n) === 1n,
          `${what}, ${bit}`,
        );
        const withoutNx = reservedBitSet({ ...set, nx: false }, level, features);
        assertEquals(withoutNx, ((reserved | BEYOND | 1n << 63n) >> bit & 1n) === 1n, `${what}, ${bit}`);
      }
    }
  });

  it("reserves PS in a PDPTE without pages of 1 GiB, and on AMD bit 8 in a PML4E alone", () => {
    const reserved = (level: number, entry: bigint, amd = false) =>
      reservedBitSet({ ...halves(entry), nx: true }, level, { maxPhysicalBits: 46, pages1G: false, amd });
    assertEquals([reserved(3, 0x81n), reserved(2, 0x81n), reserved(3, 1n)], [true, false, false]);
    // Linux commit 5ecad245de2a: AMD reserves the bit in PML4Es, and ignores it in PDPTEs and PDEs that map no page.
    assertEquals([4, 3, 2, 1].map((level) => reserved(level, 0x101n, true)), [true, false, false, false]);
    assertEquals([4, 3, 2, 1].map((level) => reserved(level, 0x101n)), [false, false, false, false]);
  });

  it("has the address bits below MAXPHYADDR", () => {
    fc.assert(fc.property(fc.integer({ min: 32, max: 52 }), (bits) => {
      assertEquals(u64(0, beyondPhysicalHigh(bits)), (1n << 52n) - (1n << BigInt(bits)));
    }));
    fc.assert(fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (entry) => {
      for (const shift of [PAGE_SHIFT_4K, PAGE_SHIFT_2M, PAGE_SHIFT_1G] as const) {
        const expected = entry & (2n ** 52n - 1n) & -(1n << BigInt(shift));
        assertEquals(BigInt(entryAddress(lowOf(entry), highOf(entry), shift)), expected);
      }
    }));
  });
});

describe("MOV to CR3", () => {
  it("takes bit 63 with PCIDs, and not without CR4.PCIDE", () => {
    assertEquals([true, false].map((pcide) => cr3Takes(0x8000_0000, pcide, 46)), [true, false]);
    assertEquals([true, false].map((pcide) => cr3Takes(0, pcide, 46)), [true, true]);
  });

  it("faults for every other bit from MAXPHYADDR on", () => {
    for (const pcide of [false, true]) {
      for (let bit = 46n; bit < 63n; bit++) {
        assertEquals(cr3Takes(highOf(1n << bit), pcide, 46), false, `bit ${bit}`);
      }
      assertEquals(cr3Takes(highOf(1n << 45n), pcide, 46), true);
    }
  });

  it("leaves the table's address without the bits below it, PCID or not", () => {
    assertEquals(tableRoot(0x12_3fff), 0x12_3000);
  });
});

const EPT: EptFeatures = {
  maxPhysicalBits: 46,
  executeOnly: true,
  pages2M: true,
  pages1G: true,
  accessedDirty: true,
  advancedExits: true,
};

describe("an EPT entry", () => {
  it("is misconfigured with writes but no reads, and with fetches alone where they are not supported", () => {
    const rights = (r: bigint, features = EPT) => eptMisconfigured(halves(0x30n | r), 1, features);
    assertEquals([1n, 2n, 3n, 4n, 5n, 6n, 7n].map((r) => rights(r)), [
      false,
      true,
      false,
      false,
      false,
      true,
      false,
    ]);
    assertEquals(rights(4n, { ...EPT, executeOnly: false }), true);
    assertEquals(rights(5n, { ...EPT, executeOnly: false }), false);
  });

  it("is misconfigured by its level's reserved bits, and no others", () => {
    // SDM 3C tables 29-1 to 29-7, for MAXPHYADDR 46; bits 5:3 of a page are its memory type.
    const reserved: [what: string, level: number, entry: bigint, reserved: bigint][] = [
      ["PML4E", 4, 7n, 0xf8n],
      ["PDPTE to a table", 3, 7n, 0x78n],
      ["PDPTE of 1 GiB", 3, 0x87n, 0x3fff_f000n],
      ["PDE to a table", 2, 7n, 0x78n],
      ["PDE of 2 MiB", 2, 0x87n, 0x1f_f000n],
      ["PTE", 1, 7n, 0n],
    ];
    for (const [what, level, entry, bits] of reserved) {
      for (let bit = 3n; bit < 64n; bit++) {
        if (bit === 7n && (level === 3 || level === 2)) continue;
        const page = level === 1 || (entry & 0x80n) !== 0n;
        // From UC, setting one bit of the type gives WC, 2 or WT.
        const type = page && bit === 4n;
        assertEquals(
          eptMisconfigured(halves(entry | (1n << bit)), level, EPT),
          ((bits | 0x3fn << 46n) >> bit & 1n) === 1n || type,
          `${what}, ${bit}`,
        );
      }
    }
  });

  it("is misconfigured by memory types 2, 3 and 7, where it maps a page", () => {
    for (const [level, size] of [[1, 0], [2, 0x80], [3, 0x80]]) {
      const bad = [0, 1, 2, 3, 4, 5, 6, 7].filter((type) =>
        eptMisconfigured({ low: 7 | size | (type << 3), high: 0 }, level, EPT)
      );
      assertEquals(bad, [2, 3, 7]);
    }
  });

  it("is misconfigured by a page of a size that is not supported", () => {
    const small = { ...EPT, pages1G: false, pages2M: false };
    assertEquals([3, 2].map((level) => eptMisconfigured({ low: 0xb7, high: 0 }, level, small)), [true, true]);
    assertEquals([3, 2].map((level) => eptMisconfigured({ low: 0xb7, high: 0 }, level, EPT)), [false, false]);
  });
});

describe("an EPT pointer", () => {
  it("is taken with UC or WB, four levels and nothing reserved", () => {
    const valid = (eptp: number, features = EPT) => eptPointerValid(eptp, features);
    assertEquals([0, 1, 2, 3, 4, 5, 6, 7].filter((type) => valid(0x1_0018 + type)), [0, 6]);
    assertEquals([0, 1, 2, 3, 4, 5, 6, 7].filter((walk) => valid(0x1_0006 + 8 * walk)), [3]);
    assertEquals([valid(0x1_005e), valid(0x1_005e, { ...EPT, accessedDirty: false })], [true, false]);
    for (let bit = 7; bit < 12; bit++) assertEquals(valid(0x1_001e + 2 ** bit), false, `bit ${bit}`);
    assertEquals([valid(2 ** 45 + 0x1e), valid(2 ** 46 + 0x1e), valid(2 ** 51 + 0x1e)], [true, false, false]);
  });
});

/** 16 pages of plain words. */
function tables(ept = false): PageTables {
  const words = new Uint32Array(16 * 1024);
  let free = 0;
  const allocate = () => (free += 0x1000) - 0x1000;
  const memory = {
    word: (address: number) => words[address / 4],
    setWord: (address: number, value: number) => void (words[address / 4] = value),
  };
  return { memory, root: allocate(), allocate, ept };
}

describe("a builder of tables", () => {
  const quad = (t: PageTables, at: number) => u64(t.memory.word(at), t.memory.word(at + 4));

  it("puts the entries where the processor looks for them", () => {
    const t = tables();
    mapPage(t, -0x1000, { physical: 0x12_3456_7000, flags: 0x163, noExecute: true });
    // 0xffff_ffff_ffff_f000 is the last entry of each table.
    assertEquals(quad(t, 511 * 8), 0x1007n);
    assertEquals(quad(t, 0x1000 + 511 * 8), 0x2007n);
    assertEquals(quad(t, 0x2000 + 511 * 8), 0x3007n);
    assertEquals(quad(t, 0x3000 + 511 * 8), 0x8000_0012_3456_7163n);
    assertEquals(entryOf(t, -1, 1), 0x3000 + 511 * 8);
    assertEquals(entryOf(t, 0, 1), undefined);
  });

  it("uses the tables that are there, and marks large pages", () => {
    const t = tables();
    mapPage(t, 0x20_0000, { physical: 0x40_0000, flags: 3, shift: PAGE_SHIFT_2M });
    mapPage(t, 0x1000, { physical: 0, flags: 1 });
    mapPage(t, 0x4000_0000, { physical: 0x8000_0000, flags: 1, shift: PAGE_SHIFT_1G });
    assertEquals(quad(t, 0x2000 + 8), 0x40_0083n);
    assertEquals(quad(t, 0x2000), 0x3007n);
    assertEquals(quad(t, 0x3000 + 8), 1n);
    assertEquals(quad(t, 0x1000 + 8), 0x8000_0081n);
    assertEquals(t.allocate(), 0x4000, "no table more than that");
    assertEquals([entryOf(t, 0x20_0000, 2), entryOf(t, 0x20_0000, 1)], [0x2008, undefined]);
  });

  it("builds EPT, whose entries are present by their rights", () => {
    const t = tables(true);
    mapPage(t, 0x1000, { physical: 0x5000, flags: 4 | EPT_WB });
    mapPage(t, 0x2000, { physical: 0x6000, flags: 7 | EPT_WB });
    assertEquals([quad(t, 0), quad(t, 0x3008), quad(t, 0x3010)], [0x1007n, 0x5034n, 0x6037n]);
  });

  it("refuses what no entry can say", () => {
    const t = tables();
    mapPage(t, 0, { physical: 0, flags: 1, shift: PAGE_SHIFT_2M });
    assertThrows(
      () => mapPage(t, 0x1000, { physical: 0, flags: 1 }),
      RangeError,
      "a page of 2097152 bytes is there",
    );
    assertThrows(() => mapPage(t, 2 ** 40, { physical: 0x800, flags: 1 }), RangeError, "at 2048");
    assertThrows(() => mapPage(t, 2 ** 40, { physical: 2 ** 52, flags: 1 }), RangeError, "from 0 to 2^52");
    const half = { physical: 0x1000, flags: 1, shift: PAGE_SHIFT_2M } as const;
    assertThrows(() => mapPage(t, 2 ** 40, half), RangeError, "a page of 2097152 bytes at 4096");
  });
});
