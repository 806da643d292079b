import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  entryOf,
  mapPage,
  type PageTables,
  PFERR_GUEST_FINAL,
  PFERR_GUEST_PAGE,
  PTE_A,
  PTE_D,
  PTE_P,
  PTE_RW,
  PTE_US,
} from "../../../abi/mod.ts";
import { NotModelled } from "../../../host/mod.ts";
import { type AccessKind, Npt, type PagingState, serves, translate } from "../../../host/mmu/mod.ts";
import { FEATURES, FETCH, longMode, outcome, READ, Tables, USER_WRITE, WRITE } from "./tables.ts";

const USER = PTE_P | PTE_RW | PTE_US;
const PAGE = 0x1234_5000;

/** A guest under nested paging: linear 0x7000 is guest-physical 0x1234_5000 and physical 0x5000. */
class Guest extends Tables {
  readonly tables: PageTables = this.hierarchy();
  readonly nested: PageTables = this.hierarchy();
  state: PagingState = longMode(this.tables.root);
  nx = true;

  constructor() {
    super();
    mapPage(this.tables, 0x7000, { physical: PAGE, flags: USER });
    for (let at = 0x1_0000; at < 0x4_0000; at += 0x1000) this.map(at, USER, at);
    this.map(PAGE, USER);
  }

  map(guest: number, flags: number, physical = 0x5000, noExecute = false): void {
    mapPage(this.nested, guest, { physical, flags, noExecute });
  }

  get second(): Npt {
    const { memory, nx } = this;
    return new Npt({ memory, ncr3: this.nested.root, nx, features: FEATURES });
  }

  translate(access: AccessKind) {
    const { memory, state, second } = this;
    return translate({ memory, state, features: FEATURES, second }, 0x7000, access);
  }

  /** A nested page fault's error code without bits 32 and 33, and which of them it has. */
  fault(access: AccessKind): [code: number, where: string] | string {
    const found = this.translate(access);
    if (found.kind !== "nested page fault") return outcome(found, 0x7000);
    const where = found.errorCode >= PFERR_GUEST_PAGE ? PFERR_GUEST_PAGE : PFERR_GUEST_FINAL;
    return [found.errorCode - where, where === PFERR_GUEST_PAGE ? "table" : "final"];
  }
}

describe("a walk under nested paging", () => {
  it("reads 24 entries for pages of 4 KiB in both", () => {
    const found = new Guest().translate(READ);
    assertEquals([found.accesses, outcome(found, 0x7000)], [24, "0x5000"]);
  });

  it("makes every access a user's: the host's tables must allow those", () => {
    const guest = new Guest();
    guest.map(PAGE, PTE_P | PTE_RW);
    assertEquals(guest.fault(READ), [5, "final"]);
    guest.map(PAGE, PTE_P | PTE_US);
    assertEquals([guest.fault(READ), guest.fault(WRITE)], ["0x5000", [7, "final"]]);
    guest.state = { ...guest.state, cr0: guest.state.cr0 & ~0x1_0000 };
    assertEquals(guest.fault(WRITE), [7, "final"], "no CR0.WP matters");
  });

  it("tells in bit 32 that the page is at fault", () => {
    const guest = new Guest();
    guest.map(PAGE, 0);
    assertEquals([READ, WRITE, FETCH, USER_WRITE].map((access) => guest.fault(access)), [
      [4, "final"],
      [6, "final"],
      [0x14, "final"],
      [6, "final"],
    ]);
    const found = guest.translate(READ);
    assertEquals(found, {
      kind: "nested page fault",
      errorCode: 0x1_0000_0004,
      physical: PAGE,
      accesses: 24,
    });
  });

  it("tells in bit 33 that a table of the guest's is, which is always written to", () => {
    for (const level of [4, 3, 2, 1]) {
      for (const access of [READ, WRITE, FETCH]) {
        const guest = new Guest();
        const at = entryOf(guest.tables, 0x7000, level)!;
        const page = at - at % 0x1000;
        guest.map(page, 0, page);
        assertEquals(guest.fault(access), [6, "table"]);
        guest.map(page, PTE_P | PTE_US, page);
        assertEquals(guest.fault(access), [7, "table"]);
        guest.map(page, USER, page, true);
        assertEquals(guest.fault(access), "0x5000", "tables are never fetched");
        const found = guest.translate(READ);
        assertEquals(found.kind, "mapping");
      }
    }
  });

  it("finds no-execute pages and reserved bits as the host's EFER.NXE has it", () => {
    const guest = new Guest();
    guest.map(PAGE, USER, 0x5000, true);
    assertEquals([guest.fault(FETCH), guest.fault(READ)], [[0x15, "final"], "0x5000"]);
    guest.nx = false;
    assertEquals([guest.fault(FETCH), guest.fault(READ)], [[0xd, "final"], [0xd, "final"]]);
  });

  it("raises the guest's own page fault first", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x7000, { physical: PAGE, flags: PTE_P });
    guest.map(PAGE, 0);
    assertEquals(guest.fault(WRITE), "#PF(0x3)");
  });

  it("sets accessed and dirty flags in both tables, and D where the guest's tables are", () => {
    const guest = new Guest();
    const flags = (tables: PageTables, address: number) =>
      guest.memory.word(entryOf(tables, address, 1)!) & (PTE_A | PTE_D);
    guest.translate(READ);
    const table = entryOf(guest.tables, 0x7000, 1)!;
    assertEquals([flags(guest.tables, 0x7000), flags(guest.nested, PAGE), flags(guest.nested, table)], [
      PTE_A,
      PTE_A,
      PTE_A | PTE_D,
    ]);
    const made = guest.translate(WRITE);
    assertEquals([flags(guest.tables, 0x7000), flags(guest.nested, PAGE)], [PTE_A | PTE_D, PTE_A | PTE_D]);
    if (made.kind !== "mapping") throw new Error(made.kind);
    assertEquals(serves(made.mapping, WRITE, guest.state), true);
  });

  it("does not reach beyond 2^48", () => {
    const access = { purpose: "final", write: false, fetch: false } as const;
    assertThrows(() => new Guest().second.translate(2 ** 48, access), NotModelled, "above 2^48");
  });
});
