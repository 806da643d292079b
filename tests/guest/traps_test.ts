import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_EOI, NMI_VECTOR, UD_VECTOR, type X86Fault } from "../../abi/mod.ts";
import { spuriousInterrupt } from "../../guest/kernel/traps.ts";
import { rdmsrSafe, SPURIOUS_APIC_VECTOR } from "../../guest/mod.ts";
import { APICS, KernelRig } from "../support/kernels.ts";

describe("an interrupt that nobody expects", () => {
  for (const apic of APICS) {
    it(`is counted, and ended if it is in service: ${apic}`, () => {
      const rig = new KernelRig({ apic, disable: ["pv-eoi"] });
      rig.run(function* (cpu, kernel) {
        rig.mark();
        yield* kernel.apic.sendIpiSelf(cpu, 0x77);
        yield* kernel.apic.sendIpiSelf(cpu, 0x77);
        yield cpu.pause();
      });
      assertEquals(rig.irqs(0, 0x77), 2);
      assertEquals(rig.seen("kvm_eoi").map(({ args }) => args[1]), [0x77, 0x77]);
    });

    it(`is left alone if it is not: ${apic}`, () => {
      const rig = new KernelRig({ apic, disable: ["pv-eoi"] });
      const { kernel } = rig;
      // Ended already, by the time that the kernel looks whether it is in service.
      kernel.gate(0x79, function* (cpu) {
        yield* kernel.ackApicIrq(cpu);
        rig.mark();
        yield* spuriousInterrupt(cpu, kernel);
      });
      rig.run(function* (cpu) {
        yield* kernel.apic.sendIpiSelf(cpu, 0x79);
        yield cpu.pause();
      });
      assertEquals([rig.irqs(0, 0x79), rig.seen("kvm_eoi").length], [1, 0]);
    });

    it(`is ended with PV EOI as well: ${apic}`, () => {
      const rig = new KernelRig({ apic });
      rig.run(function* (cpu, kernel) {
        rig.mark();
        yield* kernel.apic.sendIpiSelf(cpu, 0x77);
        yield cpu.pause();
      });
      // Looking at the APIC is an exit: it closes the flag, and the register ends the interrupt.
      const eois = rig.seen("kvm_apic").filter(({ args }) => args[0] === 1 && args[1] === APIC_EOI);
      assertEquals([eois.length, rig.seen("kvm_eoi").length, rig.seen("kvm_pv_eoi").length], [1, 1, 0]);
    });
  }

  it("is, with the APIC's spurious vector, counted and never ended", () => {
    const rig = new KernelRig({ cpus: 2 });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* kernel.apic.sendIpi(cpu, 1, SPURIOUS_APIC_VECTOR);
      yield cpu.work(100_000);
    });
    assertEquals([rig.irqs(1, SPURIOUS_APIC_VECTOR), rig.seen("kvm_eoi").length], [1, 0]);
  });
});

describe("an interrupt's handler", () => {
  it("runs after its end was signalled and counted, with interrupts off", () => {
    const rig = new KernelRig({ disable: ["pv-eoi"] });
    const seen: unknown[] = [];
    rig.kernel.irq(0x40, function* (cpu) {
      yield cpu.pushf();
      seen.push(rig.seen("kvm_eoi").length, rig.irqs(0, 0x40), cpu.interruptsEnabled, cpu.vector);
    });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* kernel.apic.sendIpiSelf(cpu, 0x40);
      yield cpu.pause();
    });
    assertEquals(seen, [1, 1, false, 0x40]);
  });

  it("takes the place of the one before", () => {
    const rig = new KernelRig();
    const seen: string[] = [];
    for (const name of ["first", "second"]) {
      rig.kernel.irq(0x40, function* (cpu) {
        seen.push(name);
        yield cpu.pause();
      }, name);
    }
    rig.run(function* (cpu, kernel) {
      yield* kernel.apic.sendIpiSelf(cpu, 0x40);
      yield cpu.pause();
    });
    assertEquals(seen, ["second"]);
  });

  it("of an NMI is there from the start, and ends nothing", () => {
    const rig = new KernelRig({ cpus: 2 });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* kernel.apic.sendIpi(cpu, 1, NMI_VECTOR);
      yield cpu.work(100_000);
    });
    assertEquals([rig.irqs(1, NMI_VECTOR), rig.seen("kvm_eoi").length], [1, 0]);
  });
});

describe("an exception", () => {
  it("goes to the fixup of what raised it", () => {
    new KernelRig().run(function* (cpu) {
      let vector = -1;
      try {
        yield cpu.ud2();
      } catch (fault) {
        vector = (fault as X86Fault).vector;
      }
      assertEquals(vector, UD_VECTOR);
    });
  });

  it("in a handler goes to the handler's own", () => {
    const rig = new KernelRig();
    const seen: unknown[] = [];
    rig.kernel.irq(0x40, function* (cpu) {
      seen.push(yield* rdmsrSafe(cpu, 0x1234));
    });
    rig.run(function* (cpu, kernel) {
      yield* kernel.apic.sendIpiSelf(cpu, 0x40);
      yield cpu.pause();
      seen.push("the program goes on");
    });
    assertEquals(seen, [undefined, "the program goes on"]);
  });
});
