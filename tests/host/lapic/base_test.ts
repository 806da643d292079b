import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeMsi, IA32_APICBASE, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { type Asking, completes, enter, read, setUp, still, tryingRig, write } from "../../support/apic.ts";

const BASE = 0xfee0_0000;
const MODES = { disabled: 0x000, xapic: 0x800, x2apic: 0xc00, invalid: 0x400 } as const;
type Mode = keyof typeof MODES;

/** The transitions that SDM 3A figure 11-27 has, KVM's checks in kvm_apic_set_base; all others raise #GP. */
const LEGAL: Readonly<Record<Exclude<Mode, "invalid">, readonly Mode[]>> = {
  disabled: ["disabled", "xapic"],
  xapic: ["disabled", "xapic", "x2apic"],
  x2apic: ["disabled", "x2apic"],
};

function* writeBase(cpu: X86Cpu, low: number, high = 0): Asking<boolean> {
  return yield* completes(cpu.wrmsr(IA32_APICBASE, low, high));
}

function* readBase(cpu: X86Cpu): Asking<number> {
  yield cpu.rdmsr(IA32_APICBASE);
  assertEquals(cpu.edx, 0);
  return cpu.eax;
}

for (const backend of BACKENDS) {
  describe(`IA32_APIC_BASE (${backend})`, () => {
    it("is 0xfee00000 and enabled after reset, with the BSP bit on the bootstrap processor alone", () => {
      const { vcpus } = still({ backend, vcpus: 2 });
      assertEquals(vcpus.map(({ lapic }) => lapic.base), [0xfee0_0900, 0xfee0_0800]);
    });

    for (const from of ["disabled", "xapic", "x2apic"] as const) {
      for (const to of ["disabled", "xapic", "x2apic", "invalid"] as const) {
        const legal = LEGAL[from].includes(to);
        it(`${legal ? "lets" : "does not let"} an APIC go from ${from} to ${to}`, () => {
          tryingRig({ vm: { backend } }).finish(function* (cpu) {
            yield* writeBase(cpu, BASE + MODES[from]);
            assertEquals(yield* writeBase(cpu, BASE + MODES[to] + 0x100), legal);
            assertEquals(yield* readBase(cpu), BASE + (legal ? MODES[to] + 0x100 : MODES[from]));
            const mode = legal ? to : from;
            yield cpu.rdmsr(0x1b);
            assertEquals(yield* read(cpu, "x2apic", 0x030), mode === "x2apic" ? 0x5_0014 : "#GP");
            assertEquals(yield* read(cpu, "xapic", 0x030), mode === "xapic" ? 0x5_0014 : 0xffff_ffff);
          });
        });
      }
    }
  });
}

describe("IA32_APIC_BASE", () => {
  it("reserves bits 7:0, bit 9 and everything from MAXPHYADDR on", () => {
    tryingRig().finish(function* (cpu) {
      for (const bit of [0, 1, 2, 3, 4, 5, 6, 7, 9]) {
        assertEquals(yield* writeBase(cpu, 0xfee0_0900 | (1 << bit)), false, `bit ${bit}`);
      }
      // CPUID 0x80000008 says 46 bits.
      for (let bit = 46; bit < 64; bit++) {
        assertEquals(yield* writeBase(cpu, 0xfee0_0900, 2 ** (bit - 32)), false, `bit ${bit}`);
      }
      assertEquals(yield* readBase(cpu), 0xfee0_0900);
      assertEquals(yield* writeBase(cpu, 0xfee0_0900, 2 ** 13), true, "bit 45");
    });
  });

  it("lets a guest move the page and drop the BSP bit", () => {
    tryingRig().finish(function* (cpu) {
      assertEquals(yield* writeBase(cpu, 0x0010_2800, 1), true);
      yield cpu.rdmsr(IA32_APICBASE);
      assertEquals([cpu.eax, cpu.edx], [0x0010_2800, 1]);
      yield cpu.load32(0x1_0010_2030);
      assertEquals(cpu.eax, 0x5_0014);
    });
  });

  it("reserves bit 10 where CPUID does not offer x2APIC mode", () => {
    tryingRig({ vm: { x2apic: false } }).finish(function* (cpu) {
      assertEquals(yield* writeBase(cpu, 0xfee0_0d00), false);
      assertEquals(yield* readBase(cpu), 0xfee0_0900);
    });
  });

  it("decides what CPUID says of an APIC", () => {
    tryingRig().finish(function* (cpu) {
      for (const [base, apic] of [[0xfee0_0900, 1], [0xfee0_0100, 0], [0xfee0_0900, 1], [0xfee0_0d00, 1]]) {
        yield* writeBase(cpu, base);
        yield cpu.cpuid(1);
        assertEquals((cpu.edx >>> 9) & 1, apic);
      }
    });
  });
});

describe("an APIC that changes its mode", () => {
  it("gets its ID back: software's xAPIC ID does not survive, and the x2APIC ID is the vCPU's number", () => {
    const vm = still({ vcpuIds: [0, 0x123] });
    const { lapic } = vm.vcpus[1];
    assertEquals(lapic.get(0x020), 0x2300_0000, "after reset: the low byte");
    setUp(lapic, "xapic", { id: 0x42, ldr: 0x04 });
    assertEquals(lapic.get(0x020), 0x4200_0000);
    setUp(lapic, "x2apic");
    assertEquals(lapic.get(0x020), 0x123);
    assertEquals(lapic.get(0x0d0), 0x0012_0008, "cluster 0x12, bit 3");
    setUp(lapic, "disabled");
    setUp(lapic, "xapic");
    assertEquals(lapic.get(0x020), 0x2300_0000);
  });

  it("gets its xAPIC ID back when it is disabled and enabled again", () => {
    tryingRig().finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x020, 0x4200_0000);
      assertEquals(yield* read(cpu, "xapic", 0x020), 0x4200_0000);
      yield* writeBase(cpu, 0xfee0_0100);
      yield* writeBase(cpu, 0xfee0_0900);
      assertEquals(yield* read(cpu, "xapic", 0x020), 0);
    });
  });

  it("keeps its other registers", () => {
    tryingRig().finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x370, 0x1_0042);
      yield* writeBase(cpu, 0xfee0_0d00);
      assertEquals(yield* read(cpu, "x2apic", 0x370), 0x1_0042);
      assertEquals(yield* read(cpu, "x2apic", 0x0f0), 0x1ff);
      yield* writeBase(cpu, 0xfee0_0100);
      yield* writeBase(cpu, 0xfee0_0900);
      assertEquals(yield* read(cpu, "xapic", 0x370), 0x1_0042);
    });
  });
});

describe("an APIC that is disabled", () => {
  it("takes nothing: no message reaches it, and its own vector table is dead", () => {
    const vm = still({ vcpus: 2 });
    const [, { lapic }] = vm.vcpus;
    setUp(lapic, "disabled");
    for (const deliveryMode of [0x000, 0x400, 0x500]) {
      const message = encodeMsi({ vector: 0x40, deliveryMode, destination: 1 }, "xapic");
      assertEquals(vm.signalMsi(message) <= 0, true, `mode ${deliveryMode.toString(16)}`);
    }
    assertEquals(lapic.pendingEvents, 0);
    assertEquals(vm.vcpus[1].nmiQueued, 0);
    assertEquals(vm.counters()["kvm_apic_accept_irq"], undefined);
  });

  it("comes back with what was requested before", () => {
    const rig = tryingRig();
    const took: number[] = [];
    const handler = function* (cpu: X86Cpu) {
      took.push(cpu.vector);
      yield* write(cpu, "xapic", 0x0b0, 0);
    };
    rig.on(0x40, handler).on(0x50, handler).finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x300, 0x4_4050); // To itself, while interrupts are off.
      yield* writeBase(cpu, 0xfee0_0100);
      yield cpu.sti();
      yield cpu.work(10_000);
      assertEquals(took, [], "nothing comes from an APIC that is disabled");
      yield cpu.cli();
      yield* writeBase(cpu, 0xfee0_0900);
      assertEquals(yield* read(cpu, "xapic", 0x220), 0x1_0000, "IRR still holds 0x50");
      yield* write(cpu, "xapic", 0x300, 0x4_4040); // KVM looks again when something new arrives.
      yield cpu.sti();
      yield cpu.work(10_000);
      assertEquals(took, [0x50, 0x40]);
      yield cpu.cli();
    });
  });
});
