import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { A0, A1, A2, A3 } from "../../../host/kvm/hypercall_arguments.ts";
import { SEND_IPI } from "../../../host/pv/send_ipi.ts";
import { startLongMode, startProtectedMode } from "../../../host/cpu/mod.ts";
import type { BACKENDS, Vm } from "../../../host/mod.ts";
import { setUp, still, vectors } from "../../support/apic.ts";
import { eventsOf, mark } from "../../support/events.ts";

const EINVAL = -22;
const EOPNOTSUPP = -95;
const U32 = 2n ** 32n;

// A reference (kvm_pv_send_ipi, arch/x86/kvm/lapic.c), written as formulas and on bigints.

/** One local APIC of a virtual machine. */
interface Apic {
  readonly vcpuId: number;
  readonly mode: "xapic" | "x2apic" | "disabled";
  readonly software: boolean;
  /** In xAPIC mode: what software wrote to the ID register. */
  readonly xapicId: number;
}

/** A call's registers. */
interface Call {
  readonly a0: bigint;
  readonly a1: bigint;
  readonly a2: bigint;
  readonly a3: bigint;
  readonly long: boolean;
}

/** What the host does: the APICs to which it delivers, in order, and its answer. */
interface Outcome {
  readonly to: number[];
  readonly result: number;
}

/** Physical slots by ID; undefined where IDs are ambiguous. */
function slots(apics: readonly Apic[], api32: boolean): Map<number, Apic> | undefined {
  const map = new Map<number, Apic>();
  for (const apic of apics.filter(({ mode }) => mode !== "disabled")) {
    if (api32) {
      if (apic.mode === "x2apic" || apic.vcpuId > 0xff) map.set(apic.vcpuId, apic);
      if (apic.mode === "xapic" && !map.has(apic.xapicId)) map.set(apic.xapicId, apic);
    } else {
      const id = apic.mode === "x2apic" ? apic.vcpuId : apic.xapicId;
      if (map.has(id)) return undefined;
      map.set(id, apic);
    }
  }
  return map;
}

/** Whether an APIC takes an interrupt of a delivery mode (__apic_accept_irq). */
function takes(apic: Apic, icr: bigint): boolean {
  const level = (icr & 0x4000n) !== 0n;
  const levelTriggered = (icr & 0x8000n) !== 0n;
  switch ((icr >> 8n) & 7n) {
    case 0n: // Fixed
    case 1n: // Lowest priority: each target by itself
      return apic.software && !(levelTriggered && !level);
    case 3n: // Remote read: a kick
    case 4n: // NMI
    case 6n: // Start-up
      return true;
    case 5n: // INIT
      return level || !levelTriggered;
    default: // SMI on a host without CONFIG_KVM_SMM, ExtINT
      return false;
  }
}

function reference(apics: readonly Apic[], api32: boolean, call: Call): Outcome {
  const mask = call.long ? 2n ** 64n - 1n : U32 - 1n;
  const icr = call.a3 & mask;
  if ((icr & 0xc_0800n) !== 0n) return { to: [], result: EINVAL };
  const map = slots(apics, api32);
  if (map === undefined) return { to: [], result: EOPNOTSUPP };
  const enabled = apics.filter(({ mode }) => mode !== "disabled").map(({ vcpuId }) => vcpuId);
  const max = BigInt(Math.max(255, ...enabled));
  const to: number[] = [];
  let result = 0;
  const part = (bitmap: bigint, min: bigint) => {
    if (min > max) return;
    for (let i = 0n; i < 64n && min + i <= max; i++) {
      const apic = (bitmap >> i) & 1n ? map.get(Number(min + i)) : undefined;
      if (apic === undefined) continue;
      to.push(apic.vcpuId);
      if (takes(apic, icr)) result++;
    }
  };
  const min = call.a2 & (U32 - 1n);
  part(call.a0 & mask, min);
  part(call.a1 & mask, (min + (call.long ? 64n : 32n)) % U32);
  return { to, result };
}

// Arbitrary machines and calls.

const anyId = fc.oneof(
  fc.integer({ min: 1, max: 12 }),
  fc.constantFrom(31, 32, 33, 63, 64, 65, 95, 96, 127, 128, 129, 191, 192, 254, 255, 256, 257, 300, 4095),
);
const anyMode = fc.constantFrom("xapic", "xapic", "x2apic", "x2apic", "disabled") as fc.Arbitrary<
  Apic["mode"]
>;

const anyApics: fc.Arbitrary<Apic[]> = fc.uniqueArray(anyId, { maxLength: 6 }).chain((ids) =>
  fc.tuple(
    ...[0, ...ids].map((vcpuId) =>
      fc.record({
        vcpuId: fc.constant(vcpuId),
        mode: anyMode,
        software: fc.boolean(),
        // Mostly what it is at reset; sometimes what collides with others.
        xapicId: fc.oneof({ weight: 5, arbitrary: fc.constant(vcpuId & 0xff) }, fc.nat(255)),
      })
    ),
  )
);

const anyBitmap = fc.oneof(
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  fc.constantFrom(0n, 1n, 2n ** 31n, 2n ** 32n, 2n ** 63n, U32 - 1n, 2n ** 64n - 1n),
);
const anyMin = fc.oneof(
  fc.bigInt({ min: 0n, max: 300n }),
  fc.bigInt({ min: U32 - 200n, max: U32 + 200n }),
  fc.constantFrom(0n, 4032n, 4095n, 4096n, U32 - 64n, U32 - 32n, 2n ** 63n),
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
);
/** Fixed or another mode, the bits that matter, and those that do not: reserved, and above 31. */
const anyIcr = fc.tuple(
  fc.nat(255),
  fc.constantFrom(0n, 0n, 0n, 0x100n, 0x200n, 0x300n, 0x400n, 0x500n, 0x600n, 0x700n),
  fc.constantFrom(0n, 0n, 0x4000n, 0x8000n, 0xc000n),
  fc.constantFrom(0n, 0n, 0n, 0n, 0x800n, 0x4_0000n, 0x8_0000n, 0xc_0000n),
  fc.constantFrom(0n, 0n, 0x3000n, 0xfff3_0000n, 0xdead_beefn << 32n),
).map(([vector, ...bits]) => bits.reduce((a, b) => a | b, BigInt(vector)));

const anyCall: fc.Arbitrary<Call> = fc.record({
  a0: anyBitmap,
  a1: anyBitmap,
  a2: anyMin,
  a3: anyIcr,
  long: fc.boolean(),
});

/** A virtual machine that stands still, its APICs as told. */
function machineOf(apics: readonly Apic[], api32: boolean, backend: (typeof BACKENDS)[number] = "vmx"): Vm {
  const vm = still({
    backend,
    vcpuIds: apics.map(({ vcpuId }) => vcpuId),
    x2apicApi32BitIds: api32,
    trace: 4096,
  });
  for (const [i, { mode, software, xapicId, vcpuId }] of apics.entries()) {
    const own = mode === "xapic" && xapicId !== (vcpuId & 0xff);
    setUp(vm.vcpus[i].lapic, mode, own ? { software, id: xapicId } : { software });
  }
  return vm;
}

/** Makes the call as the dispatcher does: from the registers. */
function send(vm: Vm, call: Call): Outcome {
  const { processor } = vm.bootstrap;
  if (call.long) startLongMode(processor, 0);
  else startProtectedMode(processor, 0);
  for (const [register, value] of [[A0, call.a0], [A1, call.a1], [A2, call.a2], [A3, call.a3]] as const) {
    processor.regs[register] = Number(value & (U32 - 1n));
    processor.regs[register + 1] = Number(value >> 32n);
  }
  const from = mark(vm);
  const result = SEND_IPI.call(vm.bootstrap);
  return { to: eventsOf(vm, "kvm_apic_accept_irq", from).map(({ args }) => args[0]), result };
}

const IRR = 0x200;
const TMR = 0x180;

describe("KVM_HC_SEND_IPI", () => {
  it("delivers to whom the formula says, in its order, for any registers and any APICs", () => {
    fc.assert(
      fc.property(
        anyApics,
        fc.boolean(),
        fc.array(anyCall, { minLength: 1, maxLength: 6 }),
        (apics, api32, calls) => {
          const vm = machineOf(apics, api32);
          for (const call of calls) assertEquals(send(vm, call), reference(apics, api32, call));
        },
      ),
      { numRuns: 300 },
    );
  });

  it("leaves in each APIC exactly what it accepted: a fixed vector in IRR, with its trigger mode in TMR", () => {
    const fixed = fc.tuple(anyCall, fc.nat(255), fc.constantFrom(0n, 0x100n), fc.boolean()).map((
      [call, vector, mode, level],
    ) => ({ ...call, a3: BigInt(vector) | mode | (level ? 0xc000n : 0n) }));
    fc.assert(
      fc.property(anyApics, fixed, (apics, call) => {
        const vm = machineOf(apics, true);
        const { to } = reference(apics, true, call);
        send(vm, call);
        const vector = Number(call.a3 & 0xffn);
        for (const [i, apic] of apics.entries()) {
          const took = to.includes(apic.vcpuId) && apic.software;
          assertEquals(vectors(vm.vcpus[i].lapic, IRR), took ? [vector] : [], `vCPU ${apic.vcpuId}`);
          assertEquals(
            vectors(vm.vcpus[i].lapic, TMR),
            took && (call.a3 & 0x8000n) !== 0n ? [vector] : [],
            `vCPU ${apic.vcpuId}`,
          );
        }
      }),
      { numRuns: 200 },
    );
  });

  describe("with a minimum near 2^32", () => {
    const apics = [0, 1, 2, 63].map((vcpuId): Apic => ({
      vcpuId,
      mode: "x2apic",
      software: true,
      xapicId: 0,
    }));
    const call = (a0: bigint, a1: bigint, a2: bigint, long = true): Outcome =>
      send(machineOf(apics, false), { a0, a1, a2, a3: 0x41n, long });
    const NOBODY: Outcome = { to: [], result: 0 };

    it("wraps in its second half, and only there: APIC 0 is bit 0 of a1 behind 0xffffffc0", () => {
      assertEquals(call(0n, 1n, 0xffff_ffc0n), { to: [0], result: 1 });
      assertEquals(call(0n, 0b110n, 0xffff_ffc0n), { to: [1, 2], result: 2 });
      assertEquals(call(0n, 2n ** 63n, 0xffff_ffc0n), { to: [63], result: 1 });
      assertEquals(
        call(0n, 1n, 0xffff_ffe0n, false),
        { to: [0], result: 1 },
        "in 32-bit mode behind 0xffffffe0",
      );
      for (const min of [0xffff_ffc0n, 0xffff_ffffn, 0x1000n]) {
        assertEquals(call(2n ** 64n - 1n, 0n, min), NOBODY, "a1 = 0 reaches nobody");
      }
    });

    it("does not reach down: the half that begins below the wrap ends there", () => {
      assertEquals(call(0n, 1n, 0xffff_ffbfn), NOBODY);
      assertEquals(
        call(0n, 2n, 0xffff_ffbfn),
        NOBODY,
        "its second half begins at 0xffffffff, and that is past everybody",
      );
    });

    it("counts its low 32 bits alone", () => {
      assertEquals(call(1n, 0n, 2n ** 32n), { to: [0], result: 1 });
      assertEquals(call(1n, 0n, 0xdead_beef_0000_0002n), { to: [2], result: 1 });
    });
  });

  it("never reaches anybody for an ID that nobody has: no clamping to vCPU 0", () => {
    const apics = [0, 200, 300].map((vcpuId): Apic => ({
      vcpuId,
      mode: "x2apic",
      software: true,
      xapicId: 0,
    }));
    for (const min of [1n, 199n, 201n, 299n, 301n, 4096n, 0x8000_0000n]) {
      const outcome = send(machineOf(apics, false), { a0: 1n, a1: 0n, a2: min, a3: 0x41n, long: true });
      assertEquals(outcome, { to: [], result: 0 }, `minimum ${min}`);
    }
  });

  it("answers -95 while two xAPIC IDs are the same, and works again when they are not", () => {
    const apic = (vcpuId: number, xapicId: number): Apic => ({
      vcpuId,
      mode: "xapic",
      software: true,
      xapicId,
    });
    const vm = machineOf([apic(0, 0), apic(1, 0)], false);
    const call: Call = { a0: 3n, a1: 0n, a2: 0n, a3: 0x41n, long: true };
    assertEquals(send(vm, call), { to: [], result: EOPNOTSUPP });
    assertEquals(
      send(vm, { ...call, a3: 0x841n }).result,
      EINVAL,
      "what is wrong with the ICR is looked at first",
    );
    setUp(vm.vcpus[1].lapic, "xapic", { id: 7 });
    assertEquals(send(vm, { ...call, a0: 0x81n }), { to: [0, 1], result: 2 });
  });
});
