import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type CachedTranslation,
  COMBINED,
  invalidate,
  type Invalidation,
  LINEAR,
  NO_EPT,
  type ShootdownComplete,
  StalenessOracle,
  StaleTranslation,
  Tlb,
  type TlbTags,
  type TranslationRange,
} from "../../../host/mmu/mod.ts";
import { mustGo, operations, ROOMY, samePage, translation, VMX_OPERATIONS } from "./tlb_models.ts";

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
