import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  NMI_VECTOR,
  PF_VECTOR,
  UD_VECTOR,
  X2APIC_EOI,
  X2APIC_ICR,
  X2APIC_SELF_IPI,
} from "../../../../abi/mod.ts";
import { type Acceleration, BACKENDS, TP, type VmOptions } from "../../../../host/mod.ts";
import { DATA, enableX2apic, IDT } from "../../../support/guests.ts";
import { pagingOn, PagingRig, tells } from "../../../support/paging.ts";

/** Where the IDT is: a frame that nobody has touched, so that the host has not mapped it when the first event comes. */
const FRAME = DATA + 0x4000;
const HIGH_IDT = -0x1000_0000;
const POINTER = DATA + 0x100;
const ISR = 0x810;

/** Loads an IDT that the host has not mapped, and has `event` come. */
function first(
  event: "interrupt" | "NMI" | "#UD" | "#PF",
  vm: VmOptions,
): { seen: (number | string)[]; rig: PagingRig } {
  const rig = new PagingRig({ vm: { ...vm, trace: 10_000 } });
  const seen: (number | string)[] = [];
  rig.fixups([PF_VECTOR, UD_VECTOR]);
  rig.on(NMI_VECTOR, function* nmi(cpu) {
    seen.push("NMI");
    yield cpu.pause();
  });
  rig.on(0x51, function* handler(cpu) {
    seen.push("interrupt");
    yield cpu.rdmsr(ISR + 2);
    seen.push(cpu.eax);
    yield cpu.wrmsr(X2APIC_EOI, 0);
    yield cpu.rdmsr(ISR + 2);
    seen.push(cpu.eax);
  });
  rig.map(HIGH_IDT, FRAME);
  rig.start(function* main(cpu) {
    yield* enableX2apic(cpu);
    yield* pagingOn(cpu, rig.tables);
    yield cpu.store16(POINTER, 0xfff);
    yield cpu.store64(POINTER + 2, HIGH_IDT, 0xffff_ffff);
    yield cpu.lidt(POINTER);
    yield cpu.sti();
    if (event === "interrupt") yield cpu.wrmsr(X2APIC_SELF_IPI, 0x51);
    else if (event === "NMI") yield cpu.wrmsr(X2APIC_ICR, 0x4_4400);
    else if (event === "#UD") seen.push(yield* tells(() => cpu.ud2()));
    else seen.push(yield* tells(() => cpu.load32(0x6000_0000)));
    yield cpu.work(100_000);
    // Another one, of each kind: nothing is blocked, and nothing left behind.
    yield cpu.wrmsr(X2APIC_SELF_IPI, 0x51);
    yield cpu.work(100_000);
    yield cpu.wrmsr(X2APIC_ICR, 0x4_4400);
    yield cpu.work(100_000);
  });
  const { memory } = rig.vm;
  for (let at = 0; at < 4096; at += 4) memory.setWord(FRAME + at, memory.word(IDT + at));
  assertEquals(rig.vm.machine.run(1e9).end, "finished");
  const faults = [...rig.vm.tracer.records()].filter(({ event, args }) =>
    event === TP.kvm_page_fault && args[0] >= FRAME && args[0] < FRAME + 4096
  );
  assertEquals(faults.length, 1, "the delivery has exited once");
  return { seen, rig };
}

for (const backend of BACKENDS) {
  const accelerations: Acceleration[] = backend === "vmx"
    ? ["none", "apicv", "ipiv"]
    : ["none", "avic", "x2avic"];
  for (const acceleration of accelerations) {
    describe(`an event whose gate the host has to map first (${backend}, ${acceleration})`, () => {
      const interrupt = ["interrupt", 1 << (0x51 & 31), 0];

      it("is delivered once, when that is done: an interrupt", () => {
        assertEquals(first("interrupt", { backend, acceleration }).seen, [...interrupt, ...interrupt, "NMI"]);
      });

      it("an NMI, which blocks no later one", () => {
        assertEquals(first("NMI", { backend, acceleration }).seen, ["NMI", ...interrupt, "NMI"]);
      });

      it("an exception, with its error code and CR2", () => {
        assertEquals(first("#UD", { backend, acceleration }).seen, [`${UD_VECTOR}(0)`, ...interrupt, "NMI"]);
        const { seen, rig } = first("#PF", { backend, acceleration });
        assertEquals(seen, ["#PF(0)", ...interrupt, "NMI"]);
        assertEquals(rig.faults.map(({ cr2 }) => cr2), [0x6000_0000]);
      });
    });
  }
}
