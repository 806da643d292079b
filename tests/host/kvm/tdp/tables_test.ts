import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { LEVEL_PD, LEVEL_PT } from "../../../../abi/mod.ts";
import { BACKENDS, isPresent, Machine, makeSpte, type TdpTables, type Vm } from "../../../../host/mod.ts";
import { hardwareFinds } from "../../../support/tdp.ts";

const PAGE = 4096;
const HUGE = 2 ** 21;
/** Two gigabytes apart at the first page: tables of every level are made. */
const AREAS = [0, 2 ** 30, 2 ** 40];
const FRAMES = 2 ** 42;

/** A virtual machine with an empty root. */
function empty(backend: Vm["backend"]): { vm: Vm; tables: TdpTables } {
  const vm = new Machine().createVm({ backend, memory: 2 ** 21 });
  return { vm, tables: vm.mmu.allocateRoot() };
}

/** Maps a page as a fault does. */
function map(tables: TdpTables, gpa: number, level: number): void {
  let entry = tables.find(gpa, level);
  while (entry.level > level) {
    tables.link(entry);
    entry = tables.find(gpa, level);
  }
  const physical = FRAMES + entry.gpa;
  tables.set(entry, makeSpte(tables.format, { physical, level, hostWritable: true }));
}

type Op = readonly ["map" | "huge" | "zap" | "protect" | "split", page: number, pages: number];

const op: fc.Arbitrary<Op> = fc.tuple(
  fc.constantFrom("map", "huge", "zap", "protect", "split"),
  fc.integer({ min: 0, max: 3 * 1024 - 1 }),
  fc.integer({ min: 1, max: 600 }),
);

for (const backend of BACKENDS) {
  describe(`KVM's tables of the second dimension (${backend})`, () => {
    it("are pages of the host's memory that hardware walks, from the root on", () => {
      const { vm, tables } = empty(backend);
      assertEquals([tables.root.address % PAGE, tables.root.words.length], [0, 1024]);
      assertEquals(hardwareFinds(vm, 0x5000), undefined, "nothing is mapped");
      map(tables, 0x5000, LEVEL_PT);
      assertEquals(hardwareFinds(vm, 0x5678)?.physical, FRAMES + 0x5000);
      assertEquals(hardwareFinds(vm, 0x6000), undefined, "its neighbour");
      assertEquals([hardwareFinds(vm, 0x5000)?.accesses, tables.count], [4, 4], "root and three tables");
    });

    it("do what a list of pages would do, whatever is mapped, taken away, protected and split", () => {
      fc.assert(
        fc.property(fc.array(op, { maxLength: 30 }), (ops) => {
          const { vm, tables } = empty(backend);
          const model = new Map<number, boolean>(); // Page to whether it may be written.
          const large = new Set<number>();
          const address = (page: number): number => AREAS[page >> 10] + (page & 1023) * PAGE;
          for (const [what, page, pages] of ops) {
            const start = address(page);
            const end = start + pages * PAGE;
            const first = Math.floor(page / 512) * 512;
            const covered = [...Array(3 * 1024).keys()].filter((n) =>
              address(n) >= start && address(n) < end
            );
            switch (what) {
              case "map":
                if (large.has(first)) break;
                map(tables, start, LEVEL_PT);
                model.set(page, true);
                break;
              case "huge": {
                const entry = tables.find(address(first), LEVEL_PD);
                if (entry.level === LEVEL_PD && isPresent(entry)) break; // A table, or mapped already.
                map(tables, address(first), LEVEL_PD);
                large.add(first);
                for (let n = first; n < first + 512; n++) model.set(n, true);
                break;
              }
              case "zap":
                tables.zap(start, end);
                for (const n of covered) {
                  const whole = Math.floor(n / 512) * 512;
                  if (large.delete(whole)) { for (let i = whole; i < whole + 512; i++) model.delete(i); }
                  model.delete(n);
                }
                break;
              case "protect":
                tables.writeProtect(start, end);
                for (const n of covered) {
                  const whole = Math.floor(n / 512) * 512;
                  const all = large.has(whole) ? [...Array(512).keys()].map((i) => whole + i) : [n];
                  for (const i of all) if (model.has(i)) model.set(i, false);
                }
                break;
              case "split":
                tables.split(start, end);
                for (const n of covered) large.delete(Math.floor(n / 512) * 512);
            }
          }
          for (let page = 0; page < 3 * 1024; page += 7) {
            const at = address(page);
            const found = hardwareFinds(vm, at);
            assertEquals(found !== undefined, model.has(page), `page ${page}`);
            if (found === undefined) continue;
            assertEquals(found.physical + at - found.guest, FRAMES + at);
            assertEquals(hardwareFinds(vm, at, true) !== undefined, model.get(page), `page ${page} written`);
            assertEquals(found.shift === 21, large.has(Math.floor(page / 512) * 512));
          }
        }),
        { numRuns: 60 },
      );
    });

    it("change nothing outside a range that is zapped, split or protected", () => {
      const { vm, tables } = empty(backend);
      for (const gpa of [0, HUGE, 2 * HUGE]) map(tables, gpa, LEVEL_PD);
      tables.split(HUGE, HUGE + PAGE);
      tables.writeProtect(HUGE + PAGE, HUGE + 2 * PAGE);
      tables.zap(HUGE + 2 * PAGE, HUGE + 3 * PAGE);
      assertEquals([0, HUGE, 2 * HUGE].map((gpa) => hardwareFinds(vm, gpa, true)?.shift), [21, 12, 21]);
      assertEquals(hardwareFinds(vm, HUGE + PAGE)?.writable, false);
      assertEquals(hardwareFinds(vm, HUGE + 2 * PAGE), undefined);
      assertEquals(hardwareFinds(vm, HUGE + 3 * PAGE)?.writable, true);
    });

    it("give their pages back when they are zapped as a whole, and the next root may be one of them", () => {
      const { vm, tables } = empty(backend);
      for (const area of AREAS) map(tables, area, LEVEL_PT);
      // In each area a PT; two of them share a PDPT.
      assertEquals(tables.count, 1 + 2 + 3 + 3);
      vm.mmu.invalidateRoot();
      tables.zapAll();
      assertEquals([tables.count, tables.root.words.every((word) => word === 0)], [1, true]);
      tables.put();
      assertEquals(vm.mmu.allocateRoot().root.address, tables.root.address, "the page freed last");
      assertEquals(hardwareFinds(vm, 0), undefined);
    });
  });
}
