import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { BACKENDS, type Lapic } from "../../../host/mod.ts";
import { X2APIC_EOI, X2APIC_ICR, type X86Cpu } from "../../../abi/mod.ts";
import { type Asking, enter, setUp, vectors } from "../../support/apic.ts";
import { chain, eventsOf, exitsOf, mark, tracingRig } from "../../support/events.ts";
import { AP_START, DATA, longMode, ONLINE, type RigOptions, startAps } from "../../support/guests.ts";

const NR = 10;
const IRR = 0x200;

/** Makes the call in a guest. Answers with RAX. */
function* call(
  cpu: X86Cpu,
  ...args: [a0: number | bigint, a1: number, a2: number, a3: number]
): Asking<bigint> {
  yield cpu.loadHypercall(NR, ...args).vmcall();
  return cpu.rax;
}

for (const backend of BACKENDS) {
  const rigWith = (options: RigOptions = {}) => tracingRig({ ...options, vm: { backend, ...options.vm } });
  const irr = (lapic: Lapic) => vectors(lapic, IRR);

  describe(`a guest that sends IPIs by hypercall (${backend})`, () => {
    it("interrupts many with one exit, which no ICR sees", () => {
      const rig = rigWith({ vm: { vcpus: 6 } });
      rig.on(0x41, function* (cpu) {
        yield cpu.xadd32(DATA, 1);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).aps(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        yield cpu.xadd32(DATA + 4, 1);
        for (;;) yield cpu.hlt();
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* startAps(cpu, 5);
        do yield cpu.load32(DATA + 4); while (cpu.eax !== 5);
        yield* call(cpu, 0, 0, 0, 0); // The first one is rewritten on AMD.
        yield cpu.rdmsr(X2APIC_ICR);
        const icr = [cpu.eax, cpu.edx];
        yield cpu.work(1_000_000);

        const from = mark(rig.vm);
        cpu.loadHypercall(NR, 0b101110, 0, 0, 0x41);
        assertEquals((yield* exitsOf(rig.vm, cpu.vmcall())).map(([name]) => name), [
          backend === "vmx" ? "VMCALL" : "hypercall",
        ]);
        assertEquals(cpu.rax, 4n);
        assertEquals(chain(rig.vm, from).slice(0, 6), [
          "kvm_exit",
          "kvm_hypercall",
          ...Array(4).fill("kvm_apic_accept_irq"),
        ]);
        assertEquals(
          eventsOf(rig.vm, "kvm_apic_accept_irq", from).map(({ args }) => args.slice(0, 4)),
          [1, 2, 3, 5].map((id) => [id, 0, 0, 0x41]),
        );
        yield cpu.work(1_000_000);
        yield cpu.load32(DATA);
        assertEquals(cpu.eax, 4);
        assertEquals(chain(rig.vm, from, ["kvm_apic_ipi"]), []);
        yield cpu.rdmsr(X2APIC_ICR);
        assertEquals([cpu.eax, cpu.edx], icr);
      });
    });

    it("may mean itself", () => {
      const rig = rigWith();
      rig.on(0x41, function* (cpu) {
        yield cpu.xadd32(DATA, 1);
        yield cpu.wrmsr(X2APIC_EOI, 0);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        assertEquals(yield* call(cpu, 1, 0, 0, 0x41), 1n);
        assertEquals(rig.word(DATA), 1, "the interrupt comes before the call returns");
        yield cpu.cli();
      });
    });

    it("sends NMIs, which IF does not hold off", () => {
      const rig = rigWith();
      rig.on(2, function* (cpu) {
        yield cpu.xadd32(DATA, 1);
      }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        assertEquals(yield* call(cpu, 1, 0, 0, 0x400), 1n);
        assertEquals(rig.word(DATA), 1);
      });
    });

    it("starts a processor: INIT and start-up are delivery modes like others", () => {
      const rig = rigWith({ vm: { vcpus: 2 } });
      rig.text.addAt(AP_START, function* ap(cpu) {
        yield* longMode(cpu);
        yield cpu.xadd32(ONLINE, 1);
      });
      rig.finish(function* (cpu) {
        assertEquals(yield* call(cpu, 2, 0, 0, 0x4500), 1n);
        assertEquals(yield* call(cpu, 2, 0, 0, 0x4600 | (AP_START >>> 12)), 1n);
        yield cpu.pauseWhile(ONLINE, 0);
      });
      assertEquals(rig.word(ONLINE), 1);
    });

    it("has vectors below 16 accepted, and never served", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield cpu.sti();
        assertEquals(yield* call(cpu, 1, 0, 0, 5), 1n);
        yield cpu.work(100_000);
        yield cpu.cli();
      });
      assertEquals(irr(rig.vm.bootstrap.lapic), [5]);
    });

    it("has level-triggered ones accepted with the level bit, and dropped without", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        assertEquals(yield* call(cpu, 1, 0, 0, 0x8041), 0n);
        assertEquals(yield* call(cpu, 1, 0, 0, 0xc042), 1n);
        assertEquals(yield* call(cpu, 1, 0, 0, 0x0043), 1n, "an edge needs none");
      });
      assertEquals(irr(rig.vm.bootstrap.lapic), [0x42, 0x43]);
      assertEquals(rig.vm.counters()["kvm_apic_accept_irq"], 3, "what is dropped is traced too");
    });

    it("has what a software-disabled APIC is sent dropped, without an error", () => {
      const rig = rigWith();
      rig.finish(function* (cpu) {
        assertEquals(yield* call(cpu, 1, 0, 0, 0x41), 0n);
        assertEquals(yield* call(cpu, 2, 0, 0, 0x41), 0n, "nor is it one that nobody is there");
      });
      assertEquals(irr(rig.vm.bootstrap.lapic), []);
    });

    it("is told -22 for a logical destination, or any shorthand", () => {
      rigWith().finish(function* (cpu) {
        for (const icr of [0x841, 0x4_0041, 0x8_0041, 0xc_0041]) {
          assertEquals(yield* call(cpu, 1, 0, 0, icr), BigInt.asUintN(64, -22n));
        }
      });
    });

    it("in 32-bit mode reaches 64 APICs: the second half begins 32 behind the first", () => {
      const rig = rigWith({ mode: "32-bit", vm: { vcpuIds: [0, 31, 32, 63, 64] } });
      for (const { lapic } of rig.vm.vcpus) {
        rig.vm.engine.running = rig.vm.bootstrap;
        setUp(lapic, "x2apic");
      }
      rig.finish(function* (cpu) {
        assertEquals(yield* call(cpu, 0x8000_0001, 0x8000_0001, 0, 0x41), 4n);
        assertEquals(yield* call(cpu, 1n << 32n, 0, 32, 0x42), 0n, "bits above 31 are no destinations");
      });
      assertEquals(rig.vm.vcpus.map(({ lapic }) => irr(lapic)), [[0x41], [0x41], [0x41], [0x41], []]);
    });
  });
}
