import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { BACKENDS } from "../../../../host/mod.ts";
import { StaleTranslation } from "../../../../host/mmu/mod.ts";
import type { PagingRig } from "../../../support/paging.ts";
import { tells } from "../../../support/paging.ts";
import {
  doFlush,
  type Entry,
  everywhere,
  flush,
  frameOf,
  gone,
  invlpg,
  pageOf,
  PAGES,
  read,
  rigOf,
  set,
  setEntry,
  TURN,
  turn,
} from "../../../support/stale_guests.ts";

/** A translation that a processor may have: what it was made of, and what was said of it. */
interface Cached {
  readonly entry: Entry;
  changed: boolean;
  gone: boolean;
}

/** Whether the use of `cached` is one that software has ruled out: it leads elsewhere now, or allows what was taken away. */
function ruledOut({ entry, gone }: Cached, now: Entry): boolean {
  if (!gone || entry === "absent") return false;
  if (now === "absent") return true;
  return entry.frame !== now.frame || (entry.writable && !now.writable);
}

/**
 * One act after the other: what each read brings, and whether it is one that the oracle must blame software for. Written
 * against SDM 3A 4.10, with a TLB that loses nothing by itself.
 */
class Reference {
  readonly #now: Entry[] = Array.from({ length: PAGES }, (_, frame) => ({ frame, writable: true }));
  readonly #tlb: (Map<number, Cached>)[];
  stale = 0;

  constructor(vcpus: number) {
    this.#tlb = Array.from({ length: vcpus }, () => new Map());
  }

  /** The frame that a read finds, "absent", or "blamed". */
  read(vcpu: number, page: number): number | "absent" | "blamed" {
    const tlb = this.#tlb[vcpu];
    const now = this.#now[page];
    const cached = tlb.get(page);
    if (cached !== undefined && cached.entry !== "absent") {
      if (ruledOut(cached, now)) return "blamed";
      if (now === "absent" || now.frame !== cached.entry.frame) this.stale++;
      return cached.entry.frame;
    }
    if (now === "absent") return "absent";
    tlb.set(page, { entry: now, changed: false, gone: false });
    return now.frame;
  }

  set(page: number, to: Entry): void {
    this.#now[page] = to;
    for (const tlb of this.#tlb) {
      const cached = tlb.get(page);
      if (cached !== undefined) cached.changed = true;
    }
  }

  gone(page: number): void {
    for (const tlb of this.#tlb) {
      const cached = tlb.get(page);
      if (cached?.changed) cached.gone = true;
    }
  }

  flush(vcpu: number, page?: number): void {
    if (page === undefined) this.#tlb[vcpu].clear();
    else this.#tlb[vcpu].delete(page);
  }
}

for (const backend of BACKENDS) {
  describe(`the staleness oracle over a guest (${backend})`, () => {
    /** vCPU 0 unmaps a page that vCPU 1 has cached, and declares it gone; vCPU 1 flushes before, or does not. */
    function shootdown(flushes: boolean): { run: () => void; rig: PagingRig } {
      const rig = rigOf(backend, 2);
      const run = everywhere(rig, 2, function* (cpu, self) {
        if (self === 0) {
          yield* turn(cpu, 1);
          yield* setEntry(cpu, rig, 0, "absent");
          rig.words.changed(0);
          yield cpu.invlpg(pageOf(0));
          yield cpu.store32(TURN, 2);
          yield* turn(cpu, 3);
          rig.words.gone(0);
          yield cpu.store32(TURN, 4);
        } else {
          yield cpu.load32(pageOf(0));
          yield cpu.store32(TURN, 1);
          yield* turn(cpu, 2);
          assertEquals(yield* tells(() => cpu.load32(pageOf(0))), "ok", "legally stale until it flushes");
          if (flushes) yield cpu.invlpg(pageOf(0));
          yield cpu.store32(TURN, 3);
          yield* turn(cpu, 4);
          assertEquals(yield* tells(() => cpu.load32(pageOf(0))), "#PF(0)");
        }
      });
      return { run, rig };
    }

    it("blames software that declares a page gone while another processor has it, and names the flush", () => {
      const { run } = shootdown(false);
      const error = assertThrows(run, StaleTranslation);
      assertEquals([error.blame, error.address, error.missed?.operation], ["software", pageOf(0), "INVLPG"]);
      assertStringIncludes(error.message, `"page freed" was declared`);
    });

    it("blames nobody where that processor has flushed", () => {
      const { run, rig } = shootdown(true);
      run();
      const { legallyStale, fresh } = rig.vm.machine.staleness!;
      assertEquals(legallyStale, 1);
      assert(fresh > 0);
    });

    it("agrees, act by act, with a reference that knows what each processor may have and what was declared", () => {
      const seen = { blamed: 0, stale: 0, absent: 0 };
      const acts = fc.array(
        fc.tuple(
          fc.nat(2),
          fc.oneof(
            { weight: 6, arbitrary: read },
            { weight: 3, arbitrary: set },
            { weight: 1, arbitrary: fc.oneof(invlpg, flush) },
            { weight: 2, arbitrary: gone },
          ),
        ),
        { minLength: 15, maxLength: 40 },
      );
      fc.assert(
        fc.property(fc.integer({ min: 1, max: 3 }), acts, (vcpus, script) => {
          const rig = rigOf(backend, vcpus);
          for (let frame = 0; frame < 4; frame++) rig.vm.memory.setWord(frameOf(frame), 100 + frame);
          const reference = new Reference(vcpus);
          let blamed: readonly [vcpu: number, page: number] | undefined;
          const run = everywhere(rig, vcpus, function* (cpu, self) {
            for (const [i, [who, act]] of script.entries()) {
              if (who % vcpus !== self) continue;
              yield* turn(cpu, i);
              if (act.act === "read") {
                const expected = reference.read(self, act.page);
                if (expected === "blamed") blamed = [self, act.page];
                const told = yield* tells(() => cpu.load32(pageOf(act.page)));
                assertEquals(told === "ok" ? cpu.eax - 100 : "absent", expected, `act ${i}`);
                if (expected === "absent") seen.absent++;
              } else if (act.act === "set") {
                yield* setEntry(cpu, rig, act.page, act.to);
                rig.words.changed(act.page);
                reference.set(act.page, act.to);
              } else if (act.act === "gone") {
                rig.words.gone(act.page);
                reference.gone(act.page);
              } else {
                yield* doFlush(cpu, rig, act);
                reference.flush(self, act.act === "invlpg" ? act.page : undefined);
              }
              yield cpu.store32(TURN, i + 1);
            }
          });
          try {
            run();
            assertEquals(blamed, undefined, "the oracle has missed it");
          } catch (error) {
            if (!(error instanceof StaleTranslation)) throw error;
            assertEquals([error.blame, error.address], ["software", pageOf(blamed?.[1] ?? -1)]);
            seen.blamed++;
          }
          seen.stale += reference.stale;
        }),
        { numRuns: 150, seed: 5 },
      );
      for (const [name, times] of Object.entries(seen)) assert(times > 10, `${name}: ${times}`);
    });
  });
}
