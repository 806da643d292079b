import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { GP_VECTOR, X2APIC_EOI, X2APIC_SELF_IPI, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { enableX2apic, Rig } from "../../support/guests.ts";

const VECTOR = 0x51;
/** Requests an interrupt from itself. */
const interruptSelf = (cpu: X86Cpu, vector = VECTOR) => cpu.wrmsr(X2APIC_SELF_IPI, vector);

for (const backend of BACKENDS) {
  describe(`NMIs (${backend})`, () => {
    const NMI = 2;

    /** A rig whose NMI handler notes begin and end, and does something in between. */
    function rigWithNmi(inside: (cpu: X86Cpu, rig: Rig) => Generator<number, void, void>) {
      const rig = new Rig({ vm: { backend } });
      const story: string[] = [];
      rig.on(NMI, function* nmi(cpu) {
        story.push("begins");
        yield* inside(cpu, rig);
        story.push("ends");
      });
      return { rig, story };
    }

    /** An NMI reaches the processor, as one from a device does. */
    const sendNmi = (rig: Rig) => rig.vm.signalMsi({ addressHigh: 0, addressLow: 0xfee0_0000, data: 0x400 });

    it("are taken with IF clear", () => {
      const { rig, story } = rigWithNmi(function* (cpu) {
        assertEquals(cpu.vector, NMI);
        yield cpu.pause();
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        sendNmi(rig);
        yield cpu.cpuid(0);
        yield cpu.pause();
      });
      assertEquals(story, ["begins", "ends"]);
    });

    it("wait until the IRET of the one in progress: a second one is not lost and does not nest", () => {
      let sent = false;
      const { rig, story } = rigWithNmi(function* (cpu, rig) {
        if (!sent) sendNmi(rig);
        sent = true;
        for (let i = 0; i < 5; i++) yield cpu.cpuid(0);
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        sendNmi(rig);
        yield cpu.cpuid(0);
        for (let i = 0; i < 5; i++) yield cpu.pause();
        assertEquals(story, ["begins", "ends", "begins", "ends"]);
      });
    });

    it("wait one at a time: a third that arrives meanwhile is merged with the second", () => {
      let sent = false;
      const { rig, story } = rigWithNmi(function* (cpu, rig) {
        if (!sent) { for (let i = 0; i < 3; i++) sendNmi(rig); }
        sent = true;
        yield cpu.cpuid(0);
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        sendNmi(rig);
        for (let i = 0; i < 10; i++) yield cpu.cpuid(0);
      });
      assertEquals(story, ["begins", "ends", "begins", "ends"]);
    });

    it("are unblocked by any IRET, also that of an exception inside their handler", () => {
      let sent = false;
      const { rig, story } = rigWithNmi(function* (cpu, rig) {
        if (sent) return;
        sent = true;
        sendNmi(rig);
        yield cpu.cpuid(0);
        story.push("faults");
        yield cpu.rdmsr(0x1234);
        for (let i = 0; i < 5; i++) yield cpu.pause();
      });
      rig.on(GP_VECTOR, function* (cpu) {
        cpu.skip();
        yield cpu.iret();
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        sendNmi(rig);
        for (let i = 0; i < 5; i++) yield cpu.cpuid(0);
      });
      assertEquals(story, ["begins", "faults", "begins", "ends", "ends"]);
    });

    it("do not hold maskable interrupts off, which IF does", () => {
      const { rig, story } = rigWithNmi(function* (cpu) {
        yield interruptSelf(cpu);
        yield cpu.cpuid(0);
        story.push("enables");
        yield cpu.sti();
        yield cpu.pause();
        yield cpu.pause();
      });
      rig.on(VECTOR, function* (cpu) {
        story.push("interrupt");
        yield cpu.wrmsr(X2APIC_EOI, 0);
      });
      rig.finish(function* (cpu) {
        yield* enableX2apic(cpu);
        sendNmi(rig);
        for (let i = 0; i < 5; i++) yield cpu.cpuid(0);
      });
      assertEquals(story, ["begins", "enables", "interrupt", "ends"]);
    });
  });
}
