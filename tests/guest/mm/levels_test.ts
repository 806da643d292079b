import { assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { tlbShootdown } from "../../../guest/examples/tlb_shootdown.ts";
import type { ApicName, TimerMode } from "../../../guest/mod.ts";
import { BACKENDS, Machine } from "../../../host/mod.ts";
import { LEVELS, nameOf } from "../../support/levels.ts";

const SETUPS: readonly (readonly [ApicName, TimerMode])[] = [
  ["xapic", "one-shot"],
  ["x2apic-physical", "tsc-deadline"],
  ["x2apic-cluster", "one-shot"],
];

describe("threads whose pages come and go read what is theirs", () => {
  for (const level of LEVELS) {
    it(`whatever delivers their interrupts: ${nameOf(level)}`, () => {
      for (const [apic, timer] of SETUPS) {
        let wrong = -1;
        const machine = new Machine({ limits: { steps: 1e7, cycles: 1e12 } });
        const vm = machine.createVm({ ...level, vcpus: 4, x2apic: apic !== "xapic" });
        const over = (count: number): void => {
          wrong = count;
        };
        const kernel = tlbShootdown({ cpus: 4, times: 3, pages: 2, apic, sched: { timer }, over });
        vm.load(kernel.text);
        vm.start(kernel.entry);
        assertEquals(machine.run().end, "finished");
        assertEquals([wrong, kernel.log], [0, []], `${apic}, ${timer}`);
      }
    });
  }

  for (const backend of BACKENDS) {
    it(`on processors that share CPUs, and their TLBs, and move between them: ${backend}`, () => {
      for (const pcpus of [1, 3]) {
        let wrong = -1;
        const machine = new Machine({ pcpus, staleness: true, limits: { steps: 1e7, cycles: 1e12 } });
        const vm = machine.createVm({ backend, vcpus: 4 });
        const oracle = machine.staleness!;
        const kernel = tlbShootdown({
          cpus: 4,
          times: 2,
          pages: 2,
          paging: {
            witness: {
              changed: (range) => oracle.changed({ space: "linear", ...range }),
              gone: (range, reason) => oracle.gone({ space: "linear", ...range, reason }),
            },
          },
          over: (count) => wrong = count,
        });
        vm.load(kernel.text);
        vm.start(kernel.entry);
        assertEquals(machine.run().end, "finished");
        assertEquals([wrong, kernel.log], [0, []], `${pcpus} CPUs`);
        assertGreater(oracle.fresh, 0);
      }
    });
  }
});
