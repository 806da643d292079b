import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  COMBINED,
  GUEST_PHYSICAL,
  invalidate,
  type Invalidation,
  NO_EPT,
  type ShootdownComplete,
  StalenessOracle,
  StaleTranslation,
  Tlb,
  type TlbTags,
  type TlbTranslation,
  type TranslationRange,
} from "../../../host/mmu/mod.ts";
import { translation } from "./tlb_models.ts";

const PAGE = 0x5000;
const FREED: ShootdownComplete = { space: "linear", address: PAGE, bytes: 4096, reason: "page freed" };

/** Two processors, one table of pages that all tags share, and the oracle. */
class Machine {
  readonly tables: Map<number, Partial<TlbTranslation>> = new Map([[PAGE, {}]]);
  readonly oracle: StalenessOracle = new StalenessOracle((_, { linear }) => {
    const found = this.tables.get(linear);
    return found && translation(linear, found);
  });
  readonly tlbs: Tlb[] = [new Tlb("vmx"), new Tlb("vmx")];

  constructor(tags: Partial<TlbTags> = {}) {
    for (const tlb of this.tlbs) tlb.setTags({ vpid: 1, pcid: 3, root: 0x1000, ...tags });
  }

  fill(cpu: number, page = PAGE): void {
    const { linear } = this.tlbs[cpu];
    const slot = linear.insert(translation(page, this.tables.get(page)!));
    this.oracle.filled(cpu, slot, linear.entry(slot)!);
  }

  execute(cpu: number, operation: Invalidation): void {
    invalidate(this.tlbs[cpu], operation);
    this.oracle.invalidated(cpu, operation, this.tlbs[cpu].tags);
  }

  change(page: number, to: Partial<TlbTranslation> | undefined): void {
    if (to === undefined) this.tables.delete(page);
    else this.tables.set(page, to);
    this.oracle.changed({ space: "linear", address: page, bytes: 4096, vpid: 1 });
  }

  use(cpu: number, address = PAGE + 8): string {
    const slot = this.tlbs[cpu].linear.lookupAddress(address);
    return slot < 0 ? "miss" : this.oracle.used(cpu, slot, { address, kind: COMBINED });
  }
}

describe("a shootdown", () => {
  it("may find the other processor on the old page until it is complete", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.fill(1);
    machine.change(PAGE, undefined);
    machine.execute(0, { operation: "INVLPG", address: PAGE });
    assertEquals([machine.use(0), machine.use(1)], ["miss", "legally stale"]);
    machine.execute(1, { operation: "INVLPG", address: PAGE });
    machine.oracle.gone(FREED);
    assertEquals([machine.use(0), machine.use(1)], ["miss", "miss"]);
    assertEquals([machine.oracle.fresh, machine.oracle.legallyStale], [0, 1]);
  });

  it("that skips a processor is reported when that processor uses the page, with the flush that it missed", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.fill(1);
    machine.change(PAGE, undefined);
    machine.execute(0, { operation: "INVLPG", address: PAGE });
    machine.oracle.gone(FREED);
    assertEquals(machine.use(0), "miss");
    const error = assertThrows(() => machine.use(1), StaleTranslation) as StaleTranslation;
    assertEquals(
      error.message,
      "Cannot use the cached translation of 0x5008 (VPID 1, PCID 3, EPT root 0x1000) on CPU 1: the tables map it no " +
        'more; "page freed" was declared, and CPU 1 has executed no INVLPG of 0x5008 with VPID 1 and PCID 3, nor ' +
        "anything wider, before",
    );
    assertEquals([error.blame, error.cpu, error.address, error.entry.pcid], ["software", 1, PAGE + 8, 3]);
    machine.execute(1, error.missed!);
    assertEquals(machine.use(1), "miss");
  });

  it("with a flush that does not reach the entry is reported: INVPCID leaves global pages", () => {
    const machine = new Machine();
    machine.tables.set(PAGE, { global: true });
    machine.fill(0);
    machine.change(PAGE, { global: true, physical: 0x9000 });
    machine.execute(0, { operation: "INVPCID type 1", pcid: 3 });
    machine.execute(0, { operation: "MOV to CR3", pcid: 3 });
    assertEquals(machine.use(0), "legally stale");
    machine.oracle.gone({ ...FREED, reason: "page reused" });
    const error = assertThrows(() => machine.use(0), StaleTranslation) as StaleTranslation;
    assert(
      error.message.includes("global) on CPU 0: the tables map it to 0x9008, not to 0x100008"),
      error.message,
    );
  });

  it("before the tables change is none", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.execute(0, { operation: "INVLPG", address: PAGE });
    machine.fill(0);
    machine.change(PAGE, undefined);
    machine.oracle.gone(FREED);
    assertThrows(() => machine.use(0), StaleTranslation);
  });

  it("says nothing of what changes after it", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.oracle.gone(FREED);
    machine.change(PAGE, { writable: false });
    assertEquals(machine.use(0), "legally stale");
  });

  it("says nothing of other processors where it is about one: an ASID is another vCPU's there", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.fill(1);
    machine.change(PAGE, { physical: 0x9_9000 });
    machine.oracle.gone({ ...FREED, cpu: 0 });
    assertEquals(machine.use(1), "legally stale");
    assertThrows(() => machine.use(0), StaleTranslation);
  });

  it("says nothing of other pages, PCIDs and VPIDs", () => {
    for (const other of [{ address: PAGE + 4096 }, { pcid: 4 }, { vpid: 2 }, { root: 0x2000 }]) {
      const machine = new Machine();
      machine.fill(0);
      machine.change(PAGE, undefined);
      machine.oracle.gone({ ...FREED, ...other });
      assertEquals(machine.use(0), "legally stale");
    }
  });
});

describe("a large page", () => {
  it("is old as a whole where a part of it changes", () => {
    const machine = new Machine();
    machine.tables.set(0, { shift: 21, physical: 0 });
    machine.fill(0, 0);
    machine.tables.set(0, { shift: 21, physical: 0x20_0000 });
    machine.oracle.changed(FREED);
    machine.oracle.gone(FREED);
    assertThrows(() => machine.use(0), StaleTranslation, "the tables map it to 0x205008, not to 0x5008");
  });

  it("that EPT maps by small ones has to go by INVLPG of any of its addresses", () => {
    const machine = new Machine();
    machine.tables.set(PAGE, { span: 21 });
    machine.fill(0);
    machine.change(PAGE, undefined);
    machine.oracle.invalidated(0, { operation: "INVLPG", address: 0x20_0000 }, machine.tlbs[0].tags);
    assertEquals(machine.use(0), "legally stale");
    machine.oracle.invalidated(0, { operation: "INVLPG", address: 0x1f_f000 }, machine.tlbs[0].tags);
    assertThrows(() => machine.use(0), StaleTranslation, "CPU 0 has executed INVLPG since it was cached");
  });
});

describe("rights", () => {
  it("that were taken away must be gone once software relies on it", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.change(PAGE, { writable: false });
    assertEquals(machine.use(0), "legally stale");
    machine.oracle.gone({ ...FREED, reason: "write access removed" });
    assertThrows(() => machine.use(0), StaleTranslation, "on CPU 0: the tables do not allow writes; ");
  });

  it("that were granted may be missing as long as it takes", () => {
    const machine = new Machine();
    machine.tables.set(PAGE, { writable: false });
    machine.fill(0);
    machine.change(PAGE, { writable: true });
    machine.oracle.gone({ ...FREED, reason: "write access granted" });
    assertEquals(machine.use(0), "legally stale");
  });

  it("do not include accessed and dirty flags, nor the page's size", () => {
    const machine = new Machine();
    machine.tables.set(PAGE, { dirty: false });
    machine.fill(0);
    machine.change(PAGE, { dirty: true });
    assertEquals(machine.use(0), "fresh");
    // 2 MiB around it at the same place: the address translates as before.
    machine.tables.set(PAGE, { shift: 21, physical: 0x10_0000 - PAGE });
    assertEquals(machine.use(0), "fresh");
  });
});

describe("a processor that keeps what it must drop", () => {
  it("is a failure of the simulator, with or without a declaration", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.change(PAGE, undefined);
    machine.oracle.invalidated(0, { operation: "INVVPID type 1", vpid: 1 }, {
      vpid: 0,
      pcid: 0,
      root: NO_EPT,
    });
    machine.oracle.gone(FREED);
    const error = assertThrows(
      () => machine.use(0),
      StaleTranslation,
      "on CPU 0: the tables map it no more; CPU 0 has executed INVVPID type 1 since it was cached, which drops it",
    ) as StaleTranslation;
    assertEquals([error.blame, error.missed], ["simulator", undefined]);
  });

  it("is none where another processor executed it, or another tag was meant", () => {
    const machine = new Machine();
    machine.fill(0);
    machine.change(PAGE, undefined);
    machine.oracle.invalidated(1, { operation: "INVLPG", address: PAGE }, machine.tlbs[1].tags);
    machine.oracle.invalidated(0, { operation: "INVVPID type 1", vpid: 2 }, machine.tlbs[0].tags);
    assertEquals(machine.use(0), "legally stale");
  });
});

describe("a hypervisor", () => {
  const unmap: TranslationRange = { space: "guest-physical", address: 0x10_0000, bytes: 4096, root: 0x1000 };
  const host = {
    guest: 0x10_0000,
    physical: 0x10_0000,
    readable: true,
    writable: true,
    executable: true,
    dirty: true,
  };

  it("has to drop combined and guest-physical mappings of a page that it takes away", () => {
    const machine = new Machine();
    machine.tables.set(PAGE, { host });
    machine.fill(0);
    const [tlb] = machine.tlbs;
    const slot = tlb.insertHostPage({ ...host, shift: 12 });
    machine.oracle.filled(0, slot, tlb.guestPhysical.entry(slot)!);
    machine.tables.delete(PAGE);
    machine.oracle.changed(unmap);
    // INVVPID drops the combined mapping, not the guest-physical one.
    machine.execute(0, { operation: "INVVPID type 1", vpid: 1 });
    machine.oracle.gone({ ...unmap, reason: "page swapped out" });
    assertEquals(machine.use(0), "miss");
    const error = assertThrows(
      () => machine.oracle.used(0, slot, { address: 0x10_0008, kind: GUEST_PHYSICAL }),
      StaleTranslation,
      "guest-physical 0x100008 (EPT root 0x1000) on CPU 0",
    ) as StaleTranslation;
    assertEquals(error.missed, { operation: "INVEPT type 1", root: 0x1000 });
  });

  it("is told of combined mappings that it left", () => {
    const machine = new Machine();
    machine.tables.set(PAGE, { host });
    machine.fill(0);
    machine.tables.set(PAGE, { host: { ...host, writable: false } });
    machine.oracle.changed(unmap);
    machine.oracle.gone({ ...unmap, reason: "dirty log cleared" });
    const error = assertThrows(
      () => machine.use(0),
      StaleTranslation,
      "writes by the host's tables",
    ) as StaleTranslation;
    assertEquals(error.missed, { operation: "INVEPT type 1", root: 0x1000 });
  });
});

it("The oracle judges no slot that it was not told of", () => {
  const machine = new Machine();
  machine.tlbs[0].linear.insert(translation(PAGE));
  assertThrows(
    () => machine.use(0),
    Error,
    "Cannot judge slot 60 of CPU 0: the oracle was not told that it was filled",
  );
});
