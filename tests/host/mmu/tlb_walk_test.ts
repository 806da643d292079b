import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_PE,
  EPT_RWX,
  EPT_WB,
  mapPage,
  PAGE_SHIFT_2M,
  type PageTables,
  PTE_P,
  PTE_RW,
  PTE_US,
} from "../../../abi/mod.ts";
import {
  COMBINED,
  Ept,
  invalidate,
  type Invalidation,
  type Mapping,
  type PagingState,
  StalenessOracle,
  StaleTranslation,
  Tlb,
  translate,
} from "../../../host/mmu/mod.ts";
import { EPT_FEATURES, eptPointer, FEATURES, longMode, READ, Tables } from "./tables.ts";

const ALL = EPT_RWX | EPT_WB;
const LARGE = 0x4000_0000;
const GUEST_LARGE = 0x8000_0000;

/** A guest with one page of 2 MiB, which EPT maps by pages of 4 KiB; a TLB of its processor, and the oracle. */
class Guest extends Tables {
  readonly tables: PageTables = this.hierarchy();
  readonly ept: PageTables = this.hierarchy(true);
  readonly tlb: Tlb = new Tlb("vmx");
  readonly oracle: StalenessOracle = new StalenessOracle((_, _entry, address) => this.walk(address));
  state: PagingState = longMode(this.tables.root);

  constructor() {
    super();
    const flags = PTE_P | PTE_RW | PTE_US;
    mapPage(this.tables, LARGE, { physical: GUEST_LARGE, flags, shift: PAGE_SHIFT_2M });
    for (let at = 0x1_0000; at < 0x4_0000; at += 0x1000) mapPage(this.ept, at, { physical: at, flags: ALL });
    for (let i = 0; i < 8; i++) this.place(i, i);
    this.tlb.setTags({ vpid: 1, pcid: 0, root: this.ept.root });
  }

  /** Maps a page of EPT's to a frame. */
  place(page: number, frame: number): void {
    mapPage(this.ept, GUEST_LARGE + page * 0x1000, { physical: 0x1_0000_0000 + frame * 0x1000, flags: ALL });
  }

  walk(address: number): Mapping | undefined {
    const { memory, state } = this;
    const second = new Ept({ memory, eptp: eptPointer(this.ept.root), features: EPT_FEATURES });
    const found = translate({ memory, state, features: FEATURES, second }, address, READ);
    return found.kind === "mapping" ? found.mapping : undefined;
  }

  /** A load: by the TLB where it hits. */
  load(address: number): string {
    const { linear } = this.tlb;
    const slot = linear.lookupAddress(address);
    if (slot >= 0) return this.oracle.used(0, slot, { address, kind: COMBINED });
    const filled = linear.insert(this.walk(address)!);
    this.oracle.filled(0, filled, linear.entry(filled)!);
    return "walked";
  }

  execute(operation: Invalidation): number {
    const dropped = invalidate(this.tlb, operation);
    this.oracle.invalidated(0, operation, this.tlb.tags);
    return dropped;
  }
}

describe("a large page that EPT maps by small ones", () => {
  it("is cached in pieces, and INVLPG of one address drops them all", () => {
    const guest = new Guest();
    const pieces = [0, 1, 7].map((page) => LARGE + page * 0x1000 + 8);
    assertEquals(pieces.map((at) => guest.load(at)), ["walked", "walked", "walked"]);
    assertEquals(pieces.map((at) => guest.load(at)), ["fresh", "fresh", "fresh"]);
    assertEquals(
      guest.tlb.entries().map(({ linear, shift, span, host }) => [linear, shift, span, host?.guest]),
      [
        [LARGE, 12, 21, GUEST_LARGE],
        [LARGE + 0x1000, 12, 21, GUEST_LARGE + 0x1000],
        [LARGE + 0x7000, 12, 21, GUEST_LARGE + 0x7000],
      ],
    );
    assertEquals(guest.execute({ operation: "INVLPG", address: LARGE + 0x10_0000 }), 3);
  });

  it("that the host moves is used at the old place until INVEPT, and not after the host has said that it is gone", () => {
    const guest = new Guest();
    const [moved, left] = [LARGE + 0x1000, LARGE + 0x2000];
    guest.load(moved);
    guest.load(left);
    guest.place(1, 9);
    const range = { space: "guest-physical", address: GUEST_LARGE + 0x1000, bytes: 4096 } as const;
    guest.oracle.changed({ ...range, root: guest.ept.root });
    assertEquals([guest.load(moved), guest.load(left)], ["legally stale", "fresh"]);
    guest.oracle.gone({ ...range, reason: "page migrated" });
    const error = assertThrows(() => guest.load(moved), StaleTranslation) as StaleTranslation;
    assertEquals(error.missed, { operation: "INVEPT type 1", root: guest.ept.root });
    guest.execute(error.missed!);
    assertEquals([guest.load(moved), guest.load(left)], ["walked", "walked"]);
    assertEquals(guest.load(moved), "fresh");
  });

  it("is no page where the guest has paging off: INVLPG drops one piece", () => {
    const guest = new Guest();
    guest.state = { ...guest.state, cr0: CR0_PE };
    guest.load(GUEST_LARGE);
    guest.load(GUEST_LARGE + 0x1000);
    assertEquals(guest.execute({ operation: "INVLPG", address: GUEST_LARGE }), 1);
    assertEquals(guest.load(GUEST_LARGE + 0x1000), "fresh");
  });
});
