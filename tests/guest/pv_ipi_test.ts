import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { APIC_DEFAULT_BASE, APIC_ID, NMI_VECTOR } from "../../abi/mod.ts";
import {
  data,
  type KernelProgram,
  RESCHEDULE_VECTOR,
  smpCallFunctionMany,
  smpCallFunctionSingle,
} from "../../guest/mod.ts";
import { BACKENDS } from "../../host/mod.ts";
import { APICS, KernelRig, type KernelRigOptions, WIDTHS } from "../support/kernels.ts";

const ONES = 2n ** 64n - 1n;
const ONES32 = 0xffff_ffffn;

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, i) => from + i);
}

const VECTOR = 0x40;
const MASK = 0x70_0000;

/** Boots a kernel with PV IPIs, and lets it send. */
function sending(options: KernelRigOptions, program: KernelProgram): KernelRig {
  const rig = new KernelRig(options);
  for (const vector of [VECTOR, NMI_VECTOR]) {
    rig.kernel.irq(vector, function* interrupt(cpu) {
      yield cpu.pause();
    });
  }
  return rig.run(function* (cpu, kernel) {
    rig.mark();
    yield* program(cpu, kernel);
    yield cpu.work(1_000_000);
  });
}

/** A program that sends to a mask of up to 64 processors. */
function toMask(
  mask: bigint,
  operation: "sendIpiMask" | "sendIpiMaskAllButSelf",
  vector = VECTOR,
): KernelProgram {
  return function* (cpu, kernel) {
    yield cpu.store32(MASK, Number(mask & 0xffff_ffffn));
    yield cpu.store32(MASK + 4, Number(mask >> 32n));
    yield* kernel.apic[operation](cpu, MASK, vector);
  };
}

function argsOf(rig: KernelRig): (readonly bigint[])[] {
  return rig.hypercalls().map(({ nr, args }) => {
    assertEquals(nr, 10n);
    return args;
  });
}

/** The processors that took an interrupt, each of them once. */
function tookOnce(rig: KernelRig, vector = VECTOR): number[] {
  return range(0, rig.kernel.cpus - 1).filter((n) => {
    const count = rig.irqs(n, vector);
    assertEquals(count <= 1, true);
    return count === 1;
  });
}

describe("a booted kernel with PV IPIs", () => {
  for (const backend of BACKENDS) {
    for (const apic of APICS) {
      it(`sends to all 80 with one hypercall, and no ICR write: ${apic}, ${backend}`, () => {
        const rig = sending(
          { cpus: 80, apic, guestSemantics: "2018", vm: { backend } },
          (cpu, kernel) => kernel.apic.sendIpiAll(cpu, VECTOR),
        );
        assertEquals(argsOf(rig), [[ONES, 0xffffn, 0n, BigInt(VECTOR)]]);
        assertEquals(rig.sends(), []);
        assertEquals(tookOnce(rig), range(0, 79));
      });
    }

    it(`in 32-bit mode needs two: ${backend}`, () => {
      const rig = sending(
        { cpus: 80, bits: 32, guestSemantics: "2018", vm: { backend } },
        (cpu, kernel) => kernel.apic.sendIpiAll(cpu, VECTOR),
      );
      assertEquals(argsOf(rig), [[ONES32, ONES32, 0n, BigInt(VECTOR)], [0xffffn, 0n, 64n, BigInt(VECTOR)]]);
      assertEquals(tookOnce(rig), range(0, 79));
    });
  }

  it("spares itself in a call for all others", () => {
    const rig = sending(
      { cpus: 80, guestSemantics: "2018" },
      (cpu, kernel) => kernel.apic.sendIpiAllButSelf(cpu, VECTOR),
    );
    assertEquals(argsOf(rig), [[ONES, 0x7fffn, 1n, BigInt(VECTOR)]]);
    assertEquals(tookOnce(rig), range(1, 79));
  });

  it("reaches 300 in three windows", () => {
    const rig = sending(
      { cpus: 300, guestSemantics: "2018" },
      (cpu, kernel) => kernel.apic.sendIpiAll(cpu, VECTOR),
    );
    assertEquals(argsOf(rig), [
      [ONES, ONES, 0n, 0x40n],
      [ONES, ONES, 128n, 0x40n],
      [2n ** 44n - 1n, 0n, 256n, 0x40n],
    ]);
    assertEquals(tookOnce(rig), range(0, 299));
  });

  it("packs in the order of processors, not of APIC IDs", () => {
    for (
      const [apicIds, mask, windows] of [
        [[0, 127], 0b11n, [[1n, 2n ** 63n, 0n]]],
        [[0, 128], 0b11n, [[1n, 0n, 0n], [1n, 0n, 128n]]],
        [[0, 200, 100, 72, 73], 0b11110n, [[1n, 2n ** 36n, 100n], [3n, 0n, 72n]]],
        [[0, 10, 5, 140], 0b1110n, [[0x21n, 0n, 5n], [1n, 0n, 140n]]],
      ] as const
    ) {
      const rig = sending({ apicIds }, toMask(mask, "sendIpiMask"));
      assertEquals(argsOf(rig), windows.map((window) => [...window, BigInt(VECTOR)]));
      assertEquals(
        tookOnce(rig),
        range(0, apicIds.length - 1).filter((n) => ((mask >> BigInt(n)) & 1n) === 1n),
      );
    }
  });

  it("sends NMIs with their delivery mode, to all but itself", () => {
    const rig = sending({ cpus: 5 }, toMask(0b11111n, "sendIpiMaskAllButSelf", NMI_VECTOR));
    assertEquals(argsOf(rig), [[0b1111n, 0n, 1n, 0x400n]]);
    assertEquals(tookOnce(rig, NMI_VECTOR), [1, 2, 3, 4]);
  });

  it("makes no hypercall for nobody", () => {
    const rig = sending({ cpus: 3 }, function* (cpu, kernel) {
      yield* toMask(0n, "sendIpiMask")(cpu, kernel);
      yield* toMask(1n, "sendIpiMaskAllButSelf")(cpu, kernel);
    });
    assertEquals([rig.hypercalls(), tookOnce(rig)], [[], []]);
  });

  it("leaves interrupts as they were", () => {
    sending({ cpus: 3 }, function* (cpu, kernel) {
      for (const on of [true, false]) {
        yield on ? cpu.sti() : cpu.cli();
        yield* toMask(0b111n, "sendIpiMask")(cpu, kernel);
        yield cpu.pushf();
        assertEquals(cpu.interruptsEnabled, on);
      }
      yield cpu.sti();
    });
  });

  it("takes its own interrupt only when all windows are sent", () => {
    const rig = new KernelRig({ apicIds: [0, 200, 400] });
    let calls = -1;
    rig.kernel.irq(VECTOR, function* (cpu) {
      yield cpu.load32(cpu.gsBase);
      if (cpu.eax === 0) calls = rig.hypercalls().length;
    });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* toMask(0b111n, "sendIpiMask")(cpu, kernel);
      yield cpu.pause();
    });
    assertEquals(calls, 3);
  });

  it("reaches exactly the processors of any mask, whatever their IDs", () => {
    const ids = fc.uniqueArray(fc.integer({ min: 1, max: 500 }), { minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(ids, fc.bigInt(0n, 2n ** 41n - 1n), fc.constantFrom(...WIDTHS), (others, any, bits) => {
        const mask = any & (2n ** BigInt(others.length + 1) - 1n);
        const rig = sending({ apicIds: [0, ...others], bits }, toMask(mask, "sendIpiMask"));
        assertEquals(tookOnce(rig), range(0, others.length).filter((n) => ((mask >> BigInt(n)) & 1n) === 1n));
        assertEquals(rig.sends(), []);
      }),
      { numRuns: 25 },
    );
  });
});

describe("what PV IPIs override", () => {
  /** How each operation of a three-processor kernel is sent. */
  function ways(options: KernelRigOptions): Record<string, "hypercall" | "ICR"> {
    const result: Record<string, "hypercall" | "ICR"> = {};
    const rig = new KernelRig({ cpus: 3, ...options });
    rig.kernel.irq(VECTOR, function* (cpu) {
      yield cpu.pause();
    });
    rig.run(function* (cpu, kernel) {
      const { apic } = kernel;
      yield cpu.store32(MASK, 0b110);
      const operations: Record<string, () => Generator<number, void, void>> = {
        single: () => apic.sendIpi(cpu, 1, VECTOR),
        self: () => apic.sendIpiSelf(cpu, VECTOR),
        mask: () => apic.sendIpiMask(cpu, MASK, VECTOR),
        maskAllButSelf: () => apic.sendIpiMaskAllButSelf(cpu, MASK, VECTOR),
        allButSelf: () => apic.sendIpiAllButSelf(cpu, VECTOR),
        all: () => apic.sendIpiAll(cpu, VECTOR),
      };
      for (const [name, send] of Object.entries(operations)) {
        rig.mark();
        yield* send();
        const [calls, icrs] = [rig.hypercalls().length, rig.sends().length];
        assertEquals(calls === 0, icrs > 0);
        result[name] = calls > 0 ? "hypercall" : "ICR";
        yield cpu.work(100_000);
      }
    });
    return result;
  }

  const NATIVE = {
    single: "ICR",
    self: "ICR",
    mask: "ICR",
    maskAllButSelf: "ICR",
    allButSelf: "ICR",
    all: "ICR",
  } as const;

  for (const apic of APICS) {
    it(`since v5.4: masks alone; all have their shorthand (${apic})`, () => {
      for (const guestSemantics of ["v6.19", "2022", "2021"] as const) {
        const found = ways({ apic, guestSemantics });
        assertEquals(found, { ...NATIVE, mask: "hypercall", maskAllButSelf: "hypercall" });
      }
    });

    it(`in 2018: whatever goes to several (${apic})`, () => {
      assertEquals(ways({ apic, guestSemantics: "2018" }), {
        ...NATIVE,
        mask: "hypercall",
        maskAllButSelf: "hypercall",
        allButSelf: "hypercall",
        all: "hypercall",
      });
    });

    it(`in 2012: nothing, though the host offers them (${apic})`, () => {
      assertEquals(ways({ apic, guestSemantics: "2012" }), NATIVE);
    });

    it(`where the host does not offer them, or they are disabled: nothing (${apic})`, () => {
      assertEquals(ways({ apic, vm: { features: ["PV_EOI"] } }), NATIVE);
      assertEquals(ways({ apic, disable: ["pv-ipi"] }), NATIVE);
    });
  }

  it("on one processor: nothing, and the driver is not in use", () => {
    const rig = new KernelRig({ cpus: 1 }).run();
    assertEquals(rig.kernel.drivers.map(({ name }) => name), ["pv-eoi"]);
  });

  it("rescheduling and calls of single processors never use the hypercall", () => {
    const rig = new KernelRig({ cpus: 4, guestSemantics: "2018" });
    const func = rig.kernel.smpFunction(function* nothing(cpu) {
      yield cpu.pause();
    });
    rig.run(function* (cpu, kernel) {
      rig.mark();
      yield* kernel.apic.sendIpi(cpu, 2, RESCHEDULE_VECTOR);
      yield* smpCallFunctionSingle(cpu, kernel, 3, { func, info: 0 });
    });
    assertEquals(rig.hypercalls(), []);
    assertEquals(rig.sends(), [[0xfd, 2], [0xfb, 3]]);
  });

  it("a call for some processors does, a call for all others does not today", () => {
    for (const [guestSemantics, all] of [["v6.19", "ICR"], ["2018", "hypercall"]] as const) {
      const rig = new KernelRig({ cpus: 4, guestSemantics });
      const func = rig.kernel.smpFunction(function* nothing(cpu) {
        yield cpu.pause();
      });
      rig.run(function* (cpu, kernel) {
        yield cpu.store32(MASK, 0b0110);
        rig.mark();
        yield* smpCallFunctionMany(cpu, kernel, MASK, { func, info: 0 });
        assertEquals([argsOf(rig), rig.sends()], [[[3n, 0n, 1n, 0xfcn]], []]);
        rig.mark();
        yield* smpCallFunctionMany(cpu, kernel, data("online"), { func, info: 0 });
        if (all === "ICR") assertEquals([argsOf(rig), rig.sends()], [[], [[0xc00fc, 0]]]);
        else assertEquals([argsOf(rig), rig.sends()], [[[7n, 0n, 1n, 0xfcn]], []]);
      });
    }
  });
});

describe("a PV IPI that the host refuses", () => {
  /** A kernel whose processor 2 has taken processor 1's xAPIC ID: KVM has no optimized map then. */
  function aliased(options: KernelRigOptions = {}): KernelRig {
    return new KernelRig({
      cpus: 3,
      apic: "xapic",
      *secondary(cpu) {
        yield cpu.load32(cpu.gsBase);
        if (cpu.eax === 2) yield cpu.store32(APIC_DEFAULT_BASE + APIC_ID, 1 << 24);
        for (;;) {
          yield cpu.sti();
          yield cpu.hlt();
        }
      },
      ...options,
    });
  }

  it("is lost, and warned about once, however often and to whomever it was sent", () => {
    const rig = aliased();
    rig.kernel.irq(VECTOR, function* (cpu) {
      yield cpu.pause();
    });
    rig.run(function* (cpu, kernel) {
      yield cpu.work(100_000);
      rig.mark();
      yield* toMask(0b110n, "sendIpiMask")(cpu, kernel);
      assertEquals(cpu.rax, 2n ** 64n - 95n);
      yield* toMask(0b010n, "sendIpiMask")(cpu, kernel);
      yield* toMask(0b100n, "sendIpiMask")(cpu, kernel);
      yield cpu.work(100_000);
    });
    assertEquals(rig.hypercalls().length, 3); // No retry,
    assertEquals(rig.sends(), []); // no fallback to the ICR,
    assertEquals(tookOnce(rig), []); // and nobody got anything.
    assertEquals(rig.kernel.log, ["KVM_HC_SEND_IPI failed: -95"]);
  });

  it("is an IPI like any other to a kernel that does not use the hypercall", () => {
    const rig = aliased({ disable: ["pv-ipi"] });
    rig.kernel.irq(VECTOR, function* (cpu) {
      yield cpu.pause();
    });
    rig.run(function* (cpu, kernel) {
      yield cpu.work(100_000);
      yield* toMask(0b010n, "sendIpiMask")(cpu, kernel);
      yield cpu.work(100_000);
    });
    assertEquals(tookOnce(rig), [1, 2]); // Both answer to that ID.
    assertEquals(rig.kernel.log, []);
  });

  it("nothing is printed where all goes well", () => {
    assertEquals(sending({ cpus: 3 }, toMask(0b111n, "sendIpiMask")).kernel.log, []);
  });
});
