import { assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi, NMI_VECTOR, X2APIC_EOI, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, MpState, Timer, type Vm, type VmOptions } from "../../../host/mod.ts";
import { type Asking, enter, setUp, tryingRig } from "../../support/apic.ts";
import { chain, eventsOf, mark, tracingRig } from "../../support/events.ts";
import { DATA, enableX2apic, Rig, startAps } from "../../support/guests.ts";

const KICK_CPU = 5;
const SCHED_YIELD = 11;
const VECTOR = 0x41;

/** Makes a hypercall that must answer 0. */
function* call(cpu: X86Cpu, nr: number, a0: number | bigint, a1: number | bigint = 0): Asking<void> {
  yield cpu.loadHypercall(nr, a0, a1).vmcall();
  assertEquals(cpu.rax, 0n);
}

/** Has a device do something at a point in time. */
function at(vm: Vm, cycles: number, act: () => void): void {
  new Timer(vm.engine, "device", act).arm(cycles);
}

for (const backend of BACKENDS) {
  describe(`KVM_HC_KICK_CPU (${backend})`, () => {
    /** Counts at DATA that they are up; they halt with interrupts disabled, and count at DATA + 4 how often they woke. */
    function sleepers(vcpus: number, options: VmOptions = {}): Rig {
      return tracingRig({ vm: { backend, vcpus, ...options } }).aps(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.xadd32(DATA, 1);
        for (;;) {
          yield cpu.hlt();
          yield cpu.xadd32(DATA + 4, 1);
        }
      });
    }

    function* up(cpu: X86Cpu, aps: number): Asking<void> {
      yield* enter(cpu, "x2apic");
      yield* startAps(cpu, aps);
      do yield cpu.load32(DATA); while (cpu.eax !== aps);
      yield cpu.work(1_000_000);
      yield cpu.loadHypercall(1).vmcall(); // On AMD the first one is rewritten.
    }

    it("wakes a vCPU that halts with interrupts disabled, and brings no interrupt", () => {
      const rig = sleepers(3);
      rig.finish(function* (cpu) {
        yield* up(cpu, 2);
        assertEquals(rig.vm.vcpus.map(({ mpState }) => mpState).slice(1), [MpState.Halted, MpState.Halted]);
        const from = mark(rig.vm);
        yield* call(cpu, KICK_CPU, 0, 2);
        yield cpu.work(1_000_000);
        assertEquals(rig.word(DATA + 4), 1);
        const accepted = eventsOf(rig.vm, "kvm_apic_accept_irq", from).map(({ args }) => args.slice(0, 4));
        assertEquals(accepted, [[2, 0x300, 0, 0]], "one remote read, to vCPU 2");
        assertEquals(chain(rig.vm, from, ["kvm_inj_virq", "kvm_apic_ipi"]), []);
      });
      assertEquals(rig.vm.vcpus[1].stats.halt_exits, 1, "vCPU 1 slept on");
    });

    it("that comes before the HLT ends it at once; a second one with it counts as one", () => {
      const rig = tracingRig({ vm: { backend } }).on(NMI_VECTOR, function* () {});
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* call(cpu, KICK_CPU, 0, 0);
        yield* call(cpu, KICK_CPU, 0, 0);
        assertEquals(rig.vm.bootstrap.pvUnhalted, true);
        const from = mark(rig.vm);
        yield cpu.hlt();
        assertEquals(chain(rig.vm, from), ["kvm_exit", "kvm_entry"], "it did not sleep");
        assertEquals(rig.vm.bootstrap.pvUnhalted, false);
        yield cpu.rdtsc();
        const halted = cpu.eax;
        at(rig.vm, 50_000_000, () => rig.vm.signalMsi(encodeMsi({ deliveryMode: 0x400 }, "xapic")));
        yield cpu.hlt();
        yield cpu.rdtsc();
        assertGreater(cpu.eax, 50_000_000, "the next one waited for the NMI");
        assertGreater(50_000_000, halted);
      });
    });

    it("is used up by whatever makes the vCPU runnable", () => {
      const rig = tracingRig({ vm: { backend } });
      rig.on(VECTOR, function* (cpu) {
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      at(rig.vm, 3_000_000, () => {
        rig.vm.signalMsi(encodeMsi({ vector: VECTOR }, "xapic"));
        rig.vm.bootstrap.pvUnhalted = true; // As if a kick came with it.
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        yield cpu.hlt();
        assertEquals(rig.vm.bootstrap.pvUnhalted, false);
        yield cpu.cli();
      });
    });

    it("makes a vCPU in guest mode exit, and end its next HLT", () => {
      const rig = tracingRig({ vm: { backend, vcpus: 2 } });
      rig.aps(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.xadd32(DATA, 1);
        yield cpu.work(3_000_000);
        yield cpu.hlt();
        yield cpu.xadd32(DATA, 1);
        yield cpu.hlt();
        yield cpu.xadd32(DATA, 1);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* startAps(cpu, 1);
        yield cpu.pauseWhile(DATA, 0);
        yield cpu.work(100_000);
        const { irq_exits } = rig.vm.vcpus[1].stats;
        yield* call(cpu, KICK_CPU, 0, 1);
        yield cpu.work(10_000);
        assertEquals(rig.vm.vcpus[1].stats.irq_exits, irq_exits + 1);
        yield cpu.work(10_000_000);
        yield cpu.load32(DATA);
        assertEquals(cpu.eax, 2, "one HLT ended, the next did not");
      });
    });

    it("ignores its flags, takes 32 bits of the ID, and answers 0 where nobody has it", () => {
      const rig = sleepers(2);
      rig.finish(function* (cpu) {
        yield* up(cpu, 1);
        for (const id of [7, 4096, 0xffff_fffe]) yield* call(cpu, KICK_CPU, 0, id);
        assertEquals(rig.word(DATA + 4), 0);
        yield* call(cpu, KICK_CPU, -1n, 1);
        yield cpu.work(1_000_000);
        assertEquals(rig.word(DATA + 4), 1);
        yield* call(cpu, KICK_CPU, 0, 2n ** 32n + 1n);
        yield cpu.work(1_000_000);
        assertEquals(rig.word(DATA + 4), 2);
      });
    });

    /** Which of four vCPUs a kick of an ID reaches. */
    function reached(id: number, options: VmOptions): number[] {
      const vcpuIds = [0, 1, 2, 0xff];
      const rig = tryingRig({ vm: { backend, vcpuIds, ...options } });
      rig.vm.engine.running = rig.vm.bootstrap;
      for (const { lapic } of rig.vm.vcpus) setUp(lapic, "x2apic", { software: lapic.vcpu.vcpuId !== 2 });
      rig.finish(function* (cpu) {
        yield* call(cpu, KICK_CPU, 0, id);
      });
      return rig.vm.vcpus.filter(({ pvUnhalted }) => pvUnhalted).map(({ vcpuId }) => vcpuId);
    }

    it("of ID 0xff is everybody's by KVM's broadcast quirk, software-disabled APICs included", () => {
      assertEquals(reached(2, {}), [2]);
      // vCPU 0 has used its own up: it went on to the HLT that ends its program.
      assertEquals(reached(0xff, {}), [1, 2, 0xff]);
      assertEquals(reached(0xffff_ffff, {}), []);
      const api = { x2apicApi32BitIds: true, x2apicApiDisableBroadcastQuirk: true };
      assertEquals(reached(0xff, api), [0xff]);
      assertEquals(reached(0xffff_ffff, api), [1, 2, 0xff]);
    });

    it("does not reach an APIC that hardware has disabled", () => {
      const rig = tryingRig({ vm: { backend, vcpus: 2 } });
      rig.vm.engine.running = rig.vm.bootstrap;
      setUp(rig.vm.vcpus[1].lapic, "disabled");
      rig.finish(function* (cpu) {
        yield* call(cpu, KICK_CPU, 0, 1);
      });
      assertEquals(rig.vm.vcpus[1].pvUnhalted, false);
    });

    it("yields too, since SCHED_YIELD exists: a kick asks for a directed yield", () => {
      for (const [hostSemantics, attempts] of [["v6.19", 1], ["2018", 0]] as const) {
        const rig = tracingRig({ vm: { backend, hostSemantics } });
        rig.finish(function* (cpu) {
          yield* call(cpu, KICK_CPU, 0, 5);
        });
        assertEquals(rig.vm.bootstrap.stats.directed_yield_attempted, attempts, hostSemantics);
      }
    });
  });

  describe(`KVM_HC_SCHED_YIELD (${backend})`, () => {
    interface Contest {
      /** In which order application processors went on when they could. */
      readonly order: number[];
      readonly attempted: number;
      readonly successful: number;
      /** How many had gone on when the yield came back. */
      readonly meanwhile: number;
    }

    /**
     * Four vCPUs share CPUs. Application processors spin, preempted again and again; then vCPU 0 lets them go on, and
     * yields to somebody. Answers with who went on first.
     */
    function contest(pcpus: number, yielding?: number | bigint, halts: readonly number[] = []): Contest {
      const rig = new Rig({
        machine: { pcpus, timeSlice: 1_000_000 },
        vm: { backend, vcpus: 4 },
      });
      const order: number[] = [];
      let meanwhile = 0;
      rig.aps(function* (cpu) {
        yield* enableX2apic(cpu);
        yield cpu.rdmsr(0x802);
        const id = cpu.eax;
        yield cpu.xadd32(DATA, 1);
        if (halts.includes(id)) yield cpu.hlt();
        yield cpu.pauseWhile(DATA + 4, 0);
        order.push(id);
        for (;;) yield cpu.hlt();
      });
      const { stats } = rig.vm.bootstrap;
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        yield* startAps(cpu, 3);
        for (let n = 0; n < 3; n = cpu.eax) yield cpu.pauseWhile(DATA, n), yield cpu.load32(DATA);
        yield cpu.work(5_000_000);
        yield cpu.store32(DATA + 4, 1);
        if (yielding !== undefined) yield* call(cpu, SCHED_YIELD, yielding);
        meanwhile = order.length;
        yield cpu.work(20_000_000);
      }, 1e12);
      return {
        order,
        attempted: stats.directed_yield_attempted,
        successful: stats.directed_yield_successful,
        meanwhile,
      };
    }

    it("has the vCPU run next that it names, although others have waited longer", () => {
      const inTurn = contest(1);
      assertEquals([inTurn.order.length, inTurn.attempted], [3, 0]);
      for (const id of [1, 2, 3]) {
        const yielded = contest(1, id);
        assertEquals(yielded.order[0], id);
        assertEquals(
          yielded.order.slice(1),
          inTurn.order.filter((other) => other !== id),
          "the others keep their order",
        );
        assertEquals([yielded.attempted, yielded.successful], [1, 1]);
        assertGreater(yielded.meanwhile, 0, "at once, not at the end of the slice");
      }
    });

    it("comes to nothing, and answers 0, for itself, nobody, somebody asleep, or an ID above 2^32", () => {
      const inTurn = contest(1).order;
      for (const id of [0, 9, 4096, 2n ** 32n + 1n, -1n]) {
        assertEquals(
          contest(1, id),
          { order: inTurn, attempted: 1, successful: 0, meanwhile: 0 },
          `APIC ID ${id}`,
        );
      }
      const { order, successful } = contest(1, 2, [2]);
      assertEquals([order.includes(2), successful], [false, 0], "vCPU 2 is halted");
    });

    it("comes to nothing where nobody waits for a CPU", () => {
      const { attempted, successful } = contest(4, 2);
      assertEquals([attempted, successful], [1, 0]);
    });
  });
}
