import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { encodeIcr, type Icr, MSR_KVM_POLL_CONTROL, type X86Cpu } from "../../../abi/mod.ts";
import { BACKENDS, TRACEPOINTS } from "../../../host/mod.ts";
import {
  APIC_MODES,
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  read,
  send,
  tryingRig,
  write,
} from "../../support/apic.ts";
import { DATA } from "../../support/guests.ts";

const VECTOR = 0x41;
const NMI = 2;
const LOWEST = 0x100;
const SHORTHAND = { self: 0x4_0000, all: 0x8_0000, others: 0xc_0000 } as const;
const CLUSTER = 0x0fff_ffff;

interface Setting {
  readonly backend: (typeof BACKENDS)[number];
  readonly mode: ApicMode;
  readonly vcpus: number;
  /** The logical ID and destination format of an xAPIC, by its ID. */
  readonly logical?: (id: number) => { ldr: number; dfr?: number };
}

/**
 * vCPU 0 sends, everybody takes: runs a guest that sends each message when all APICs are set up, and tells who took an
 * interrupt or an NMI of it.
 */
function takersOf({ backend, mode, vcpus, logical }: Setting, messages: readonly Partial<Icr>[]): number[][] {
  const rig = tryingRig({ vm: { backend, vcpus } });
  const took: number[][] = messages.map(() => []);
  let sending = -1;
  function* identity(cpu: X86Cpu): Asking<number> {
    const id = (yield* read(cpu, mode, 0x020)) as number;
    return mode === "xapic" ? id >>> 24 : id;
  }
  function* setUp(cpu: X86Cpu): Asking<void> {
    yield* enter(cpu, mode);
    if (mode === "xapic" && logical !== undefined) {
      const { ldr, dfr } = logical(yield* identity(cpu));
      if (dfr !== undefined) yield* write(cpu, mode, 0x0e0, dfr);
      yield* write(cpu, mode, 0x0d0, ldr << 24);
    }
  }
  rig.on(VECTOR, function* (cpu) {
    took[sending].push(yield* identity(cpu));
    yield* write(cpu, mode, 0x0b0, 0);
  }).on(NMI, function* (cpu) {
    took[sending].push(yield* identity(cpu));
  }).aps(function* (cpu) {
    yield* setUp(cpu);
    yield cpu.xadd32(DATA, 1);
    yield cpu.sti();
    for (;;) yield cpu.hlt();
  }).finish(function* (cpu) {
    yield* setUp(cpu);
    yield* bringUp(cpu, mode, vcpus - 1);
    do yield cpu.load32(DATA); while (cpu.eax !== vcpus - 1);
    yield cpu.sti();
    for (const message of messages) {
      sending++;
      yield* send(cpu, mode, encodeIcr({ vector: VECTOR, ...message }, mode));
      yield cpu.work(500_000);
    }
    yield cpu.cli();
  });
  return took.map((ids) => ids.sort((a, b) => a - b));
}

for (const backend of BACKENDS) {
  for (const mode of APIC_MODES) {
    const everybody = mode === "xapic" ? 0xff : 0xffff_ffff;

    describe(`an IPI (${backend}, ${mode})`, () => {
      it("goes to the APIC with the physical ID, be it the sender, or to nobody", () => {
        const took = takersOf(
          { backend, mode, vcpus: 3 },
          [2, 1, 0, 7].map((destination) => ({ destination })),
        );
        assertEquals(took, [[2], [1], [0], []]);
      });

      it("goes to everybody, the sender included, if its destination is the broadcast ID", () => {
        assertEquals(takersOf({ backend, mode, vcpus: 3 }, [{ destination: everybody }]), [[0, 1, 2]]);
      });

      it("goes where a shorthand says, whatever the destination is", () => {
        const { self, all, others } = SHORTHAND;
        const took = takersOf(
          { backend, mode, vcpus: 3 },
          [self, all, others].map((shorthand) => ({ shorthand, destination: 1 })),
        );
        assertEquals(took, [[0], [0, 1, 2], [1, 2]]);
      });

      it("may be level-triggered, if it is asserted", () => {
        const took = takersOf({ backend, mode, vcpus: 2 }, [
          { destination: 1, level: true, assert: true },
          { destination: 1, level: true },
          { destination: 1 },
        ]);
        assertEquals(took, [[1], [], [1]]);
      });

      it("is an NMI in that mode, which needs no vector and no enabled interrupts", () => {
        const nmi = { deliveryMode: 0x400, vector: 0 };
        const took = takersOf({ backend, mode, vcpus: 3 }, [
          { ...nmi, destination: 1 },
          { ...nmi, shorthand: SHORTHAND.others },
          { ...nmi, shorthand: SHORTHAND.self },
        ]);
        assertEquals(took, [[1], [1, 2], [0]]);
      });

      it("comes to nothing as SMI, and as ExtINT", () => {
        const took = takersOf({ backend, mode, vcpus: 2 }, [
          { deliveryMode: 0x200, destination: 1 },
          { deliveryMode: 0x700, destination: 1 },
        ]);
        assertEquals(took, [[], []]);
      });
    });
  }

  describe(`a logical IPI of an xAPIC (${backend})`, () => {
    it("goes to every flat ID that shares a bit", () => {
      const flat = { backend, mode: "xapic", vcpus: 4, logical: (id: number) => ({ ldr: 1 << id }) } as const;
      const took = takersOf(flat, [
        { logical: true, destination: 0x05 },
        { logical: true, destination: 0x08 },
        { logical: true, destination: 0xf0 },
        { logical: true, destination: 0xff },
      ]);
      assertEquals(took, [[0, 2], [3], [], [0, 1, 2, 3]]);
    });

    it("goes to IDs of one cluster", () => {
      const logical = (id: number) => ({ ldr: ((id >> 1) << 4) | (1 << (id & 1)), dfr: CLUSTER });
      const took = takersOf({ backend, mode: "xapic", vcpus: 4, logical }, [
        { logical: true, destination: 0x03 },
        { logical: true, destination: 0x12 },
        { logical: true, destination: 0x23 },
        { logical: true, destination: 0x1f },
      ]);
      assertEquals(took, [[0, 1], [3], [], [2, 3]]);
    });

    it("finds IDs that overlap, without the map's help", () => {
      const logical = (id: number) => ({ ldr: [0x01, 0x03, 0x06][id] });
      const took = takersOf({ backend, mode: "xapic", vcpus: 3, logical }, [
        { logical: true, destination: 0x01 },
        { logical: true, destination: 0x02 },
        { logical: true, destination: 0x04 },
      ]);
      assertEquals(took, [[0, 1], [1, 2], [2]]);
    });

    it("of lowest priority goes to one of them", () => {
      const logical = (id: number) => ({ ldr: 1 << id });
      const took = takersOf({ backend, mode: "xapic", vcpus: 4, logical }, [
        { logical: true, destination: 0x0e, deliveryMode: LOWEST },
        { logical: true, destination: 0x03, deliveryMode: LOWEST },
      ]);
      assertEquals(took, [[[1, 2, 3][VECTOR % 3]], [VECTOR % 2]]);
    });
  });

  describe(`a logical IPI of an x2APIC (${backend})`, () => {
    it("goes to up to sixteen IDs of one cluster", () => {
      const took = takersOf({ backend, mode: "x2apic", vcpus: 18 }, [
        { logical: true, destination: 0x0000_8003 },
        { logical: true, destination: 0x0001_0003 },
        { logical: true, destination: 0x0001_0004 },
        { logical: true, destination: 0x0002_ffff },
      ]);
      assertEquals(took, [[0, 1, 15], [16, 17], [], []]);
    });

    it("of lowest priority, which the manual does not allow there, goes to one all the same", () => {
      const took = takersOf({ backend, mode: "x2apic", vcpus: 3 }, [
        { logical: true, destination: 0x0000_0007, deliveryMode: LOWEST },
      ]);
      assertEquals(took, [[VECTOR % 3]]);
    });
  });
}

describe("what an IPI costs", () => {
  /** The exits and events of one IPI from vCPU 0 to vCPU 1, which stands in HLT. */
  function once(mode: ApicMode, message: Partial<Icr>) {
    const rig = tryingRig({ vm: { vcpus: 2 } });
    let before: Record<string, number> = {};
    let after: Record<string, number> = {};
    rig.aps(function* (cpu) {
      yield* enter(cpu, mode);
      yield cpu.wrmsr(MSR_KVM_POLL_CONTROL, 0);
      yield cpu.xadd32(DATA, 1);
      for (;;) yield cpu.hlt(); // With interrupts off: it does not run while we count.
    }).finish(function* (cpu) {
      yield* enter(cpu, mode);
      yield* bringUp(cpu, mode, 1);
      yield cpu.work(1_000_000);
      before = rig.vm.counters();
      yield* send(cpu, mode, encodeIcr({ vector: VECTOR, destination: 1, ...message }, mode));
      after = rig.vm.counters();
    });
    const names = ["kvm_exit", "kvm_apic_ipi", "kvm_apic_accept_irq", "kvm_apic", "kvm_msr", "kvm_mmio"];
    return Object.fromEntries(names.map((name) => [name, (after[name] ?? 0) - (before[name] ?? 0)]));
  }

  it("is one exit through an x2APIC, whose MSR is the whole ICR", () => {
    assertEquals(once("x2apic", {}), {
      kvm_exit: 1,
      kvm_apic_ipi: 1,
      kvm_apic_accept_irq: 1,
      kvm_apic: 1,
      kvm_msr: 1,
      kvm_mmio: 0,
    });
  });

  it("is two through an xAPIC, one for each half", () => {
    assertEquals(once("xapic", {}), {
      kvm_exit: 2,
      kvm_apic_ipi: 1,
      kvm_apic_accept_irq: 1,
      kvm_apic: 2,
      kvm_msr: 0,
      kvm_mmio: 2,
    });
  });

  it("is one attempt for each APIC that is meant, taken or not", () => {
    assertEquals(once("x2apic", { shorthand: SHORTHAND.all })["kvm_apic_accept_irq"], 2);
    assertEquals(once("x2apic", { destination: 9 })["kvm_apic_accept_irq"], 0);
    assertEquals(once("x2apic", { destination: 1, deliveryMode: 0x200 })["kvm_apic_accept_irq"], 1);
  });
});

describe("the events of an APIC write, in the order in which KVM traces them", () => {
  /** The events from the last exit to the next entry. */
  function eventsOf(mode: ApicMode, act: (cpu: X86Cpu) => Asking<void>): string[] {
    const rig = tryingRig({ vm: { trace: 1 << 10 } });
    let records = 0;
    rig.finish(function* (cpu) {
      yield* enter(cpu, mode);
      yield cpu.work(1000);
      records = [...rig.vm.tracer.records()].length;
      yield* act(cpu);
      yield cpu.cpuid(0);
    });
    const names = [...rig.vm.tracer.records()].slice(records).map(({ event }) => TRACEPOINTS[event].name);
    return names.slice(0, names.indexOf("kvm_entry") + 1);
  }

  it("are an accept, the IPI and the register for an x2APIC's ICR that the map resolves", () => {
    const events = eventsOf("x2apic", (cpu) => send(cpu, "x2apic", { low: VECTOR, high: 0 }));
    assertEquals(events, [
      "kvm_exit",
      "kvm_apic_accept_irq",
      "kvm_apic_ipi",
      "kvm_apic",
      "kvm_msr",
      "kvm_entry",
    ]);
  });

  it("are the IPI, accepts and the register for one that the map does not", () => {
    const events = eventsOf("x2apic", (cpu) => send(cpu, "x2apic", { low: SHORTHAND.all | VECTOR, high: 0 }));
    assertEquals(events.slice(0, 5), [
      "kvm_exit",
      "kvm_apic_ipi",
      "kvm_apic_accept_irq",
      "kvm_apic",
      "kvm_msr",
    ]);
  });

  it("begin with the register for an xAPIC's ICR, and for everybody's EOI", () => {
    const self = eventsOf("xapic", function* (cpu) {
      yield* write(cpu, "xapic", 0x300, SHORTHAND.self | VECTOR);
    });
    const from = self.indexOf("kvm_apic");
    assertEquals(self.slice(from, from + 3), ["kvm_apic", "kvm_apic_ipi", "kvm_apic_accept_irq"]);
    const eoi = eventsOf("x2apic", function* (cpu) {
      yield* write(cpu, "x2apic", 0x0b0, 0);
    });
    assertEquals(eoi, ["kvm_exit", "kvm_apic", "kvm_eoi", "kvm_msr", "kvm_entry"]);
  });
});
