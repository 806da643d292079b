import { assertEquals, assertGreater, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  encodeMsi,
  IA32_TSC_DEADLINE,
  MSR_KVM_POLL_CONTROL,
  X2APIC_EOI,
  X2APIC_ICR,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { BACKENDS, type HostSemantics, MpState, Timer, type Vm, type VmOptions } from "../../../host/mod.ts";
import { type Asking, enter } from "../../support/apic.ts";
import { chain, eventsOf, mark, tracingRig } from "../../support/events.ts";
import { DATA, type Rig, startAps } from "../../support/guests.ts";

const VECTOR = 0x41;
const NMI = 2;
const TSC_MHZ = 2500;

/** A rig whose handlers count: interrupts at DATA, NMIs at DATA + 4. */
function countingRig(options: VmOptions): Rig {
  return tracingRig({ vm: options }).on(VECTOR, function* (cpu) {
    yield cpu.xadd32(DATA, 1);
    yield cpu.wrmsr(X2APIC_EOI, 0);
  }).on(NMI, function* (cpu) {
    yield cpu.xadd32(DATA + 4, 1);
  });
}

/** Has a device do something at a point in time. */
function at(vm: Vm, cycles: number, act: () => void): void {
  new Timer(vm.engine, "device", act).arm(cycles);
}

/** Halts for so many nanoseconds: until a TSC deadline. */
function* haltFor(cpu: X86Cpu, ns: number): Asking<void> {
  yield cpu.rdtsc();
  const deadline = cpu.edx * 2 ** 32 + cpu.eax + Math.ceil(ns * TSC_MHZ / 1000);
  yield cpu.wrmsr(IA32_TSC_DEADLINE, deadline >>> 0, Math.floor(deadline / 2 ** 32));
  yield cpu.sti();
  yield cpu.hlt();
  yield cpu.cli();
}

for (const backend of BACKENDS) {
  describe(`HLT (${backend})`, () => {
    it("with interrupts enabled waits for one, whose handler runs before what follows", () => {
      const rig = countingRig({ backend });
      at(rig.vm, 1_000_000, () => rig.vm.signalMsi(encodeMsi({ vector: VECTOR }, "xapic")));
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        const from = mark(rig.vm);
        yield cpu.hlt();
        assertEquals(rig.word(DATA), 1);
        assertEquals(chain(rig.vm, from).slice(0, 6), [
          "kvm_exit",
          "kvm_msi_set_irq",
          "kvm_apic_accept_irq",
          "kvm_vcpu_wakeup",
          "kvm_inj_virq",
          "kvm_entry",
        ]);
        const [{ args: [ns, waited, valid] }] = eventsOf(rig.vm, "kvm_vcpu_wakeup", from);
        assertEquals([waited, valid], [1, 1]);
        assertGreater(ns, 300_000); // 1,000,000 cycles at 2.5 GHz, less what came before.
        assertLess(ns, 410_000);
        yield cpu.cli();
      });
      const { halt_wakeup, halt_attempted_poll } = rig.vm.bootstrap.stats;
      assertEquals([halt_wakeup, halt_attempted_poll], [1, 0]);
    });

    it("with interrupts disabled sleeps through them, and ends with an NMI", () => {
      const rig = countingRig({ backend });
      at(rig.vm, 1_000_000, () => rig.vm.signalMsi(encodeMsi({ vector: VECTOR }, "xapic")));
      at(rig.vm, 2_000_000, () => {
        assertEquals(rig.vm.bootstrap.mpState, MpState.Halted);
        rig.vm.signalMsi(encodeMsi({ deliveryMode: 0x400 }, "xapic"));
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.hlt();
        assertEquals([rig.word(DATA), rig.word(DATA + 4)], [0, 1]);
        yield cpu.sti();
        yield cpu.pause();
        assertEquals(rig.word(DATA), 1, "the interrupt was kept");
        yield cpu.cli();
      });
    });

    it("that nothing will ever end is the end of the run", () => {
      assertEquals(
        countingRig({ backend }).run(function* (cpu) {
          yield cpu.hlt();
        }).end,
        "halted",
      );
    });

    it("is not ended by an interrupt that the task priority holds back", () => {
      const rig = countingRig({ backend });
      at(rig.vm, 1_000_000, () => rig.vm.signalMsi(encodeMsi({ vector: VECTOR }, "xapic")));
      const { end } = rig.run(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.movToCr8(4);
        yield cpu.sti();
        yield cpu.hlt();
      });
      assertEquals([end, rig.word(DATA)], ["halted", 0]);
    });

    it("on another vCPU ends with an IPI", () => {
      const rig = countingRig({ backend, vcpus: 2 });
      rig.aps(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.xadd32(DATA + 8, 1);
        yield cpu.sti();
        yield cpu.hlt();
        yield cpu.xadd32(DATA + 8, 1);
        yield cpu.cli();
        for (;;) yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* startAps(cpu, 1);
        yield cpu.work(1_000_000);
        yield cpu.load32(DATA + 8);
        assertEquals(cpu.eax, 1, "it sleeps");
        yield cpu.wrmsr(X2APIC_ICR, VECTOR, 1);
        yield cpu.pauseWhile(DATA + 8, 1);
      });
      assertEquals(rig.word(DATA), 1);
    });
  });

  describe(`halt polling (${backend})`, () => {
    /** Halts once for each duration; answers with what kvm_vcpu_wakeup and kvm_halt_poll_ns saw. */
    function halts(durations: readonly number[], options: VmOptions = {}, pollControl = 1) {
      const rig = countingRig({ backend, ...options });
      const { vm } = rig;
      let { stats } = vm.bootstrap;
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(0x832, 0x4_0000 | VECTOR);
        if (pollControl === 0) yield cpu.wrmsr(MSR_KVM_POLL_CONTROL, 0);
        for (const ns of durations) yield* haltFor(cpu, ns);
        stats = { ...vm.bootstrap.stats }; // Before the halt that ends the program.
      }, 1e12);
      assertEquals(rig.word(DATA), durations.length);
      return {
        stats,
        wakeups: eventsOf(vm, "kvm_vcpu_wakeup").map(({ args: [ns, waited, valid] }) => ({
          ns,
          waited,
          valid,
        })),
        windows: eventsOf(vm, "kvm_halt_poll_ns").map(({ args: [grow, now, old] }) => ({ grow, now, old })),
      };
    }

    /** The window by the book (kvm_vcpu_halt in virt/kvm/kvm_main.c): how each halt, of so many nanoseconds, changes it. */
    function byTheBook(lengths: readonly number[], max: number, shrinkBy: number) {
      const changes: { grow: number; now: number; old: number }[] = [];
      let window = 0;
      for (const ns of lengths) {
        window = Math.min(window, max);
        const old = window;
        if (ns <= window) continue;
        if (window > 0 && ns > max) {
          const less = shrinkBy === 0 ? 0 : Math.floor(window / shrinkBy);
          window = less < 10_000 ? 0 : less;
          changes.push({ grow: 0, now: window, old });
        } else if (window < max && ns < max) {
          window = Math.max(2 * window, 10_000);
          changes.push({ grow: 1, now: window, old });
        }
      }
      return changes;
    }

    it("begins with the second of short halts, and its window doubles from 10 us", () => {
      const { windows, stats } = halts([30_000, 30_000, 30_000, 30_000]);
      assertEquals(windows.map(({ now }) => now).slice(0, 2), [10_000, 20_000]);
      assertEquals(stats.halt_attempted_poll, 3, "not with an empty window");
      assertGreater(stats.halt_successful_poll, 0);
    });

    it("does not let the vCPU sleep where the event comes within the window", () => {
      const { wakeups, stats } = halts([40_000, 40_000, 40_000, 40_000, 5_000]);
      assertEquals(wakeups.at(-1)!.waited, 0);
      assertEquals(wakeups.at(-1)!.ns < 10_000, true);
      assertEquals(stats.halt_wakeup, wakeups.filter(({ waited }) => waited === 1).length);
      assertEquals(stats.halt_successful_poll, wakeups.filter(({ waited }) => waited === 0).length);
    });

    it("halves its window after a halt longer than halt_poll_ns, down to none below 10 us", () => {
      const long = 1_000_000;
      const { windows } = halts([60_000, 60_000, 60_000, long, long, long, long]);
      assertEquals(windows.map(({ grow, now }) => [grow, now]), [
        [1, 10_000],
        [1, 20_000],
        [1, 40_000],
        [0, 20_000],
        [0, 10_000],
        [0, 0],
      ]);
    });

    for (const [hostSemantics, shrinkBy] of [["v6.19", 2], ["2018", 0]] as [HostSemantics, number][]) {
      it(`adapts its window by the book, whatever the halts (${hostSemantics})`, () => {
        fc.assert(
          fc.property(
            fc.array(fc.oneof(fc.integer({ min: 1, max: 250_000 }), fc.constant(900_000)), { maxLength: 25 }),
            fc.constantFrom(200_000, 50_000, 10_000, 5_000),
            (durations, haltPollNs) => {
              const { windows, wakeups } = halts(durations, { haltPollNs, hostSemantics });
              assertEquals(windows, byTheBook(wakeups.map(({ ns }) => ns), haltPollNs, shrinkBy));
              assertEquals(wakeups.every(({ valid }) => valid === 1), true, "every wake-up is valid on x86");
            },
          ),
          { numRuns: 25 },
        );
      });
    }

    for (
      const [why, options, pollControl] of [
        ["the guest writes 0 to KVM_POLL_CONTROL", {}, 0],
        ["halt_poll_ns is 0", { haltPollNs: 0 }, 1],
        ["the host is of 2012", { hostSemantics: "2012" }, 1],
      ] as [string, VmOptions, number][]
    ) {
      it(`does not happen, nor does its window change, where ${why}`, () => {
        const { windows, wakeups, stats } = halts([30_000, 30_000, 30_000], options, pollControl);
        assertEquals(windows, []);
        assertEquals(wakeups.map(({ waited }) => waited), [1, 1, 1]);
        assertEquals(stats.halt_attempted_poll, 0);
      });
    }
  });
}
