import { assert, assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type CachedTranslation,
  COMBINED,
  GUEST_PHYSICAL,
  invalidate,
  type Invalidation,
  LINEAR,
  NO_EPT,
  type ShootdownComplete,
  StalenessOracle,
  StaleTranslation,
  Tlb,
  type TlbTags,
  type TlbTranslation,
  type TranslationRange,
} from "../../../host/mmu/mod.ts";
import { mustGo, operations, ROOMY, samePage, translation, VMX_OPERATIONS } from "./tlb_models.ts";

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

/** What happened, for a judge that reads all of it at each hit. */
type Event =
  | { readonly what: "changed"; readonly range: TranslationRange }
  | { readonly what: "gone"; readonly range: ShootdownComplete }
  | {
    readonly what: "invalidated";
    readonly cpu: number;
    readonly operation: Invalidation;
    readonly tags: TlbTags;
  };

describe("the oracle, against a judge that reads the whole history", () => {
  const PAGES = [0x5000, 0x6000, -0x1000] as const;
  const cpu = fc.nat(1);
  const page = fc.constantFrom(...PAGES);
  const pcid = fc.constantFrom(1, 2);
  const tag = { cpu, pcid, vpid: fc.constantFrom(0, 1), root: fc.constantFrom(NO_EPT, 0x1000) };
  const range = { page, pages: fc.constantFrom(1, 2), vpid: fc.option(fc.nat(1)), pcid: fc.option(pcid) };
  const flushes = operations(VMX_OPERATIONS).chain((operation) =>
    fc.record({ page, vpid: fc.nat(1), pcid }).map(({ page, ...tags }) => ({
      ...operation,
      ...tags,
      address: page,
    }))
  );
  const step = fc.oneof(
    fc.record({ do: fc.constant("tags" as const), ...tag }),
    { arbitrary: fc.record({ do: fc.constant("use" as const), cpu, page }), weight: 8 },
    fc.record({
      do: fc.constant("change" as const),
      page,
      frame: fc.option(fc.nat(2)),
      writable: fc.boolean(),
    }),
    fc.record({ do: fc.constant("gone" as const), ...range }),
    fc.record({ do: fc.constant("flush" as const), cpu, operation: flushes, broken: fc.boolean() }),
  );
  const seen = new Map<string, number>();

  it("agrees on every hit", () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 10, maxLength: 80 }), (steps) => {
        const tables = new Map<number, { frame: number; writable: boolean } | undefined>(
          PAGES.map((at) => [at, { frame: 0, writable: true }]),
        );
        const read = (at: number) => {
          const found = tables.get(at);
          return found && translation(at, {
            physical: found.frame * 4096,
            writable: found.writable,
            global: at < 0,
          });
        };
        const oracle = new StalenessOracle((_, entry) => read(entry.linear));
        const tlbs = [new Tlb("vmx", ROOMY), new Tlb("vmx", ROOMY)];
        const history: Event[] = [];
        const filledAt = [new Map<number, number>(), new Map<number, number>()];

        const judge = (cpu: number, slot: number, entry: CachedTranslation): string => {
          const now = read(entry.linear);
          if (now !== undefined && now.physical === entry.physical && now.writable === entry.writable) {
            return "fresh";
          }
          const since = history.slice(filledAt[cpu].get(slot)!);
          if (
            since.some((e) => e.what === "invalidated" && e.cpu === cpu && mustGo(entry, e.operation, e.tags))
          ) {
            return "simulator";
          }
          const meant = (range: TranslationRange) =>
            entry.linear >= range.address && entry.linear < range.address + range.bytes &&
            (range.vpid === undefined || range.vpid === entry.vpid) &&
            (range.pcid === undefined || range.pcid === entry.pcid || entry.global);
          const changed = since.findIndex((e) => e.what === "changed" && meant(e.range));
          const declared = changed >= 0 &&
            since.slice(changed).some((e) => e.what === "gone" && meant(e.range));
          const gained = now !== undefined && now.physical === entry.physical && now.writable;
          return declared && !gained ? "software" : "legally stale";
        };

        for (const now of steps) {
          if (now.do === "tags") {
            tlbs[now.cpu].setTags(now);
          } else if (now.do === "change") {
            tables.set(
              now.page,
              now.frame === null ? undefined : { frame: now.frame, writable: now.writable },
            );
            const range: TranslationRange = { space: "linear", address: now.page, bytes: 4096 };
            oracle.changed(range);
            history.push({ what: "changed", range });
          } else if (now.do === "gone") {
            const range: ShootdownComplete = {
              space: "linear",
              address: now.page,
              bytes: now.pages * 4096,
              reason: "page freed",
              ...(now.vpid !== null && { vpid: now.vpid }),
              ...(now.pcid !== null && { pcid: now.pcid }),
            };
            oracle.gone(range);
            history.push({ what: "gone", range });
          } else if (now.do === "flush") {
            const { cpu, operation, broken } = now;
            const { tags } = tlbs[cpu];
            if (!broken) invalidate(tlbs[cpu], operation);
            oracle.invalidated(cpu, operation, tags);
            history.push({ what: "invalidated", cpu, operation, tags });
          } else {
            const { cpu, page } = now;
            const { linear, tags } = tlbs[cpu];
            const kind = tags.root === NO_EPT ? LINEAR : COMBINED;
            const slot = linear.lookupAddress(page);
            if (slot < 0) {
              const found = read(page);
              if (found === undefined) continue;
              const filled = linear.insert(found);
              oracle.filled(cpu, filled, linear.entry(filled)!);
              filledAt[cpu].set(filled, history.length);
              continue;
            }
            const entry = linear.entry(slot)!;
            assert(samePage(entry.linear, page, 12));
            const expected = judge(cpu, slot, entry);
            seen.set(expected, (seen.get(expected) ?? 0) + 1);
            let verdict: string;
            try {
              verdict = oracle.used(cpu, slot, { address: page, kind });
            } catch (error) {
              if (!(error instanceof StaleTranslation)) throw error;
              verdict = error.blame;
              if (error.missed !== undefined) {
                assert(mustGo(entry, error.missed, { ...entry, ...error.missed }));
              }
            }
            assertEquals(verdict, expected);
          }
        }
      }),
      { numRuns: 1500, seed: 4 },
    );
  });

  it("has met each verdict often enough to mean something", () => {
    for (const verdict of ["fresh", "legally stale", "simulator", "software"]) {
      assert((seen.get(verdict) ?? 0) > 50, `${verdict}: ${seen.get(verdict)}`);
    }
  });
});
