import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { ipiToSleepers, WAKE_VECTOR } from "../../guest/examples/avic_kick.ts";
import {
  IPI_VECTOR,
  ipiRoundTrip,
  type RoundTripOptions,
  type RoundTripTiming,
  TARGET,
} from "../../guest/examples/ipiv.ts";
import type { ApicName } from "../../guest/mod.ts";
import { Machine, TP, type Vm, type VmOptions } from "../../host/mod.ts";

const RING = 1 << 14;

describe("the IPI round trip", () => {
  interface Measured {
    readonly vm: Vm;
    /** Which IPIs were sent while it was measured: ICR and destination. */
    readonly sent: readonly (readonly [number, number])[];
    readonly timing: RoundTripTiming;
  }

  /** Measures, until the sender is done. */
  function measured(options: Partial<RoundTripOptions> = {}, vmOptions: VmOptions = {}): Measured {
    const vm = new Machine({ limits: { steps: 1e7 } }).createVm({
      vcpus: options.cpus ?? 2,
      trace: RING,
      ...vmOptions,
    });
    let from = 0;
    let timing: RoundTripTiming | undefined;
    const kernel = ipiRoundTrip({
      cpus: 2,
      times: 10,
      ...options,
      begin: () => void (from = [...vm.tracer.records()].length),
      end: (result) => {
        timing = result;
        vm.engine.stop();
      },
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals(vm.machine.run().end, "stopped");
    const sent = [...vm.tracer.records()].slice(from).filter(({ event }) => event === TP.kvm_apic_ipi)
      .map(({ args }) => [args[0], args[1]] as const);
    return { vm, sent, timing: timing! };
  }

  for (const apic of ["xapic", "x2apic-physical"] as const) {
    it(`sends what kvm-unit-tests sends: a fixed interrupt, asserted, to one physical ID (${apic})`, () => {
      const { sent } = measured({ apic });
      assertEquals(sent, Array.from({ length: 10 }, () => [0x4020, TARGET]));
    });

    it(`has the target call the function before it lets the sender go on, and ends each interrupt (${apic})`, () => {
      for (const bits of [64, 32] as const) {
        const vm = new Machine({ limits: { steps: 1e7 } }).createVm({ vcpus: 2 });
        let ended = false;
        const kernel = ipiRoundTrip({
          cpus: 2,
          apic,
          bits,
          times: 3,
          end: () => void (ended = true),
        });
        vm.load(kernel.text);
        vm.start(kernel.entry, bits === 64 ? "64-bit" : "32-bit");
        vm.machine.run(1e8); // The target never ends.
        assertEquals(ended, true);
        const { lapic } = vm.vcpus[TARGET];
        assertEquals([lapic.highestIrr(), lapic.highestIsr()], [-1, -1]);
        // The measured ones, and those before them.
        assertEquals(vm.counters().kvm_inj_virq, 3 + 4);
      }
    });
  }

  it("keeps the target out of HLT, and others in it", () => {
    const { vm } = measured({ cpus: 4 });
    const halts = vm.vcpus.map(({ stats }) => stats.halt_exits);
    assertEquals([halts[0], halts[TARGET], halts[2] > 0, halts[3] > 0], [0, 0, true, true]);
  });

  it("uses no paravirtual feature, whatever the host offers", () => {
    const { vm } = measured({}, { hints: [] });
    assertEquals(vm.vcpus.map(({ pvEoi }) => pvEoi.enabled), [false, false]);
    assertEquals(vm.counters().kvm_hypercall, undefined);
  });

  it("times each round trip, and all of them", () => {
    const { timing } = measured({ times: 20 });
    assertEquals(0 < timing.sum && timing.sum < timing.total, true);
    const one = measured({ times: 1 }).timing;
    assertEquals(timing.sum, 20 * one.sum); // Nothing is left of one when the next begins.
  });

  it("uses the first vector that is not an exception's", () => assertEquals(IPI_VECTOR, 0x20));

  it("needs a target, and something to measure", () => {
    assertThrows(
      () => ipiRoundTrip({ cpus: 1, times: 1 }),
      RangeError,
      "Cannot run the IPI round trip: it needs at least 2 processors",
    );
    for (const times of [0, -1, 1.5, NaN]) {
      assertThrows(
        () => ipiRoundTrip({ cpus: 2, times }),
        RangeError,
        `Cannot run the IPI round trip ${times} times: allowed are whole numbers from 1`,
      );
    }
  });
});

describe("IPIs to processors that sleep", () => {
  /** How often each processor was woken. */
  function woken(apic: ApicName, times: number, vm: Vm): number[] {
    const kernel = ipiToSleepers({ cpus: vm.vcpus.length, apic, times });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    assertEquals(vm.machine.run().end, "finished");
    return vm.vcpus.map((_, n) => vm.memory.word(kernel.irqCounter(n, WAKE_VECTOR)));
  }

  for (const apic of ["xapic", "x2apic-physical", "x2apic-cluster"] as const) {
    it(`go to one after the other, and each is taken (${apic})`, () => {
      for (const backend of ["vmx", "svm"] as const) {
        const vm = new Machine().createVm({ backend, vcpus: 4 });
        // One to each before it is measured.
        assertEquals(woken(apic, 7, vm), [0, 1 + 3, 1 + 2, 1 + 2]);
      }
    });

    it(`find their targets asleep, off their CPUs, if nobody polls for them (${apic})`, () => {
      const vm = new Machine().createVm({
        backend: "svm",
        acceleration: "x2avic",
        vcpus: 3,
        haltPollNs: 0,
      });
      assertEquals(woken(apic, 10, vm), [0, 6, 6]);
      // INIT and a start-up IPI wake each as well.
      assertEquals(vm.vcpus.slice(1).map(({ stats }) => stats.halt_wakeup), [2 + 6, 2 + 6]);
    });
  }

  it("tell how long sending took", () => {
    const vm = new Machine().createVm({ vcpus: 2 });
    let sending = 0;
    let began = 0;
    const kernel = ipiToSleepers({
      cpus: 2,
      times: 5,
      begin: () => began++,
      end: (cycles) => void (sending = cycles),
    });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.machine.run();
    assertEquals(began, 1);
    // Each at least an exit and an entry, and far less than the time in which the target falls asleep again.
    assertEquals(sending > 5 * (vm.cost.vmexit + vm.cost.reentry) && sending < 5 * 50_000, true);
  });

  it("need somebody who sleeps, and something to measure", () => {
    assertThrows(
      () => ipiToSleepers({ cpus: 1, times: 1 }),
      RangeError,
      "Cannot wake processors: it takes at least 2",
    );
    for (const times of [0, 0.5, Infinity]) {
      assertThrows(
        () => ipiToSleepers({ cpus: 2, times }),
        RangeError,
        `Cannot wake processors ${times} times: allowed are whole numbers from 1`,
      );
    }
  });
});
