import { assertEquals, assertGreater } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi, GP_VECTOR, IA32_TSC_DEADLINE, X2APIC_EOI, X2APIC_ICR } from "../../../abi/mod.ts";
import { BACKENDS, Timer, type Vm } from "../../../host/mod.ts";
import { completes, enter, lookAtEvents } from "../../support/apic.ts";
import { chain, events, eventsOf, exits, exitsOf, mark, tracingRig } from "../../support/events.ts";
import { DATA, type Rig, type RigOptions, startAps } from "../../support/guests.ts";
import { Script } from "../../support/threads.ts";

const VECTOR = 0x41;
const NMI = 2;
const SELF = 0x4_0000;
const NAMES = {
  vmx: {
    window: "INTERRUPT_WINDOW",
    immediate: "PREEMPTION_TIMER",
    physical: "EXTERNAL_INTERRUPT",
    read: "MSR_READ",
  },
  svm: { window: "vintr", immediate: "interrupt", physical: "interrupt", read: "msr" },
} as const;

/** Has a device do something at a point in time. */
function at(vm: Vm, cycles: number, act: () => void): void {
  new Timer(vm.engine, "device", act).arm(cycles);
}

/** The names of exits, and the events that KVM injected between them. */
function injections(vm: Vm, from: number): string[] {
  return events(vm, from).flatMap(({ event, args }) => {
    switch (event) {
      case "kvm_exit":
        return [vm.bootstrap.backend.exitName(args[0])];
      case "kvm_inj_virq":
        return [`+irq ${args[0].toString(16)}`];
      case "kvm_inj_exception":
        return [`+exception ${args[0]}`];
      default:
        return [];
    }
  });
}

for (const backend of BACKENDS) {
  const names = NAMES[backend];
  const rigWith = (options: RigOptions = {}) => tracingRig({ ...options, vm: { backend, ...options.vm } });

  /** A rig whose handler of VECTOR counts at DATA and ends the interrupt. */
  const handlingRig = (options: RigOptions = {}): Rig =>
    rigWith(options).on(VECTOR, function* (cpu) {
      yield cpu.xadd32(DATA, 1);
      yield cpu.wrmsr(X2APIC_EOI, 0);
    });

  describe(`an interrupt (${backend})`, () => {
    it("that comes while IF is clear opens a window: one exit when it could be taken, behind the STI shadow", () => {
      const rig = handlingRig();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(X2APIC_ICR, SELF | VECTOR);
        const from = mark(rig.vm);
        yield cpu.pause();
        yield cpu.sti();
        assertEquals(injections(rig.vm, from), [], "neither while IF is clear nor in the shadow");
        yield cpu.pause();
        yield cpu.pause();
        assertEquals(injections(rig.vm, from).slice(0, 2), [names.window, "+irq 41"]);
        assertEquals(rig.word(DATA), 1);
        const after = mark(rig.vm);
        yield cpu.cli();
        yield cpu.sti();
        yield cpu.pause();
        assertEquals(injections(rig.vm, after), [], "the window is closed");
        yield cpu.cli();
      });
      assertEquals(rig.vm.bootstrap.stats.irq_window_exits, 1);
    });

    it("that comes to a vCPU in guest mode makes it exit, and is injected at once", () => {
      const rig = handlingRig();
      at(rig.vm, 1_000_000, () => rig.vm.signalMsi(encodeMsi({ vector: VECTOR }, "xapic")));
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        const from = mark(rig.vm);
        yield cpu.work(1_000_000);
        assertEquals(injections(rig.vm, from).slice(0, 2), [names.physical, "+irq 41"]);
        yield cpu.cli();
      });
      assertEquals(rig.vm.bootstrap.stats.irq_exits, 1);
      assertEquals(rig.word(DATA), 1);
    });

    it("that another vCPU sends makes its target exit, and its sender not once more than for the send", () => {
      const rig = handlingRig({ vm: { vcpus: 2 } });
      rig.aps(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        yield cpu.xadd32(DATA + 4, 1);
        yield cpu.pauseWhile(DATA, 0);
        yield cpu.cli();
        for (;;) yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* startAps(cpu, 1);
        yield cpu.pauseWhile(DATA + 4, 0);
        yield cpu.work(100_000);
        const from = mark(rig.vm);
        yield cpu.wrmsr(X2APIC_ICR, VECTOR, 1);
        yield cpu.pauseWhile(DATA, 0);
        const of = (vcpu: number) =>
          eventsOf(rig.vm, "kvm_exit", from).filter((seen) => seen.vcpu === vcpu).map(({ args }) =>
            rig.vm.bootstrap.backend.exitName(args[0])
          );
        assertEquals(of(0), [backend === "vmx" ? "MSR_WRITE" : "msr"]);
        assertEquals(of(1)[0], names.physical);
      });
    });

    it("behind an exception waits for it, and costs an immediate exit", () => {
      const rig = handlingRig();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(X2APIC_ICR, SELF | VECTOR);
        const from = mark(rig.vm);
        assertEquals(yield* completes(cpu.rdmsr(0x1234)), false);
        // The handler of #GP runs with IF clear: all that the second entry can do is to ask for a window.
        assertEquals(injections(rig.vm, from), [names.read, `+exception ${GP_VECTOR}`, names.immediate]);
        yield cpu.sti();
        yield cpu.pause();
        assertEquals(rig.word(DATA), 1);
        yield cpu.cli();
      });
    });

    it("behind an NMI waits for it too: the NMI is first, and blocks it no longer than its own delivery", () => {
      const order: number[] = [];
      const rig = rigWith().on(VECTOR, function* (cpu) {
        order.push(VECTOR);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).on(NMI, function* (cpu) {
        order.push(NMI);
        yield cpu.pause();
      });
      at(rig.vm, 1_000_000, () => {
        rig.vm.signalMsi(encodeMsi({ vector: VECTOR }, "xapic"));
        rig.vm.signalMsi(encodeMsi({ deliveryMode: 0x400 }, "xapic"));
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        const from = mark(rig.vm);
        yield cpu.work(1_000_000);
        assertEquals(order, [NMI, VECTOR]);
        assertEquals(injections(rig.vm, from).slice(0, 2), [names.physical, names.immediate]);
        yield cpu.cli();
      });
    });

    it("that costs an immediate exit does not make an armed timer fire", () => {
      const timer = 0x61;
      let fired = 0;
      const rig = handlingRig().on(timer, function* (cpu) {
        fired++;
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(0x832, 0x4_0000 | timer);
        yield cpu.rdtsc();
        const deadline = cpu.eax + 10_000_000;
        yield cpu.wrmsr(IA32_TSC_DEADLINE, deadline, 0);
        yield cpu.wrmsr(X2APIC_ICR, SELF | VECTOR);
        const from = mark(rig.vm);
        yield* lookAtEvents(cpu);
        assertEquals(exits(rig.vm, from).map(([name]) => name), [names.read, names.immediate]);
        yield cpu.sti();
        yield cpu.work(1_000_000);
        assertEquals([fired, rig.word(DATA)], [0, 1]);
        yield cpu.work(10_000_000);
        assertEquals(fired, 1, "it fires when its time has come");
        yield cpu.cli();
      });
    });
  });

  describe(`an NMI (${backend})`, () => {
    /** Sends itself an NMI, whose handler sends `more`. Answers with the exits from the first send on. */
    function nmis(more: number): { rig: Rig; handled: number; found: string[] } {
      const rig = rigWith();
      let handled = 0;
      let found: string[] = [];
      rig.on(NMI, function* (cpu) {
        handled++;
        if (handled <= more) yield cpu.wrmsr(X2APIC_ICR, SELF | 0x400);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        const from = mark(rig.vm);
        yield cpu.wrmsr(X2APIC_ICR, SELF | 0x400);
        yield cpu.pause();
        yield cpu.pause();
        found = injections(rig.vm, from);
      });
      return { rig, handled, found };
    }
    const send = backend === "vmx" ? "MSR_WRITE" : "msr";

    it(`costs ${backend === "vmx" ? "no exit when its handler ends" : "an exit at its handler's IRET"}`, () => {
      const { rig, handled, found } = nmis(0);
      assertEquals(handled, 1);
      assertEquals(found, backend === "vmx" ? [send] : [send, "iret"]);
      assertEquals(rig.vm.bootstrap.stats.nmi_injections, 1);
    });

    it(
      `that comes during another's handler is injected ${
        backend === "vmx" ? "at an NMI window" : "one step behind the intercepted IRET"
      }`,
      () => {
        const { rig, handled, found } = nmis(1);
        assertEquals(handled, 2);
        assertEquals(
          found,
          backend === "vmx" ? [send, send, "NMI_WINDOW"] : [send, send, "iret", "DB excp", "iret"],
        );
        const { nmi_injections, nmi_window_exits } = rig.vm.bootstrap.stats;
        assertEquals([nmi_injections, nmi_window_exits], backend === "vmx" ? [2, 1] : [2, 2]);
      },
    );
  });

  describe(`the task priority (${backend})`, () => {
    /** Sets CR8 while vector 0x71 waits behind CR8 = 7. Answers with the exits of each write. */
    function writes(values: readonly number[]): string[][] {
      const rig = rigWith().on(0x71, function* (cpu) {
        yield cpu.xadd32(DATA, 1);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      const found: string[][] = [];
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.movToCr8(7);
        yield cpu.wrmsr(X2APIC_ICR, SELF | 0x71);
        yield cpu.sti();
        for (const value of values) {
          found.push((yield* exitsOf(rig.vm, cpu.movToCr8(value))).map(([name]) => name));
        }
        yield cpu.pause();
        yield cpu.cli();
      });
      assertEquals(rig.word(DATA), Math.min(...values) < 7 ? 1 : 0);
      return found;
    }

    it("costs exits while it holds an interrupt back: VMX below the threshold, SVM at every write", () => {
      assertEquals(writes([7, 9, 15]), backend === "vmx" ? [[], [], []] : Array(3).fill(["write_cr8"]));
    });

    it("costs none any more once the interrupt is delivered", () => {
      const eoi = backend === "vmx" ? "MSR_WRITE" : "msr";
      const lowered = backend === "vmx" ? "TPR_BELOW_THRESHOLD" : "write_cr8";
      assertEquals(writes([6, 9, 0]), [[lowered, eoi], [], []]);
    });

    it("costs none while nothing waits, or what waits is above it", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* lookAtEvents(cpu);
        for (const value of [15, 0, 7, 3]) assertEquals(yield* exitsOf(rig.vm, cpu.movToCr8(value)), []);
        yield cpu.wrmsr(X2APIC_ICR, SELF | 0x71); // IF is clear: it waits, but not for the task priority.
        for (const value of [3, 0, 6, 2]) assertEquals(yield* exitsOf(rig.vm, cpu.movToCr8(value)), []);
      });
    });

    it(`${backend === "vmx" ? "keeps" : "loses"} its low four bits over an exit`, () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* lookAtEvents(cpu);
        yield cpu.wrmsr(0x808, 0x75);
        yield cpu.cpuid(0);
        yield cpu.rdmsr(0x808);
        assertEquals(cpu.eax, backend === "vmx" ? 0x75 : 0x70);
      });
    });

    it("keeps them while it holds an interrupt back: SVM then intercepts its writes, and V_TPR does not count", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* lookAtEvents(cpu);
        yield cpu.wrmsr(0x808, 0x75);
        yield cpu.wrmsr(X2APIC_ICR, SELF | 0x71);
        yield cpu.wrmsr(0x808, 0x75);
        yield cpu.cpuid(0);
        yield cpu.rdmsr(0x808);
        assertEquals(cpu.eax, 0x75);
      });
    });
  });

  describe(`what was to be injected (${backend})`, () => {
    it("is injected again where the entry is cancelled, and taken once", () => {
      let again = 0;
      for (let random = 0; random < 30; random++) {
        const rig = handlingRig({ machine: { policy: { random } } });
        const { vm } = rig;
        let handled = 0;
        for (const vector of [0x51, 0x61, 0x71]) {
          rig.on(vector, function* (cpu) {
            handled++;
            yield cpu.sti();
            yield cpu.wrmsr(X2APIC_EOI, 0);
          });
        }
        rig.start(function* (cpu) {
          yield* enter(cpu, "x2apic");
          yield cpu.xadd32(DATA, 1);
          yield cpu.sti();
          yield cpu.pauseWhile(DATA, 1);
          yield cpu.cli();
        });
        new Script(vm.engine, "device", function* () {
          while (rig.word(DATA) === 0) yield 1;
          for (let i = 0; i < 30; i++) {
            vm.signalMsi(encodeMsi({ vector: [0x51, 0x61, 0x71][i % 3] }, "xapic"));
            yield 1;
          }
          while (vm.bootstrap.lapic.highestIrr() !== -1 || vm.bootstrap.lapic.highestIsr() !== -1) yield 1;
          vm.memory.setWord(DATA, 2);
        });
        assertEquals(vm.machine.run().end, "finished", `seed ${random}`);
        const injected = eventsOf(vm, "kvm_inj_virq");
        const first = injected.filter(({ args }) => args[1] === 0);
        assertEquals(first.length, handled, `seed ${random}`);
        again += injected.length - first.length;
      }
      assertGreater(again, 0, "no schedule cancelled an entry");
    });
  });

  describe(`the event block (${backend})`, () => {
    it("is passed only when somebody asked for it", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* lookAtEvents(cpu);
        const before = rig.vm.bootstrap.stats.req_event;
        yield cpu.cpuid(0);
        yield cpu.wrmsr(X2APIC_EOI, 0); // Nothing is in service.
        yield cpu.wrmsr(X2APIC_ICR, VECTOR, 99);
        yield cpu.load32(0xd000_0000);
        assertEquals(rig.vm.bootstrap.stats.req_event, before);
        yield cpu.wrmsr(X2APIC_ICR, SELF | VECTOR);
        assertEquals(rig.vm.bootstrap.stats.req_event, before + 1);
      });
    });

    it("is not passed again for the same request: chains end", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.wrmsr(X2APIC_ICR, SELF | VECTOR); // IF is clear: it waits for a window that never opens.
        const from = mark(rig.vm);
        for (let i = 0; i < 3; i++) yield cpu.cpuid(0);
        assertEquals(chain(rig.vm, from), Array(3).fill(["kvm_exit", "kvm_cpuid", "kvm_entry"]).flat());
      });
    });
  });
}
