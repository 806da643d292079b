import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_REGISTERS, apicRegister } from "../../../abi/mod.ts";
import { BACKENDS } from "../../../host/mod.ts";
import { type ApicMode, enter, lookAtEvents, read, tryingRig, write } from "../../support/apic.ts";

/**
 * The register matrix, as SDM 3A tables 11-1 and 11-6 and kvm_lapic_reg_write have it: what a register reads after
 * ones and after zeros were written to it. "-" is a register that cannot be read; a single value one that only reads.
 */
type Row = readonly [offset: number, xapic: Access, x2apic: Access];
type Access = "-" | number | readonly [afterOnes: number, afterZeros: number];

const LVT = [0x1_17ff, 0] as const;
const LINT = [0x1_f7ff, 0] as const;

const MATRIX: readonly Row[] = [
  [0x020, [0xff00_0000, 0], 0], // ID
  [0x030, 0x0005_0014, 0x0005_0014], // Version 0x14, six LVT entries, no directed EOI beside an in-kernel I/O APIC
  [0x080, [0xff, 0], [0xff, 0]], // TPR
  [0x090, 0, "-"], // Arbitration priority
  [0x0a0, 0, 0], // PPR
  [0x0b0, "-", "-"], // EOI
  [0x0c0, "-", "-"], // Remote read
  [0x0d0, [0xff00_0000, 0], 1], // Logical destination: x2APIC 0 is bit 0 of cluster 0
  [0x0e0, [0xffff_ffff, 0x0fff_ffff], "-"], // Destination format
  [0x0f0, [0x3ff, 0], [0x3ff, 0]], // Spurious vector
  ...Array.from({ length: 24 }, (_, i): Row => [0x100 + 16 * i, 0, 0]), // ISR, TMR, IRR
  [0x280, 0, 0], // ESR
  [0x300, [0xffff_efff, 0], [0x000c_cfff, 0]], // ICR; in x2APIC mode ones but for the reserved bits
  [0x310, [0xff00_0000, 0], "-"], // ICR high
  [0x320, [0x7_10ff, 0], [0x7_10ff, 0]], // LVT timer
  [0x330, LVT, LVT], // LVT thermal
  [0x340, LVT, LVT], // LVT counters
  [0x350, LINT, LINT], // LVT LINT0
  [0x360, LINT, LINT], // LVT LINT1
  [0x370, [0x1_10ff, 0], [0x1_10ff, 0]], // LVT error
  [0x380, [0xffff_ffff, 0], [0xffff_ffff, 0]], // Initial count
  [0x390, 0, 0], // Current count
  [0x3e0, [0xb, 0], [0xb, 0]], // Divide configuration
];

const ROWS = new Map(MATRIX.map(([offset, xapic, x2apic]) => [offset, { xapic, x2apic }]));

/** The ones that are written to a register: all but what x2APIC mode reserves. */
function ones(mode: ApicMode, offset: number): number {
  if (mode === "xapic") return 0xffff_ffff;
  const reserved: Readonly<Record<number, number>> = {
    0x080: 0xff,
    0x280: 0,
    0x300: 0x000c_dfff,
    0x3f0: 0xff,
  };
  return reserved[offset] ?? 0xffff_ffff;
}

/** Registers of x2APIC mode that a write does not fault on though they do not read what was written. */
const WRITE_ONLY: ReadonlySet<number> = new Set([0x0b0, 0x280, 0x3f0]);

/** What is written to a register so that the others' behaviour is the same again. */
function rest(offset: number): number {
  return offset === 0x0f0 ? 0x1ff : 0;
}

for (const backend of BACKENDS) {
  /** SVM takes the task priority from V_TPR at each exit: four bits of it (sync_cr8_to_lapic). */
  const kept = (offset: number, value: number) =>
    offset === 0x080 && backend === "svm" ? value & 0xf0 : value;

  describe(`the registers of a local APIC (${backend})`, () => {
    it("keep in xAPIC mode what their matrix says, and ignore the rest", () => {
      const rig = tryingRig({ vm: { backend } });
      const emulated = () => rig.vm.counters()["kvm_apic"] ?? 0;
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* lookAtEvents(cpu); // SVM intercepts CR8, and does not use V_TPR, until KVM has.
        for (let offset = 0; offset < 0x1000; offset += 16) {
          const access = ROWS.get(offset)?.xapic ?? "-";
          const at = `offset ${offset.toString(16)}`;
          if (access === "-") {
            const before = emulated();
            assertEquals(yield* read(cpu, "xapic", offset), 0, at);
            assertEquals(emulated(), before, `${at} answered`);
            assertEquals(yield* write(cpu, "xapic", offset, 0), true, at);
            continue;
          }
          const [afterOnes, afterZeros] = typeof access === "number" ? [access, access] : access;
          const before = emulated();
          assertEquals(yield* write(cpu, "xapic", offset, 0xffff_ffff), true, at);
          assertEquals(yield* read(cpu, "xapic", offset), kept(offset, afterOnes), at);
          assertEquals(yield* write(cpu, "xapic", offset, 0), true, at);
          assertEquals(yield* read(cpu, "xapic", offset), afterZeros, at);
          assertEquals(emulated(), before + 4, `${at} did not answer`);
          yield* write(cpu, "xapic", offset, rest(offset));
        }
      });
    });

    it("keep in x2APIC mode what their matrix says, and raise #GP for the rest", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        for (let offset = 0; offset < 0x1000; offset += 16) {
          const access = ROWS.get(offset)?.x2apic ?? "-";
          const at = `MSR 0x${(0x800 + offset / 16).toString(16)}`;
          const writable = typeof access === "object" || WRITE_ONLY.has(offset);
          const [afterOnes, afterZeros] = typeof access === "object"
            ? access
            : access === "-"
            ? (["#GP", "#GP"] as const)
            : [access, access];
          const expected = typeof afterOnes === "number" ? kept(offset, afterOnes) : afterOnes;
          assertEquals(yield* write(cpu, "x2apic", offset, ones("x2apic", offset)), writable, at);
          assertEquals(yield* read(cpu, "x2apic", offset), expected, at);
          assertEquals(yield* write(cpu, "x2apic", offset, 0), writable, at);
          assertEquals(yield* read(cpu, "x2apic", offset), afterZeros, at);
          if (writable) yield* write(cpu, "x2apic", offset, rest(offset));
        }
      });
    });

    it("reserve bits 63:32 in x2APIC mode, but for the ICR", () => {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        for (const [offset, { x2apic }] of ROWS) {
          if (typeof x2apic !== "object" && !WRITE_ONLY.has(offset)) continue;
          for (const high of [1, 0x8000_0000]) {
            const took = yield* write(cpu, "x2apic", offset, rest(offset), high);
            assertEquals(took, offset === 0x300, `MSR 0x${(0x800 + offset / 16).toString(16)}`);
          }
        }
        yield cpu.rdmsr(0x830);
        assertEquals(cpu.edx, 0x8000_0000, "the ICR's destination");
      });
    });
  });
}

describe("the x2APIC registers", () => {
  it("are out of reach in xAPIC mode and while the APIC is disabled", () => {
    tryingRig().finish(function* (cpu) {
      for (const base of [0xfee0_0900, 0xfee0_0100]) {
        yield cpu.wrmsr(0x1b, base);
        for (let offset = 0; offset < 0x400; offset += 16) {
          assertEquals(yield* read(cpu, "x2apic", offset), "#GP");
          assertEquals(yield* write(cpu, "x2apic", offset, 0), false);
        }
      }
    });
  });

  it("take a self-IPI of one byte, and an ESR write of zero only", () => {
    tryingRig().finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      assertEquals(yield* write(cpu, "x2apic", 0x3f0, 0x40), true);
      assertEquals(yield* read(cpu, "x2apic", 0x220), 1, "vector 0x40 is requested");
      for (const value of [0x100, 0x8000_0040]) {
        assertEquals(yield* write(cpu, "x2apic", 0x3f0, value), false);
      }
      assertEquals(yield* write(cpu, "x2apic", 0x280, 0), true);
      assertEquals(yield* write(cpu, "x2apic", 0x280, 1), false);
    });
  });

  it("have VMX look at the TPR's reserved bits, for KVM leaves its MSR to the hardware, and SVM not", () => {
    for (const [backend, took] of [["vmx", false], ["svm", true]] as const) {
      tryingRig({ vm: { backend } }).finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        assertEquals(yield* write(cpu, "x2apic", 0x080, 0x30), true);
        assertEquals(yield* write(cpu, "x2apic", 0x080, 0x140), took, backend);
        assertEquals(yield* read(cpu, "x2apic", 0x080), took ? 0x40 : 0x30, backend);
      });
    }
  });

  it("have each reserved bit of the ICR raise #GP by itself, and clear the busy bit silently", () => {
    tryingRig().finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      const reserved = [13, 16, 17, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31];
      for (let bit = 0; bit < 32; bit++) {
        // Bits 19:18 alone are shorthands; the vector's and mode's bits make an SMI at most. All reach nobody.
        const took = yield* write(cpu, "x2apic", 0x300, (1 << bit) >>> 0, 0x77);
        assertEquals(took, !reserved.includes(bit), `bit ${bit}`);
      }
      assertEquals(yield* write(cpu, "x2apic", 0x300, 0x1000, 0x77), true);
      assertEquals(yield* read(cpu, "x2apic", 0x300), 0);
    });
  });

  it("ignored the ICR's reserved bits before 2022 (quirk x2apic-icr-reserved-ignored)", () => {
    const rig = tryingRig({ machine: { quirks: ["x2apic-icr-reserved-ignored"] } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      assertEquals(yield* write(cpu, "x2apic", 0x300, 0xfff3_2000, 0x77), true);
      assertEquals(yield* read(cpu, "x2apic", 0x300), 0xfff3_2000);
    });
  });
});

describe("the register table of the ABI", () => {
  it("says of each register what the matrix says", () => {
    for (const { offset, name, count, xapic, x2apic, writable } of APIC_REGISTERS) {
      if (name === "APIC_LVTCMCI") continue; // KVM has it only where MCG_CAP says so; the matrix is of a vCPU without.
      for (let i = 0; i < count; i++) {
        const row = ROWS.get(offset + 16 * i) ?? { xapic: "-", x2apic: "-" };
        const says = (access: Access) => access === "-" ? "" : typeof access === "number" ? "r" : "rw";
        const without = (access: string) => access.replace(/^w$|^-$/, "");
        // ESR is written without keeping anything.
        const expected = name === "APIC_ESR" ? "rw" : undefined;
        assertEquals(without(xapic), expected ?? says(row.xapic), name);
        assertEquals(without(x2apic), expected ?? says(row.x2apic), name);
        if (typeof row.xapic === "object") {
          assertEquals((row.xapic[0] ^ row.xapic[1]) >>> 0, writable >>> 0, name);
        }
      }
    }
    assertEquals(apicRegister(0x1f0)?.name, "APIC_TMR");
    assertEquals(apicRegister(0x1f8), undefined);
  });
});
