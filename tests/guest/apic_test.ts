import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  APIC_DEFAULT_BASE,
  APIC_EOI,
  APIC_ICR,
  APIC_ICR2,
  APIC_SELF_IPI,
  NMI_VECTOR,
  X2APIC_MSR_BASE,
} from "../../abi/mod.ts";
import { type ApicName, data, type Kernel, type KernelProgram, percpu } from "../../guest/mod.ts";
import { BACKENDS } from "../../host/mod.ts";
import { APICS, KernelRig, type KernelRigOptions } from "../support/kernels.ts";

const VECTOR = 0x40;
/** The IDs of processors 0 to 4: in cluster mode three clusters, of two, two and one. */
const IDS = [0, 17, 3, 16, 64];
/** Their logical x2APIC IDs: cluster in bits 31:16, one of 16 bits below (SDM 3A 11.12.10.2). */
const LOGICAL = [0x0_0001, 0x1_0002, 0x0_0008, 0x1_0001, 0x4_0001];
const MASK = 0x70_0000;

/** What a program sends: the ICR writes, and who took VECTOR how often. */
function sending(
  options: KernelRigOptions,
  program: KernelProgram,
): { icrs: [number, number][]; took: number[]; rig: KernelRig } {
  const rig = new KernelRig({ apicIds: IDS, disable: ["pv-ipi"], ...options });
  rig.kernel.irq(VECTOR, function* device(cpu) {
    yield cpu.pause();
  });
  rig.kernel.irq(NMI_VECTOR, function* nmi(cpu) {
    yield cpu.pause();
  });
  let icrs: [number, number][] = [];
  rig.run(function* (cpu, kernel) {
    rig.mark();
    yield* program(cpu, kernel);
    icrs = rig.sends();
    yield cpu.work(100_000);
  });
  return { icrs, took: IDS.map((_, n) => rig.irqs(n, VECTOR)), rig };
}

/** A program that sends to a mask of processors. */
function toMask(
  mask: number,
  operation: "sendIpiMask" | "sendIpiMaskAllButSelf",
  vector = VECTOR,
): KernelProgram {
  return function* (cpu, kernel) {
    yield cpu.store32(MASK, mask);
    yield* kernel.apic[operation](cpu, MASK, vector);
  };
}

/** One ICR write a processor: what physical mode needs, under either name. */
const eachPhysical = (cpus: readonly number[], low = VECTOR): [number, number][] =>
  cpus.map((n) => [low, IDS[n]]);

const PHYSICAL: readonly ApicName[] = ["x2apic-physical", "xapic"];

describe("an APIC driver sends to one processor", () => {
  for (const apic of APICS) {
    it(`by its ID: ${apic}`, () => {
      const { icrs, took } = sending({ apic }, (cpu, kernel) => kernel.apic.sendIpi(cpu, 3, VECTOR));
      assertEquals(icrs, apic === "x2apic-cluster" ? [[0x800 | VECTOR, LOGICAL[3]]] : [[VECTOR, IDS[3]]]);
      assertEquals(took, [0, 0, 0, 1, 0]);
    });

    it(`an NMI, with the delivery mode for it and no vector: ${apic}`, () => {
      const { icrs, rig } = sending({ apic }, (cpu, kernel) => kernel.apic.sendIpi(cpu, 2, NMI_VECTOR));
      assertEquals(icrs, apic === "x2apic-cluster" ? [[0xc00, LOGICAL[2]]] : [[0x400, IDS[2]]]);
      assertEquals(IDS.map((_, n) => rig.irqs(n, NMI_VECTOR)), [0, 0, 1, 0, 0]);
    });

    it(`to itself, by that way too: ${apic}`, () => {
      const { took } = sending({ apic }, (cpu, kernel) => kernel.apic.sendIpi(cpu, 0, VECTOR));
      assertEquals(took, [1, 0, 0, 0, 0]);
    });
  }
});

describe("an APIC driver sends to a mask", () => {
  for (const apic of PHYSICAL) {
    it(`with a write for each processor, in their order: ${apic}`, () => {
      const { icrs, took } = sending({ apic }, toMask(0b11010, "sendIpiMask"));
      assertEquals(icrs, eachPhysical([1, 3, 4]));
      assertEquals(took, [0, 1, 0, 1, 1]);
    });
  }

  it("with a write for each cluster, in the order in which the mask names them: x2apic-cluster", () => {
    const { icrs, took } = sending({ apic: "x2apic-cluster" }, toMask(0b11111, "sendIpiMask"));
    assertEquals(icrs, [
      [0x800 | VECTOR, LOGICAL[0] | LOGICAL[2]],
      [0x800 | VECTOR, LOGICAL[1] | LOGICAL[3]],
      [0x800 | VECTOR, LOGICAL[4]],
    ]);
    assertEquals(took, [1, 1, 1, 1, 1]);
    const other = sending({ apic: "x2apic-cluster" }, toMask(0b11010, "sendIpiMask"));
    assertEquals(other.icrs, [[0x800 | VECTOR, LOGICAL[1] | LOGICAL[3]], [0x800 | VECTOR, LOGICAL[4]]]);
    assertEquals(other.took, [0, 1, 0, 1, 1]);
  });

  for (const apic of APICS) {
    it(`that is empty with nothing: ${apic}`, () => {
      const { icrs, took } = sending({ apic }, toMask(0, "sendIpiMask"));
      assertEquals([icrs, took], [[], [0, 0, 0, 0, 0]]);
    });

    it(`sparing itself where it is asked to: ${apic}`, () => {
      const { took } = sending({ apic }, toMask(0b00111, "sendIpiMaskAllButSelf"));
      assertEquals(took, [0, 1, 1, 0, 0]);
      const alone = sending({ apic }, toMask(1, "sendIpiMaskAllButSelf"));
      assertEquals([alone.icrs, alone.took], [[], [0, 0, 0, 0, 0]]);
    });

    it(`NMIs as well: ${apic}`, () => {
      const { icrs, rig } = sending({ apic }, toMask(0b01010, "sendIpiMask", NMI_VECTOR));
      assertEquals(
        icrs,
        apic === "x2apic-cluster" ? [[0xc00, LOGICAL[1] | LOGICAL[3]]] : eachPhysical([1, 3], 0x400),
      );
      assertEquals(IDS.map((_, n) => rig.irqs(n, NMI_VECTOR)), [0, 1, 0, 1, 0]);
    });

    it(`with interrupts off, and leaves them as they were: ${apic}`, () => {
      for (const on of [true, false]) {
        sending({ apic }, function* (cpu, kernel) {
          yield on ? cpu.sti() : cpu.cli();
          yield* toMask(0b110, "sendIpiMask")(cpu, kernel);
          yield cpu.pushf();
          assertEquals(cpu.interruptsEnabled, on);
          yield cpu.sti();
        });
      }
    });
  }

  it("its own interrupt, sent first, comes when all are sent: xapic", () => {
    const order: string[] = [];
    const rig = new KernelRig({ cpus: 3, apic: "xapic", disable: ["pv-ipi"] });
    rig.kernel.irq(VECTOR, function* (cpu) {
      yield cpu.load32(cpu.gsBase);
      if (cpu.eax === 0) order.push(`self after ${rig.sends().length} sends`);
    });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* toMask(0b111, "sendIpiMask")(cpu, kernel);
      yield cpu.pause(); // The first instruction behind STI's shadow.
    });
    assertEquals(order, ["self after 3 sends"]);
  });
});

describe("an APIC driver sends to all", () => {
  for (const apic of APICS) {
    it(`with one shorthand since v5.4: ${apic}`, () => {
      const others = sending({ apic }, (cpu, kernel) => kernel.apic.sendIpiAllButSelf(cpu, VECTOR));
      assertEquals(others.icrs.map(([low]) => low), [0xc0000 | VECTOR]);
      assertEquals(others.took, [0, 1, 1, 1, 1]);
      const all = sending({ apic }, (cpu, kernel) => kernel.apic.sendIpiAll(cpu, VECTOR));
      assertEquals(all.icrs.map(([low]) => low), [0x80000 | VECTOR]);
      assertEquals(all.took, [1, 1, 1, 1, 1]);
      const nmi = sending({ apic }, (cpu, kernel) => kernel.apic.sendIpiAllButSelf(cpu, NMI_VECTOR));
      assertEquals(nmi.icrs.map(([low]) => low), [0xc0400]);
      assertEquals(IDS.map((_, n) => nmi.rig.irqs(n, NMI_VECTOR)), [0, 1, 1, 1, 1]);
    });

    for (const guestSemantics of ["2018", "2012"] as const) {
      it(`like to any mask in ${guestSemantics}: ${apic}`, () => {
        const options = { apic, guestSemantics };
        const others = sending(options, (cpu, kernel) => kernel.apic.sendIpiAllButSelf(cpu, VECTOR));
        assertEquals(others.icrs.length, apic === "x2apic-cluster" ? 3 : 4);
        assertEquals(others.icrs.every(([low]) => (low & 0xc0000) === 0), true);
        assertEquals(others.took, [0, 1, 1, 1, 1]);
        const all = sending(options, (cpu, kernel) => kernel.apic.sendIpiAll(cpu, VECTOR));
        assertEquals(all.icrs.length, apic === "x2apic-cluster" ? 3 : 5);
        assertEquals(all.took, [1, 1, 1, 1, 1]);
      });
    }
  }
});

describe("an APIC driver sends to itself", () => {
  it("through the ICR's shorthand: xapic", () => {
    const { icrs, took } = sending({ apic: "xapic" }, (cpu, kernel) => kernel.apic.sendIpiSelf(cpu, VECTOR));
    assertEquals([icrs.map(([low]) => low), took], [[0x40000 | VECTOR], [1, 0, 0, 0, 0]]);
  });

  for (const apic of ["x2apic-physical", "x2apic-cluster"] as const) {
    it(`through a register that is there for it: ${apic}`, () => {
      const { took, rig } = sending({ apic }, (cpu, kernel) => kernel.apic.sendIpiSelf(cpu, VECTOR));
      assertEquals(took, [1, 0, 0, 0, 0]);
      assertEquals(rig.written(X2APIC_MSR_BASE + (APIC_SELF_IPI >>> 4)), [[0, BigInt(VECTOR)]]);
      assertEquals(rig.written(X2APIC_MSR_BASE + (APIC_ICR >>> 4)), []);
    });
  }
});

describe("an APIC driver's registers", () => {
  /** What the boot processor reads and writes in its APIC while it sends one IPI. */
  function accesses(apic: ApicName, send: (kernel: Kernel) => KernelProgram): [string, number, number][] {
    const rig = new KernelRig({ cpus: 3, apic, disable: ["pv-ipi"] });
    let seen: [string, number, number][] = [];
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* send(kernel)(cpu, kernel);
      seen = rig.seen("kvm_apic").filter(({ vcpu }) => vcpu === 0)
        .map(({ args }) => [args[0] ? "write" : "read", args[1], args[2]]);
    });
    return seen;
  }

  it("an xAPIC's ICR is looked at until it is free; then the destination is written, and the command last", () => {
    const seen = accesses("xapic", (kernel) => (cpu) => kernel.apic.sendIpi(cpu, 2, VECTOR));
    assertEquals(seen.map(([what, register]) => [what, register]), [
      ["read", APIC_ICR],
      ["write", APIC_ICR2],
      ["write", APIC_ICR],
    ]);
    assertEquals([seen[1][2], seen[2][2]], [2 << 24, VECTOR]);
  });

  it("a shorthand needs no destination", () => {
    const seen = accesses("xapic", (kernel) => (cpu) => kernel.apic.sendIpiAllButSelf(cpu, VECTOR));
    assertEquals(seen.map(([what, register]) => [what, register]), [["read", APIC_ICR], ["write", APIC_ICR]]);
  });

  it("an x2APIC's ICR is one write, not looked at before", () => {
    const seen = accesses("x2apic-physical", (kernel) => (cpu) => kernel.apic.sendIpi(cpu, 2, VECTOR));
    assertEquals(seen, [["write", APIC_ICR, VECTOR]]);
  });

  for (const backend of BACKENDS) {
    it(`an end of interrupt is a write of 0: to the page, or to an MSR (${backend})`, () => {
      for (const apic of APICS) {
        const rig = new KernelRig({ cpus: 1, apic, disable: ["pv-eoi"], vm: { backend } });
        rig.kernel.irq(VECTOR, function* (cpu) {
          yield cpu.pause();
        });
        rig.run(function* (cpu, kernel) {
          rig.mark();
          yield* kernel.apic.sendIpiSelf(cpu, VECTOR);
          yield cpu.pause();
        });
        const eois = rig.seen("kvm_apic").filter(({ args }) => args[1] === APIC_EOI);
        assertEquals(eois.map(({ args }) => [args[0], args[2]]), [[1, 0]]);
        assertEquals(rig.written(X2APIC_MSR_BASE + (APIC_EOI >>> 4)).length, apic === "xapic" ? 0 : 1);
        assertEquals(rig.seen("kvm_eoi").length, 1);
      }
    });
  }

  it("an xAPIC's are in the page that IA32_APIC_BASE names after reset", () => {
    new KernelRig({ apic: "xapic" }).run(function* (cpu, kernel) {
      yield* kernel.apic.read(cpu, 0x30);
      const version = cpu.eax;
      yield cpu.load32(APIC_DEFAULT_BASE + 0x30);
      assertEquals([version & 0xff, cpu.eax], [0x14, version]);
    });
  });

  it("the IDs to send to are those in memory, not those that the kernel was built with", () => {
    const { icrs } = sending({ apic: "x2apic-physical" }, function* (cpu, kernel) {
      yield cpu.store32(percpu(3, "apicId"), IDS[1]);
      yield* kernel.apic.sendIpi(cpu, 3, VECTOR);
    });
    assertEquals(icrs, [[VECTOR, IDS[1]]]);
  });

  it("and so are the processors that are on line", () => {
    const { took } = sending({ guestSemantics: "2018" }, function* (cpu, kernel) {
      yield cpu.lockBtr(data("online"), 2);
      yield* kernel.apic.sendIpiAll(cpu, VECTOR);
    });
    assertEquals(took, [1, 1, 0, 1, 1]);
  });
});
