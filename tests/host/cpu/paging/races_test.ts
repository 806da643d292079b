import { assert } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { BACKENDS } from "../../../../host/mod.ts";
import { tells, writeProtect } from "../../../support/paging.ts";
import {
  doFlush,
  type Entry,
  everywhere,
  flush,
  inMemory,
  invlpg,
  page,
  pageOf,
  PAGES,
  read,
  rigOf,
  set,
  setEntry,
} from "../../../support/stale_guests.ts";

for (const backend of BACKENDS) {
  describe(`guests whose processors race (${backend})`, () => {
    it("have the oracle blame nobody, and no value of theirs comes through a mapping that is owed a flush", () => {
      let stale = 0;
      const act = fc.oneof(
        { weight: 5, arbitrary: read },
        { weight: 4, arbitrary: fc.record({ act: fc.constant("write" as const), page }) },
        { weight: 3, arbitrary: set },
        { weight: 2, arbitrary: invlpg },
        { weight: 1, arbitrary: flush },
        { weight: 1, arbitrary: fc.record({ act: fc.constant("work" as const), page: fc.nat(3000) }) },
      );
      const scripts = fc.array(fc.array(act, { minLength: 3, maxLength: 25 }), {
        minLength: 1,
        maxLength: 3,
      });
      const pcpus = fc.constantFrom(1, 2, 1024);
      const options = fc.record({ vpid: fc.boolean(), hostHugePages: fc.boolean() });
      const policy = fc.constantFrom("timed" as const, { random: 3 }, { random: 4 });
      fc.assert(
        fc.property(scripts, pcpus, policy, options, (scripts, pcpus, policy, vm) => {
          const vcpus = scripts.length;
          const limits = { steps: 300_000 };
          const rig = rigOf(backend, vcpus, { machine: { pcpus, policy, timeSlice: 3000, limits }, vm });
          // Every entry that a page has had, and those that are being stored; by vCPU, the first that it may have cached.
          const versions: Entry[][] = Array.from(
            { length: PAGES },
            (_, frame) => [{ frame, writable: true }],
          );
          const inFlight: Set<{ readonly to: Entry }>[] = Array.from({ length: PAGES }, () => new Set());
          const since: number[][] = Array.from({ length: vcpus }, () => Array(PAGES).fill(0));
          /** The number of the entry that is in memory now. */
          const present = (page: number) => versions[page].push(inMemory(rig, page)) - 1;
          const may = (page: number, from: number) => [
            ...versions[page].slice(from),
            ...[...inFlight[page]].map(({ to }) => to),
          ];
          // Who has written a value: the frames that it may have gone to.
          const frames = new Map<number, () => Set<number>>([[0, () => new Set([0, 1, 2, 3])]]);
          const allowed = (self: number, page: number, write: boolean, from = since[self][page]) =>
            new Set(
              may(page, from).flatMap((v) => v === "absent" || (write && !v.writable) ? [] : [v.frame]),
            );
          let next = 1;
          const run = everywhere(rig, vcpus, function* (cpu, self) {
            yield* writeProtect(cpu);
            for (const act of scripts[self]) {
              if (act.act === "work") {
                yield cpu.work(act.page);
                continue;
              }
              if (act.act === "set") {
                const store = { to: act.to };
                inFlight[act.page].add(store);
                yield* setEntry(cpu, rig, act.page, act.to);
                inFlight[act.page].delete(store);
                versions[act.page].push(act.to);
              } else if (act.act === "read" || act.act === "write") {
                const write = act.act === "write";
                const value = next++;
                const from = since[self][act.page];
                const before = present(act.page);
                if (write) frames.set(value, () => allowed(self, act.page, true, from));
                const told = yield* tells(() =>
                  write ? cpu.store32(pageOf(act.page), value) : cpu.load32(pageOf(act.page))
                );
                if (told === "ok") {
                  const reached = allowed(self, act.page, write, from);
                  const found = write
                    ? [...reached]
                    : [...frames.get(cpu.eax)!()].filter((f) => reached.has(f));
                  assert(
                    found.length > 0,
                    `vCPU ${self} has ${write ? "written" : cpu.eax} through no mapping`,
                  );
                } else {
                  const absent = may(act.page, from).includes("absent");
                  const readOnly = may(act.page, from).some((v) => v !== "absent" && !v.writable);
                  const codes = write ? [absent && "#PF(2)", readOnly && "#PF(3)"] : [absent && "#PF(0)"];
                  assert(codes.includes(told), told);
                  since[self][act.page] = before; // The fault has dropped it.
                }
              } else {
                const pages = act.act === "invlpg" ? [act.page] : versions.keys();
                const before = [...pages].map((page) => [page, present(page)]);
                yield* doFlush(cpu, rig, act);
                for (const [page, first] of before) since[self][page] = first;
              }
            }
          });
          run();
          stale += rig.vm.machine.staleness!.legallyStale;
        }),
        { numRuns: 120, seed: 9 },
      );
      assert(stale > 20, `legally stale: ${stale}`);
    });
  });
}
