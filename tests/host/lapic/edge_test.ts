import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  acceptEdge,
  acceptInterrupt,
  deliverEdge,
  deliverEdgeToAll,
  deliverFast,
  deliverSlow,
  InterruptMessage,
  isEdge,
  isEdgeToAll,
} from "../../../host/lapic/mod.ts";
import type { Vm } from "../../../host/mod.ts";
import { APIC_MODES, type ApicMode, setUp, still, vectors } from "../../support/apic.ts";

const LOGICAL = 1 << 11;
const ASSERT = 1 << 14;

/** Three APICs in one mode, the last one's off in software, with an older level-triggered vector in their TMRs. */
function machine(mode: ApicMode): Vm {
  const vm = still({ vcpuIds: [0, 1, 0x12, 0x13], trace: 256 });
  for (const { lapic, vcpuId } of vm.vcpus) {
    setUp(lapic, mode, { software: vcpuId !== 0x13, ...(mode === "xapic" && { ldr: 1 << (vcpuId & 3) }) });
    acceptInterrupt(lapic, 0, 0x40, true, true);
  }
  return vm;
}

/** What can be seen of a machine: requests, triggers, what vCPUs are asked for, the sender's time, the trace. */
function seen(vm: Vm): unknown {
  return {
    apics: vm.vcpus.map(({ lapic }) => [vectors(lapic, 0x200), vectors(lapic, 0x180), lapic.highestIrr()]),
    requests: vm.vcpus.map(({ requests }) => requests),
    time: vm.bootstrap.clock,
    counters: vm.counters(),
    trace: vm.tracer.bytes(),
  };
}

describe("the straight way of edge-triggered IPIs", () => {
  it("is for fixed, edge-triggered interrupts: to a destination, or to all", () => {
    const NMI = 4 << 8, BUSY = 1 << 12, LEVEL = 1 << 15, SELF = 1 << 18, ALL = 2 << 18, OTHERS = 3 << 18;
    for (const low of [0, ASSERT, LOGICAL]) {
      assertEquals([low, low | SELF, low | ALL, low | OTHERS].map(isEdge), [true, false, false, false]);
      assertEquals([low, low | SELF, low | ALL, low | OTHERS].map(isEdgeToAll), [false, false, true, true]);
      for (const other of [NMI, BUSY, LEVEL]) {
        assertEquals([isEdge(low | other), isEdgeToAll(low | ALL | other)], [false, false]);
      }
    }
  });

  for (const mode of APIC_MODES) {
    it(`comes to what a message comes to, in ${mode} mode`, () => {
      const bits = fc.integer({ min: 0x10, max: 0xff }).chain((vector) =>
        fc.constantFrom(0, ASSERT, LOGICAL, ASSERT | LOGICAL).map((flags) => vector | flags)
      );
      const destination = fc.oneof(
        fc.integer({ min: 0, max: 0x20 }),
        fc.constantFrom(0xff, 0xffff_ffff, 0x1_0003, 0x1_000c, 0x1f_ffff, 0x8000_0000),
      );
      fc.assert(
        fc.property(bits, destination, (low, to) => {
          const one = machine(mode), other = machine(mode);
          const answer = deliverEdge(one.bootstrap, low, to | 0);
          const message = new InterruptMessage().fromIcr(low, to);
          assertEquals(answer, deliverFast(other, other.bootstrap.lapic, message));
          assertEquals(seen(one), seen(other));
        }),
        { numRuns: 150, seed: 5 },
      );
    });

    it(`reaches all, and all but the sender, as a message does in ${mode} mode`, () => {
      for (const shorthand of [2 << 18, 3 << 18]) {
        const one = machine(mode), other = machine(mode);
        deliverEdgeToAll(one.bootstrap, shorthand | 0x51);
        deliverSlow(other, other.bootstrap.lapic, new InterruptMessage().fromIcr(shorthand | 0x51, 0));
        assertEquals(seen(one), seen(other));
      }
    });
  }

  it("makes a vector edge-triggered that was level-triggered, and is dropped by an APIC that software has off", () => {
    const vm = machine("x2apic");
    const [, on, , off] = vm.vcpus;
    assertEquals([acceptEdge(vm.bootstrap, on.lapic, 0x40), vectors(on.lapic, 0x180)], [1, []]);
    assertEquals([acceptEdge(vm.bootstrap, off.lapic, 0x41), vectors(off.lapic, 0x200)], [0, []]);
  });
});
