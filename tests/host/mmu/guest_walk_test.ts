import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_CET,
  CR4_LA57,
  CR4_PAE,
  CR4_PGE,
  CR4_PKE,
  CR4_PKS,
  CR4_SMAP,
  CR4_SMEP,
  EFER_LMA,
  EFER_NX,
  entryOf,
  mapPage,
  PAGE_SHIFT_1G,
  PAGE_SHIFT_2M,
  type PageTables,
  PTE_A,
  PTE_D,
  PTE_G,
  PTE_P,
  PTE_RW,
  PTE_US,
} from "../../../abi/mod.ts";
import { NotModelled } from "../../../host/mod.ts";
import { type AccessKind, type PagingState, serves, translate } from "../../../host/mmu/mod.ts";
import {
  FEATURES,
  FETCH,
  longMode,
  outcome,
  READ,
  Tables,
  USER_FETCH,
  USER_READ,
  USER_WRITE,
  WRITE,
} from "./tables.ts";

const KERNEL = PTE_P | PTE_RW;
const USER = PTE_P | PTE_RW | PTE_US;
const LINEAR = -(2 ** 47) + 0x1234_5678;

/** A guest with tables of its own. */
class Guest extends Tables {
  readonly tables: PageTables = this.hierarchy();
  state: PagingState = longMode(this.tables.root);

  translate(linear: number, access: AccessKind) {
    return translate({ memory: this.memory, state: this.state, features: FEATURES }, linear, access);
  }

  try(linear: number, access: AccessKind): string {
    return outcome(this.translate(linear, access), linear);
  }

  /** The low halves of the entries on an address's way, from the root on. */
  entries(linear: number, last = 1): number[] {
    return [4, 3, 2, 1].filter((level) => level >= last).map((level) =>
      this.memory.word(entryOf(this.tables, linear, level)!)
    );
  }
}

describe("a walk of the guest's tables", () => {
  it("reads four entries to a page of 4 KiB, three to 2 MiB, two to 1 GiB", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x7000, { physical: 0x12_3456_7000, flags: USER });
    mapPage(guest.tables, 0x40_0000, { physical: 0x60_0000, flags: KERNEL | PTE_G, shift: PAGE_SHIFT_2M });
    const large = { physical: 2 ** 45, flags: PTE_P, shift: PAGE_SHIFT_1G, noExecute: true } as const;
    mapPage(guest.tables, -(2 ** 47), large);
    assertEquals(guest.translate(0x7abc, USER_READ), {
      kind: "mapping",
      accesses: 4,
      mapping: {
        linear: 0x7000,
        physical: 0x12_3456_7000,
        shift: 12,
        user: true,
        writable: true,
        executable: true,
        global: false,
        dirty: false,
      },
    });
    assertEquals(guest.translate(0x54_3210, WRITE), {
      kind: "mapping",
      accesses: 3,
      mapping: {
        linear: 0x40_0000,
        physical: 0x60_0000,
        shift: 21,
        user: false,
        writable: true,
        executable: true,
        global: true,
        dirty: true,
      },
    });
    assertEquals(guest.try(0x54_3210, READ), "0x743210");
    const found = guest.translate(LINEAR, READ);
    assertEquals([found.accesses, outcome(found, LINEAR)], [2, "0x200012345678"]);
  });

  it("allows what every entry on the way allows", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x7000, { physical: 0x5000, flags: USER });
    for (const level of [4, 3, 2, 1]) {
      const at = entryOf(guest.tables, 0x7000, level)!;
      const [low, high] = [guest.memory.word(at), guest.memory.word(at + 4)];
      guest.memory.setWord(at, low & ~PTE_US);
      assertEquals([guest.try(0x7000, USER_READ), guest.try(0x7000, READ)], ["#PF(0x5)", "0x5000"]);
      guest.memory.setWord(at, low & ~PTE_RW);
      assertEquals([guest.try(0x7000, USER_WRITE), guest.try(0x7000, USER_READ)], ["#PF(0x7)", "0x5000"]);
      guest.memory.setWord(at, low);
      guest.memory.setWord(at + 4, 0x8000_0000);
      assertEquals([guest.try(0x7000, USER_FETCH), guest.try(0x7000, USER_READ)], ["#PF(0x15)", "0x5000"]);
      guest.memory.setWord(at + 4, high);
      assertEquals(guest.try(0x7000, USER_FETCH), "0x5000");
    }
  });

  it("ends at the first entry that is not present, whatever else that says", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x7000, { physical: 0x5000, flags: USER });
    for (const level of [1, 2, 3, 4]) {
      const at = entryOf(guest.tables, 0x7000, level)!;
      guest.memory.setWord(at, 0xffff_fffe);
      guest.memory.setWord(at + 4, 0xffff_ffff);
      const found = guest.translate(0x7123, USER_WRITE);
      assertEquals(found, { kind: "page fault", errorCode: 6, address: 0x7123, accesses: 5 - level });
    }
  });

  it("faults for reserved bits at once, in any level", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x7000, { physical: 0x5000, flags: USER });
    const codes = [READ, WRITE, FETCH, USER_READ, USER_WRITE, USER_FETCH].map((access) =>
      [access, {
        read: "#PF(0x9)",
        write: "#PF(0xb)",
        fetch: "#PF(0x19)",
      }] as const
    );
    for (const level of [1, 2, 3, 4]) {
      const at = entryOf(guest.tables, 0x7000, level)!;
      const high = guest.memory.word(at + 4);
      guest.memory.setWord(at + 4, 1 << 14); // bit 46
      for (const [access, { read, write, fetch }] of codes) {
        const code = access.fetch ? fetch : access.write ? write : read;
        const expected = access.user ? `#PF(0x${(parseInt(code.slice(6), 16) | 4).toString(16)})` : code;
        assertEquals(guest.try(0x7000, access), expected);
      }
      guest.memory.setWord(at + 4, high);
    }
    assertEquals(guest.try(0x7000, READ), "0x5000");
  });

  it("finds bit 63 reserved without no-execute, and tells of no fetch then", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0x7000, { physical: 0x5000, flags: USER, noExecute: true });
    const efer = guest.state.efer & ~EFER_NX;
    guest.state = { ...guest.state, efer };
    assertEquals(guest.try(0x7000, FETCH), "#PF(0x9)");
    guest.state = { ...guest.state, cr4: guest.state.cr4 | CR4_SMEP };
    assertEquals(guest.try(0x7000, FETCH), "#PF(0x19)");
  });

  it("finds nothing but ones where no memory is", () => {
    const guest = new Guest();
    guest.state = { ...guest.state, cr3: 2 ** 40 };
    assertEquals(guest.try(0, READ), "#PF(0x9)");
  });

  it("takes the low twelve bits of CR3 for no part of the address", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0x5000, flags: KERNEL });
    guest.state = { ...guest.state, cr3: guest.tables.root + 0xabc };
    assertEquals(guest.try(0, READ), "0x5000");
  });

  it("has global pages only with CR4.PGE", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0x5000, flags: KERNEL | PTE_G });
    const isGlobal = () => {
      const found = guest.translate(0, READ);
      return found.kind === "mapping" && found.mapping.global;
    };
    assertEquals(isGlobal(), true);
    guest.state = { ...guest.state, cr4: CR4_PAE };
    assertEquals(isGlobal(), false);
  });
});

describe("accessed and dirty flags", () => {
  const flags = (guest: Guest, last?: number) =>
    guest.entries(0, last).map((low) => low & (PTE_A | PTE_D)).map((bits) =>
      (bits & PTE_A ? "A" : "-") + (bits & PTE_D ? "D" : "-")
    );

  it("are set on every level by an access, and D on the page by a write", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0x5000, flags: USER });
    assertEquals(flags(guest), ["--", "--", "--", "--"]);
    guest.translate(0, USER_READ);
    assertEquals(flags(guest), ["A-", "A-", "A-", "A-"]);
    guest.translate(0, FETCH);
    assertEquals(flags(guest), ["A-", "A-", "A-", "A-"]);
    guest.translate(0, WRITE);
    assertEquals(flags(guest), ["A-", "A-", "A-", "AD"]);
  });

  it("are set on the large page itself", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0, flags: USER, shift: PAGE_SHIFT_2M });
    guest.translate(0x1234, WRITE);
    assertEquals(flags(guest, 2), ["A-", "A-", "AD"]);
  });

  it("stay as they are on the page that a fault is about", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0x5000, flags: PTE_P });
    assertEquals(guest.try(0, WRITE), "#PF(0x3)");
    assertEquals(guest.try(0, USER_READ), "#PF(0x5)");
    assertEquals(flags(guest)[3], "--");
    guest.state = { ...guest.state, cr0: CR0_PG | CR0_PE };
    assertEquals(guest.try(0, WRITE), "0x5000");
    assertEquals(flags(guest)[3], "AD");
  });

  it("are added to what the entry holds, and written only where they are clear", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0x5000, flags: USER | 0xe00 });
    const at = entryOf(guest.tables, 0, 1)!;
    let stores = 0;
    guest.memory.watch({ address: at, stored: () => stores++ });
    guest.translate(0, WRITE);
    assertEquals([guest.memory.word(at), stores], [0x5000 | USER | 0xe00 | PTE_A | PTE_D, 1]);
    guest.translate(0, WRITE);
    assertEquals(stores, 1);
  });
});

describe("the rights of a page", () => {
  const flag = [false, true];

  /** SDM 3A 4.6.1, as the list that it is: an access is allowed where one line says so. */
  function allowed(
    page: { user: boolean; writable: boolean; nx: boolean },
    on: { wp: boolean; smep: boolean; smap: boolean; ac: boolean },
    { user, write, fetch, implicit }: AccessKind,
  ): boolean {
    const mode = user && !implicit ? "user" : "supervisor";
    const kind = fetch ? "fetch" : write ? "write" : "read";
    const reach = !on.smap || (on.ac && !implicit);
    const address = page.user ? "user" : "supervisor";
    switch (`${mode} ${kind} ${address}`) {
      case "supervisor read supervisor":
        return true;
      case "supervisor read user":
        return reach;
      case "supervisor write supervisor":
        return on.wp ? page.writable : true;
      case "supervisor write user":
        return on.wp ? page.writable && reach : reach;
      case "supervisor fetch supervisor":
        return !page.nx;
      case "supervisor fetch user":
        return on.smep ? false : !page.nx;
      case "user read user":
        return true;
      case "user write user":
        return page.writable;
      case "user fetch user":
        return !page.nx;
      default:
        return false; // user-mode accesses of supervisor-mode addresses
    }
  }

  it("are those of SDM 3A 4.6.1 in every combination, with the error codes of 4.7", () => {
    const kinds = [READ, WRITE, FETCH, USER_READ, USER_WRITE, USER_FETCH];
    const accesses = [
      ...kinds,
      ...[READ, WRITE, USER_READ, USER_WRITE].map((k) => ({ ...k, implicit: true })),
    ];
    let [faults, passes] = [0, 0];
    for (let bits = 0; bits < 128; bits++) {
      const [present, writable, user, nx, wp, smep, smap] = [0, 1, 2, 3, 4, 5, 6].map((n) =>
        flag[bits >> n & 1]
      );
      for (const ac of flag) {
        for (const access of accesses) {
          const guest = new Guest();
          const flags = (present ? PTE_P : 0) | (writable ? PTE_RW : 0) | (user ? PTE_US : 0);
          mapPage(guest.tables, 0, { physical: 0x5000, flags, noExecute: nx });
          guest.state = {
            ...guest.state,
            cr0: CR0_PG | CR0_PE | (wp ? CR0_WP : 0),
            cr4: CR4_PAE | CR4_PGE | (smep ? CR4_SMEP : 0) | (smap ? CR4_SMAP : 0),
            ac,
          };
          const allow = present && allowed({ user, writable, nx }, { wp, smep, smap, ac }, access);
          const code = (present ? 1 : 0) + (access.write ? 2 : 0) +
            (access.user && !access.implicit ? 4 : 0) + (access.fetch ? 16 : 0);
          const what = JSON.stringify({ present, writable, user, nx, wp, smep, smap, ac, access });
          const found = guest.translate(0, access);
          assertEquals(outcome(found), allow ? "0x5000" : `#PF(0x${code.toString(16)})`, what);
          if (found.kind === "mapping") {
            passes++;
            assertEquals(serves(found.mapping, access, guest.state), true, what);
            // A mapping that one access brought says of every other what a walk would.
            for (const other of accesses) {
              const again = outcome(guest.translate(0, other)) === "0x5000";
              const dirty = found.mapping.dirty || !other.write;
              assertEquals(serves(found.mapping, other, guest.state), again && dirty, what);
            }
          } else {
            faults++;
            const [, , , last] = guest.entries(0);
            assertEquals(last & (PTE_A | PTE_D), 0, what);
          }
        }
      }
    }
    assertEquals(passes > 300 && faults > 300, true);
  });

  it("let a supervisor fetch from no-execute pages where there is no such thing", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0x5000, flags: USER });
    guest.state = { ...guest.state, efer: EFER_LMA };
    assertEquals([guest.try(0, FETCH), guest.try(0, USER_FETCH)], ["0x5000", "0x5000"]);
    guest.state = { ...guest.state, cr4: CR4_PAE | CR4_SMEP };
    assertEquals([guest.try(0, FETCH), guest.try(0, USER_FETCH)], ["#PF(0x11)", "0x5000"]);
  });
});

describe("a mapping that is held", () => {
  it("follows the registers: CR0.WP, CR4.SMEP and IA32_EFER.NXE count when it is used", () => {
    const guest = new Guest();
    mapPage(guest.tables, 0, { physical: 0x5000, flags: PTE_P | PTE_US | PTE_D, noExecute: true });
    const found = guest.translate(0, READ);
    if (found.kind !== "mapping") throw new Error(found.kind);
    const serve = (access: AccessKind, change: Partial<PagingState>) =>
      serves(found.mapping, access, { ...guest.state, ...change });
    assertEquals([serve(WRITE, {}), serve(WRITE, { cr0: CR0_PG | CR0_PE })], [false, true]);
    assertEquals([serve(USER_WRITE, {}), serve(USER_WRITE, { cr0: CR0_PG | CR0_PE })], [false, false]);
    assertEquals([serve(FETCH, {}), serve(FETCH, { efer: EFER_LMA })], [false, true]);
    assertEquals(serve(FETCH, { efer: EFER_LMA, cr4: CR4_PAE | CR4_SMEP }), false);
    assertEquals([
      serve(READ, { cr4: CR4_PAE | CR4_SMAP }),
      serve(READ, { cr4: CR4_PAE | CR4_SMAP, ac: true }),
    ], [
      false,
      true,
    ]);
  });
});

describe("without paging", () => {
  it("addresses are physical, and everything is allowed without an access", () => {
    const guest = new Guest();
    guest.state = { ...guest.state, cr0: CR0_PE };
    const found = guest.translate(0xc012_3456, USER_WRITE);
    assertEquals([found.accesses, outcome(found, 0xc012_3456)], [0, "0xc0123456"]);
    assertThrows(() => guest.translate(-1, READ), RangeError, "allowed are 0 to 2^52 - 1");
  });
});

describe("modes and addresses that are not modelled", () => {
  it("are refused by name", () => {
    const guest = new Guest();
    const { state } = guest;
    for (const bit of [CR4_LA57, CR4_PKE, CR4_CET, CR4_PKS]) {
      guest.state = { ...state, cr4: state.cr4 | bit };
      assertThrows(() => guest.translate(0, READ), NotModelled, "(CR4.");
    }
    guest.state = { ...state, efer: 0 };
    assertThrows(() => guest.translate(0, READ), NotModelled, "IA32_EFER.LMA is clear");
  });

  it("are not translated where they are not canonical", () => {
    const guest = new Guest();
    assertThrows(
      () => guest.translate(2 ** 47, READ),
      RangeError,
      "0x800000000000: allowed are -2^47 to 2^47 - 1",
    );
    assertThrows(() => guest.translate(-(2 ** 47) - 1, READ), RangeError);
    assertEquals(guest.try(-(2 ** 47), READ), "#PF(0x0)");
  });
});
