import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_PE,
  entryOf,
  EPT_A,
  EPT_D,
  EPT_R,
  EPT_RWX,
  EPT_W,
  EPT_WB,
  EPT_X,
  type EptFeatures,
  mapPage,
  PAGE_SHIFT_1G,
  PAGE_SHIFT_2M,
  type PageTables,
  PTE_A,
  PTE_D,
  PTE_P,
  PTE_RW,
  PTE_US,
} from "../../../abi/mod.ts";
import { type AccessKind, Ept, type PagingState, serves, translate } from "../../../host/mmu/mod.ts";
import {
  EPT_FEATURES,
  eptPointer,
  FEATURES,
  FETCH,
  longMode,
  outcome,
  READ,
  Tables,
  USER_READ,
  USER_WRITE,
  WRITE,
} from "./tables.ts";

const ALL = EPT_RWX | EPT_WB;
const USER = PTE_P | PTE_RW | PTE_US;

/**
 * A guest under EPT. Its tables' guest-physical addresses are their own, so that a builder can write them; the page at
 * linear 0x7000 is guest-physical 0x2000_0000_7000 and physical 0x5000.
 */
class Guest extends Tables {
  readonly tables: PageTables = this.hierarchy();
  readonly ept: PageTables = this.hierarchy(true);
  state: PagingState = longMode(this.tables.root);
  features: EptFeatures = EPT_FEATURES;

  constructor(readonly accessedDirty = false) {
    super();
    mapPage(this.tables, 0x7000, { physical: PAGE, flags: USER });
    for (let at = 0x1_0000; at < 0x4_0000; at += 0x1000) this.map(at, ALL, at);
    this.map(PAGE, ALL);
  }

  map(guest: number, flags: number, physical = 0x5000): void {
    mapPage(this.ept, guest, { physical, flags });
  }

  translate(linear: number, access: AccessKind) {
    const { memory, state, features } = this;
    const second = new Ept({ memory, eptp: eptPointer(this.ept.root, this.accessedDirty), features });
    return translate({ memory, state, features: FEATURES, second }, linear, access);
  }

  try(access: AccessKind): string {
    return outcome(this.translate(0x7000, access), 0x7000);
  }

  /** The guest-physical address of the entry of a level. */
  entry(level: number): number {
    return entryOf(this.tables, 0x7000, level)!;
  }

  /** The low half of an EPT entry. */
  eptEntry(physical: number, level: number): number {
    return this.memory.word(entryOf(this.ept, physical, level)!);
  }
}

const PAGE = 0x2000_0000_7000;
const hex = (value: number) => `0x${value.toString(16)}`;

describe("a walk in two dimensions", () => {
  it("reads 24 entries for pages of 4 KiB in both", () => {
    const found = new Guest().translate(0x7abc, USER_READ);
    assertEquals([found.accesses, outcome(found, 0x7abc)], [24, "0x5abc"]);
    if (found.kind !== "mapping") throw new Error(found.kind);
    const { linear, physical, shift, memoryType } = found.mapping;
    assertEquals([linear, physical, shift, memoryType], [0x7000, 0x5000, 12, 6]);
  });

  it("reads fewer to larger pages, and maps the smaller of the two", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x4000_0000, { physical: 0x8000_0000, flags: USER, shift: PAGE_SHIFT_1G });
    const large = { physical: 0x1_0060_0000, flags: ALL, shift: PAGE_SHIFT_2M } as const;
    mapPage(guest.ept, 0x8020_0000, large);
    const found = guest.translate(0x4023_4567, READ);
    // Two guest entries of 4 + 1 accesses each, then three of EPT.
    assertEquals([found.accesses, outcome(found, 0x4023_4567)], [13, "0x100634567"]);
    if (found.kind !== "mapping") throw new Error(found.kind);
    assertEquals([found.mapping.linear, found.mapping.physical, found.mapping.shift], [
      0x4020_0000,
      0x1_0060_0000,
      21,
    ]);
    // The other way round: a small page of the guest's in a large one of the host's.
    mapPage(guest.tables, 0x9000, { physical: 0xc012_3000, flags: USER });
    mapPage(guest.ept, 0xc000_0000, { physical: 2 ** 40, flags: ALL, shift: PAGE_SHIFT_1G });
    const small = guest.translate(0x9abc, READ);
    assertEquals([small.accesses, outcome(small, 0x9abc)], [22, hex(2 ** 40 + 0x12_3abc)]);
  });

  it("reads only EPT without paging", () => {
    const guest = new Guest();
    guest.state = { ...guest.state, cr0: CR0_PE };
    const found = guest.translate(0x1_2345, WRITE);
    assertEquals([found.accesses, outcome(found, 0x1_2345)], [4, "0x12345"]);
    // SDM 3C table 28-7: the linear address is then user-mode, writable and executable.
    assertEquals(outcome(guest.translate(0x8000, WRITE)), "violation 0x782 at 0x8000");
  });
});

describe("an EPT violation", () => {
  it("tells the access and the rights there are, and that the address was translated", () => {
    const wanted: [AccessKind, number][] = [[READ, EPT_R], [WRITE, EPT_W], [FETCH, EPT_X]];
    for (const rights of [0, EPT_R, EPT_R | EPT_W, EPT_X, EPT_R | EPT_X, EPT_RWX]) {
      for (const [access, right] of wanted) {
        const guest = new Guest();
        guest.map(PAGE, rights === 0 ? 0 : rights | EPT_WB);
        // 0x180: there is a linear address, and the access was to its translation; 0x600: user-mode and writable.
        const violation = `violation ${hex(right | (rights << 3) | 0x780)} at ${hex(PAGE)}`;
        assertEquals(guest.try(access), (rights & right) !== 0 ? "0x5000" : violation, `${rights} ${right}`);
      }
    }
  });

  it("tells the rights that all levels allow together", () => {
    const guest = new Guest();
    const at = entryOf(guest.ept, PAGE, 3)!;
    guest.memory.setWord(at, guest.memory.word(at) & ~EPT_W);
    assertEquals(guest.try(WRITE), `violation ${hex(0x2 | 0x28 | 0x780)} at ${hex(PAGE)}`);
    guest.memory.setWord(at, 0);
    const found = guest.translate(0x7abc, WRITE);
    assertEquals(found, {
      kind: "ept violation",
      qualification: 0x782,
      physical: PAGE + 0xabc,
      linear: 0x7abc,
      accesses: 22,
    });
  });

  it("tells the linear address's own rights where the processor can", () => {
    const cases: [flags: number, noExecute: boolean, bits: number][] = [
      [PTE_P, false, 0],
      [PTE_P | PTE_US, false, 0x200],
      [PTE_P | PTE_RW, false, 0x400],
      [PTE_P, true, 0x800],
      [USER, true, 0xe00],
    ];
    for (const [flags, noExecute, bits] of cases) {
      const guest = new Guest();
      mapPage(guest.tables, 0x7000, { physical: PAGE, flags, noExecute });
      guest.map(PAGE, 0);
      assertEquals(guest.try(READ), `violation ${hex(0x181 | bits)} at ${hex(PAGE)}`);
      guest.features = { ...EPT_FEATURES, advancedExits: false };
      assertEquals(guest.try(READ), `violation 0x181 at ${hex(PAGE)}`);
    }
  });

  it("of the guest's tables has bit 8 clear, and is a read whatever the access is", () => {
    for (const level of [4, 3, 2, 1]) {
      for (const access of [READ, WRITE, FETCH, USER_WRITE]) {
        const guest = new Guest();
        const at = guest.entry(level);
        guest.map(at - at % 0x1000, EPT_X | EPT_WB, at - at % 0x1000);
        assertEquals(guest.try(access), `violation ${hex(0x81 | (EPT_X << 3))} at ${hex(at)}`);
        assertEquals(guest.translate(0x7000, access).accesses, (4 - level) * 5 + 4);
      }
    }
  });

  it("comes from setting a flag in tables that may only be read", () => {
    for (const level of [4, 3, 2, 1]) {
      const guest = new Guest();
      const at = guest.entry(level);
      guest.map(at - at % 0x1000, EPT_R | EPT_WB, at - at % 0x1000);
      assertEquals(guest.try(READ), `violation ${hex(0x82 | (EPT_R << 3))} at ${hex(at)}`);
      assertEquals(guest.memory.word(at) & PTE_A, 0);
      // Where the flags are set already, nothing is written.
      guest.memory.setWord(at, guest.memory.word(at) | PTE_A);
      assertEquals(guest.try(READ), "0x5000");
      if (level > 1) continue;
      assertEquals(guest.try(WRITE), `violation ${hex(0x82 | (EPT_R << 3))} at ${hex(at)}`);
      assertEquals(guest.memory.word(at) & PTE_D, 0);
    }
  });

  it("of the guest's tables is a write as well with accessed and dirty flags", () => {
    const guest = new Guest(true);
    const at = guest.entry(2);
    guest.map(at - at % 0x1000, EPT_R | EPT_WB, at - at % 0x1000);
    guest.memory.setWord(at, guest.memory.word(at) | PTE_A);
    assertEquals(guest.try(READ), `violation ${hex(0x83 | (EPT_R << 3))} at ${hex(at)}`);
  });

  it("gives way to the page fault that the guest's tables raise", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x7000, { physical: PAGE, flags: PTE_P });
    guest.map(PAGE, 0);
    assertEquals(guest.try(WRITE), "#PF(0x3)");
    assertEquals(guest.memory.word(guest.entry(1)) & PTE_A, 0);
  });

  it("finds the guest's flags set: they come before the page is accessed", () => {
    const guest = new Guest();
    guest.map(PAGE, 0);
    guest.try(WRITE);
    assertEquals(guest.memory.word(guest.entry(1)) & (PTE_A | PTE_D), PTE_A | PTE_D);
  });

  it("is what becomes of addresses that four levels do not reach", () => {
    const features = { ...EPT_FEATURES, maxPhysicalBits: 52 };
    const { memory, ept } = new Guest();
    const second = new Ept({ memory, eptp: eptPointer(ept.root), features });
    const found = second.translate(2 ** 48, { purpose: "final", write: false, fetch: false });
    assertEquals(found, { kind: "ept violation", qualification: 1, physical: 2 ** 48, accesses: 0 });
  });
});

describe("an EPT misconfiguration", () => {
  it("is found before rights are asked, but not behind an absent entry", () => {
    const guest = new Guest();
    guest.map(PAGE, EPT_W | EPT_WB);
    const at = entryOf(guest.ept, PAGE, 3)!;
    const entry = guest.memory.word(at);
    guest.memory.setWord(at, entry & ~EPT_R & ~EPT_W);
    assertEquals(guest.try(READ), `misconfiguration at ${hex(PAGE)}`);
    guest.memory.setWord(at, entry & ~EPT_RWX);
    assertEquals(guest.try(READ), `violation 0x781 at ${hex(PAGE)}`);
  });

  it("may be in the way of the guest's tables", () => {
    const guest = new Guest();
    const at = guest.entry(3);
    guest.map(at - at % 0x1000, EPT_RWX | (7 << 3), at - at % 0x1000);
    assertEquals(guest.try(READ), `misconfiguration at ${hex(at)}`);
  });

  it("is what memory that nobody backs reads as", () => {
    const guest = new Guest();
    const second = new Ept({ memory: guest.memory, eptp: eptPointer(2 ** 40), features: EPT_FEATURES });
    const found = second.translate(0x1234, { purpose: "final", write: false, fetch: false });
    assertEquals(found, { kind: "ept misconfiguration", physical: 0x1234, accesses: 1 });
  });
});

describe("accessed and dirty flags of EPT", () => {
  const flags = (entry: number) => (entry & EPT_A ? "A" : "-") + (entry & EPT_D ? "D" : "-");

  it("are set on the way to the page, D by a write; and D where the guest's tables are", () => {
    const guest = new Guest(true);
    const leaf = () => [4, 3, 2, 1].map((level) => flags(guest.eptEntry(PAGE, level))).join(" ");
    const table = guest.entry(1);
    assertEquals([leaf(), flags(guest.eptEntry(table, 1))], ["-- -- -- --", "--"]);
    guest.try(READ);
    assertEquals([leaf(), flags(guest.eptEntry(table, 1))], ["A- A- A- A-", "AD"]);
    guest.try(WRITE);
    assertEquals(leaf(), "A- A- A- AD");
  });

  it("are left alone without EPTP bit 6", () => {
    const guest = new Guest(false);
    guest.try(WRITE);
    assertEquals([4, 3, 2, 1].map((level) => flags(guest.eptEntry(PAGE, level))), ["--", "--", "--", "--"]);
  });

  it("are not set by a violation", () => {
    const guest = new Guest(true);
    guest.map(PAGE, EPT_R | EPT_WB);
    guest.try(WRITE);
    assertEquals(flags(guest.eptEntry(PAGE, 1)), "--");
  });
});

describe("a mapping in two dimensions", () => {
  it("serves a write only where the guest and the host allow it, and both know the page as dirty", () => {
    for (const accessedDirty of [false, true]) {
      const guest = new Guest(accessedDirty);
      const found = (access: AccessKind) => {
        const made = guest.translate(0x7000, access);
        if (made.kind !== "mapping") throw new Error(made.kind);
        return made.mapping;
      };
      const read = found(READ);
      assertEquals([serves(read, READ, guest.state), serves(read, WRITE, guest.state)], [true, false]);
      assertEquals(read.host?.dirty, !accessedDirty);
      assertEquals(serves(found(WRITE), WRITE, guest.state), true);
      guest.map(PAGE, EPT_R | EPT_WB);
      assertEquals(
        serves(found(READ), WRITE, guest.state),
        false,
        "the guest's flag is set, the host allows no write",
      );
    }
  });

  it("serves no write that has to set the host's dirty flag, though the guest's is set", () => {
    const guest = new Guest(true);
    guest.try(WRITE);
    guest.map(PAGE, ALL);
    const made = guest.translate(0x7000, READ);
    if (made.kind !== "mapping") throw new Error(made.kind);
    assertEquals([made.mapping.dirty, made.mapping.host?.dirty], [true, false]);
    assertEquals([READ, WRITE].map((access) => serves(made.mapping, access, guest.state)), [true, false]);
  });

  it("serves no read where EPT allows fetches alone", () => {
    const guest = new Guest();
    guest.map(PAGE, EPT_X | EPT_WB);
    const made = guest.translate(0x7000, FETCH);
    if (made.kind !== "mapping") throw new Error(made.kind);
    assertEquals([serves(made.mapping, FETCH, guest.state), serves(made.mapping, READ, guest.state)], [
      true,
      false,
    ]);
  });
});

describe("an EPT pointer", () => {
  it("that VM entry refuses is refused here", () => {
    const { memory } = new Tables();
    const make = () => new Ept({ memory, eptp: 0x1_0000, features: EPT_FEATURES });
    assertThrows(make, RangeError, "Cannot use EPT pointer 0x10000: VM entry refuses it");
  });
});
