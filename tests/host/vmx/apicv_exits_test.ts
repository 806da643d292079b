import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_DEFAULT_BASE, type X86Cpu } from "../../../abi/mod.ts";
import type { Acceleration, Vm } from "../../../host/mod.ts";
import { type Asking, completes, enter } from "../../support/apic.ts";
import { type Exit, exits, mark, tracingRig } from "../../support/events.ts";

const APIC = APIC_DEFAULT_BASE;
const LEVELS = ["none", "apicv", "ipiv"] as const;

// Without an I/O APIC no EOI needs an exit: those that do have a test of their own.

/** What an access causes: nothing, or an exit with its qualification. */
type Outcome = readonly Exit[];
const NONE: Outcome = [];
const exit = (name: string, qualification = 0): Outcome => [[name, BigInt(qualification)]];
/** Types in bits 15:12 (SDM 3C table 28-6): a linear read is 0, a linear write 1. */
const access = (offset: number, write: boolean) => exit("APIC_ACCESS", (write ? 0x1000 : 0) | offset);
const apicWrite = (offset: number) => exit("APIC_WRITE", offset);
const READ = exit("MSR_READ");
const WRITE = exit("MSR_WRITE");

/** A guest's access, and what it causes without APICv, with APICv, and with IPI virtualization besides (SDM 3C 30.4, 30.5). */
type Row = readonly [
  what: string,
  op: (cpu: X86Cpu) => number,
  none: Outcome,
  apicv: Outcome,
  ipiv?: Outcome,
];

const load = (offset: number) => (cpu: X86Cpu) => cpu.load32(APIC + offset);
const store = (offset: number, value: number) => (cpu: X86Cpu) => cpu.store32(APIC + offset, value);

/** A write of the xAPIC's ICR towards the other vCPU, whose ID stands in the high half. */
const icr = (what: string, low: number, apicv: Outcome, ipiv: Outcome): Row => [
  `${what} by the ICR`,
  store(0x300, low),
  access(0x300, true),
  apicv,
  ipiv,
];

/** A host of 2021 maps the APIC-access page in any case: without APICv, an access is an APIC-access exit (SDM 3C 30.4.1). */
const XAPIC: readonly Row[] = [
  ["EOI", store(0x0b0, 0), access(0x0b0, true), NONE],
  ["the ICR's high half", store(0x310, 1 << 24), access(0x310, true), NONE],
  icr("a fixed IPI", 0x4041, apicWrite(0x300), NONE),
  icr("a fixed IPI, deasserted, which means nothing to an edge,", 0x0041, apicWrite(0x300), NONE),
  icr("an IPI to oneself", 0x4_0041, NONE, NONE),
  icr("a logical IPI to oneself", 0x4_0841, NONE, NONE),
  icr("an IPI of a reserved vector", 0x400f, apicWrite(0x300), apicWrite(0x300)),
  icr("an IPI of a reserved vector to oneself", 0x4_000f, apicWrite(0x300), apicWrite(0x300)),
  icr("a logical IPI", 0x4841, apicWrite(0x300), apicWrite(0x300)),
  icr("an IPI of lowest priority", 0x4141, apicWrite(0x300), apicWrite(0x300)),
  icr("a level-triggered IPI", 0xc041, apicWrite(0x300), apicWrite(0x300)),
  icr("a level-triggered IPI to oneself", 0x4_c041, apicWrite(0x300), apicWrite(0x300)),
  icr("an IPI to all", 0x8_4041, apicWrite(0x300), apicWrite(0x300)),
  icr("an IPI to all but oneself", 0xc_4041, apicWrite(0x300), apicWrite(0x300)),
  icr("an IPI with a reserved bit", 0x6041, apicWrite(0x300), apicWrite(0x300)),
  icr("an IPI to oneself with a reserved bit", 0x5_0041, apicWrite(0x300), apicWrite(0x300)),
  icr("an IPI whose status bit is set", 0x5041, apicWrite(0x300), apicWrite(0x300)),
  ["the ICR's high half, to nobody", store(0x310, 0x77 << 24), access(0x310, true), NONE],
  icr("a fixed IPI to nobody", 0x4041, apicWrite(0x300), apicWrite(0x300)),
  ["the task priority", store(0x080, 0x20), NONE, NONE],
  ["the task priority, lower,", store(0x080, 0x00), NONE, NONE],
  ["a byte of the task priority", (cpu) => cpu.store8(APIC + 0x080, 0x00), NONE, NONE],
  [
    "the task priority's second byte",
    (cpu) => cpu.store8(APIC + 0x081, 0),
    access(0x081, true),
    apicWrite(0x081),
  ],
  ["an exchange of EOI", (cpu) => cpu.xchg32(APIC + 0x0b0, 0), access(0x0b0, true), NONE],
  [
    "an exchange of the processor priority",
    (cpu) => cpu.xchg32(APIC + 0x0a0, 0),
    access(0x0a0, true),
    access(0x0a0, true),
  ],
  [
    "an exchange of the error status",
    (cpu) => cpu.xchg32(APIC + 0x280, 0),
    access(0x280, true),
    apicWrite(0x280),
  ],
  ["EOI, 8 bytes,", (cpu) => cpu.store64(APIC + 0x0b0, 0), access(0x0b0, true), access(0x0b0, true)],
  ["EOI, across its four bytes,", store(0x0b2, 0), access(0x0b2, true), access(0x0b2, true)],
  // Written with what they hold, or what does no harm.
  ...([
    [0x020, 0],
    [0x0d0, 1 << 24],
    [0x0e0, 0xffff_ffff],
    [0x0f0, 0x1ff],
    [0x280, 0],
    [0x320, 0x1_0000],
    [0x330, 0x1_0000],
    [0x340, 0x1_0000],
    [0x350, 0x1_0000],
    [0x360, 0x1_0000],
    [0x370, 0x1_0000],
    [0x380, 0],
    [0x3e0, 0xb],
  ] as const).map(([offset, value]): Row => [
    `register ${offset.toString(16)}`,
    store(offset, value),
    access(offset, true),
    apicWrite(offset),
  ]),
  // What cannot be written, and what no APIC has, exits before the access.
  ...[
    0x000,
    0x030,
    0x090,
    0x0a0,
    0x0c0,
    0x100,
    0x170,
    0x180,
    0x1f0,
    0x200,
    0x270,
    0x290,
    0x2f0,
    0x390,
    0x3f0,
    0x400,
    0xff0,
  ]
    .map((offset): Row => [
      `register ${offset.toString(16)}, which is not written,`,
      store(offset, 0),
      access(offset, true),
      access(offset, true),
    ]),

  ["a read of the task priority", load(0x080), NONE, NONE],
  ["a read of a byte of it", (cpu) => cpu.load8(APIC + 0x080), NONE, NONE],
  ["a read of its second byte", (cpu) => cpu.load8(APIC + 0x081), access(0x081, false), NONE],
  ["a read of its upper half", (cpu) => cpu.load16(APIC + 0x082), access(0x082, false), NONE],
  [
    "a read across its four bytes",
    (cpu) => cpu.load16(APIC + 0x083),
    access(0x083, false),
    access(0x083, false),
  ],
  ["a read behind them", (cpu) => cpu.load8(APIC + 0x084), access(0x084, false), access(0x084, false)],
  ["a read of 8 bytes", (cpu) => cpu.load64(APIC + 0x080), access(0x080, false), access(0x080, false)],
  // SDM 3C 30.4.2: with APIC-register virtualization. The processor priority is not among them.
  ...[
    0x020,
    0x030,
    0x0b0,
    0x0d0,
    0x0e0,
    0x0f0,
    0x100,
    0x170,
    0x180,
    0x1f0,
    0x200,
    0x270,
    0x280,
    0x300,
    0x310,
    0x320,
    0x330,
    0x340,
    0x350,
    0x360,
    0x370,
    0x380,
    0x3e0,
  ]
    .map((offset): Row => [`a read of ${offset.toString(16)}`, load(offset), access(offset, false), NONE]),
  ...[0x000, 0x090, 0x0a0, 0x0c0, 0x290, 0x2f0, 0x390, 0x3f0, 0x400, 0xff0].map((offset): Row => [
    `a read of ${offset.toString(16)}`,
    load(offset),
    access(offset, false),
    access(offset, false),
  ]),
];

const rdmsr = (msr: number) => (cpu: X86Cpu) => cpu.rdmsr(msr);
const wrmsr = (msr: number, low: number, high = 0) => (cpu: X86Cpu) => cpu.wrmsr(msr, low, high);
/** A write of the x2APIC's ICR: 32 without IPI virtualization, with APICv or not, as the bitmap says. */
const icrMsr = (what: string, low: number, high: number, ipiv: Outcome): Row => [
  `${what} by the ICR`,
  wrmsr(0x830, low, high),
  WRITE,
  WRITE,
  ipiv,
];

const X2APIC: readonly Row[] = [
  ["EOI", wrmsr(0x80b, 0), WRITE, NONE],
  ["the self-IPI register", wrmsr(0x83f, 0x41), WRITE, NONE],
  ["the self-IPI register, with vector 16,", wrmsr(0x83f, 0x10), WRITE, NONE],
  ["the self-IPI register, with a reserved vector,", wrmsr(0x83f, 0x0f), WRITE, apicWrite(0x3f0)],
  ["the task priority", wrmsr(0x808, 0x20), NONE, NONE],
  ["the task priority, lower,", wrmsr(0x808, 0x00), NONE, NONE],
  icrMsr("a fixed IPI", 0x4041, 1, NONE),
  icrMsr("a fixed IPI, deasserted,", 0x0041, 1, NONE),
  icrMsr("a fixed IPI to its own ID", 0x0041, 0, NONE),
  icrMsr("an IPI to oneself by the shorthand", 0x4_0041, 0, apicWrite(0x300)),
  icrMsr("an IPI of a reserved vector", 0x400f, 1, apicWrite(0x300)),
  icrMsr("a logical IPI", 0x4841, 2, apicWrite(0x300)),
  icrMsr("an IPI of lowest priority", 0x4141, 1, apicWrite(0x300)),
  icrMsr("a level-triggered IPI", 0xc041, 1, apicWrite(0x300)),
  icrMsr("an IPI to all but oneself", 0xc_4041, 0, apicWrite(0x300)),
  icrMsr("a broadcast", 0x4041, 0xffff_ffff, apicWrite(0x300)),
  icrMsr("an IPI to nobody", 0x4041, 0x77, apicWrite(0x300)),
  icrMsr("an IPI beyond the table", 0x4041, 0x1_0000, apicWrite(0x300)),
  icrMsr("an IPI whose status bit is set", 0x5041, 1, apicWrite(0x300)),
  ...([[0x80f, 0x1ff], [0x828, 0], [0x832, 0x1_0000], [0x837, 0x1_0000], [0x838, 0], [0x83e, 0xb]] as const)
    .map(
      ([msr, value]): Row => [`${msr.toString(16)}`, wrmsr(msr, value), WRITE, WRITE],
    ),

  ["a read of the task priority", rdmsr(0x808), NONE, NONE],
  ["a read of the timer's count", rdmsr(0x839), READ, READ],
  // kvm_lapic_readable_reg_mask, less the CMCI entry that this APIC has not.
  ...[0x802, 0x803, 0x80a, 0x80d, 0x80f, 0x828, 0x830, 0x832, 0x833, 0x834, 0x835, 0x836, 0x837, 0x838, 0x83e]
    .map((msr): Row => [`a read of ${msr.toString(16)}`, rdmsr(msr), READ, NONE]),
  ...Array.from({ length: 24 }, (_, i): Row => [`a read of bank MSR ${i}`, rdmsr(0x810 + i), READ, NONE]),
];

/** x2APIC MSRs that raise #GP: with APICv hardware finds what is reserved, where it does the write at all. */
const FAULTS: readonly Row[] = [
  ["a write of EOI that is not 0", wrmsr(0x80b, 1), NONE, NONE],
  ["a write of EOI with an upper half", wrmsr(0x80b, 0, 1), WRITE, NONE],
  ["a write of the self-IPI register with more than a vector", wrmsr(0x83f, 0x141), WRITE, NONE],
  ["a write of the self-IPI register with an upper half", wrmsr(0x83f, 0x41, 1), WRITE, NONE],
  ["a write of the task priority with more than 8 bits", wrmsr(0x808, 0x100), NONE, NONE],
  ["a write of the task priority with an upper half", wrmsr(0x808, 0, 1), NONE, NONE],
  ...[13, 16, 17, 20, 31].map((bit): Row => [
    `a write of the ICR with reserved bit ${bit}`,
    wrmsr(0x830, (0x4041 | (1 << bit)) >>> 0, 1),
    WRITE,
    WRITE,
    NONE,
  ]),
  ["a write of the ID", wrmsr(0x802, 0), WRITE, WRITE],
  ["a write of the version", wrmsr(0x803, 0), WRITE, WRITE],
  ["a write of the processor priority", wrmsr(0x80a, 0), WRITE, WRITE],
  ["a read of EOI", rdmsr(0x80b), READ, READ],
  ["a read of the self-IPI register", rdmsr(0x83f), READ, READ],
  ["a read of the CMCI entry", rdmsr(0x82f), READ, READ],
  ["a read of what would be the ICR's high half", rdmsr(0x831), READ, READ],
  ["a read beyond the registers", rdmsr(0x840), READ, READ],
];

const expected = ([, , none, apicv, ipiv]: Row, level: Acceleration): Outcome =>
  level === "none" ? none : level === "apicv" ? apicv : ipiv ?? apicv;

/** Runs a table on a guest of two vCPUs; interrupts stay off, so that nothing but the access can cause an exit. */
function* causes(
  cpu: X86Cpu,
  rows: readonly Row[],
  { vm, level, faults }: { vm: Vm; level: Acceleration; faults: boolean },
): Asking<void> {
  for (const row of rows) {
    const [what, op] = row;
    const from = mark(vm);
    assertEquals(yield* completes(op(cpu)), !faults, `${what} completes (${level})`);
    const seen = exits(vm, from).filter(([name]) => name !== "EXTERNAL_INTERRUPT");
    assertEquals(seen, expected(row, level), `${what} (${level})`);
  }
}

describe("VMX: an access to the local APIC", () => {
  for (const level of LEVELS) {
    it(`in xAPIC mode exits as the APIC-access page has it, or not at all (${level})`, () => {
      const rig = tracingRig({
        vm: { acceleration: level, vcpus: 2, ioapicInKernel: false, hostSemantics: "2021" },
      });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* causes(cpu, XAPIC, { vm: rig.vm, level, faults: false });
      });
    });

    it(`in x2APIC mode exits as the MSR bitmap has it, or not at all (${level})`, () => {
      const rig = tracingRig({ vm: { acceleration: level, vcpus: 2, ioapicInKernel: false } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        yield* causes(cpu, X2APIC, { vm: rig.vm, level, faults: false });
      });
    });

    it(`in x2APIC mode raises #GP, before or behind an exit (${level})`, () => {
      const rig = tracingRig({ vm: { acceleration: level, vcpus: 2, ioapicInKernel: false } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "x2apic");
        // Without APICv KVM's slow path ignores what is written to EOI.
        yield* causes(cpu, level === "none" ? FAULTS.slice(1) : FAULTS, { vm: rig.vm, level, faults: true });
      });
    });
  }

  it("has the same exits on a host of today, whose page is there while APICv is", () => {
    for (const level of ["apicv", "ipiv"] as const) {
      const rig = tracingRig({ vm: { acceleration: level, vcpus: 2, ioapicInKernel: false } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* causes(cpu, XAPIC, { vm: rig.vm, level, faults: false });
      });
    }
  });

  it("exits as without APICv where the processor has it and the module parameter is off", () => {
    const rig = tracingRig({
      vm: { acceleration: "ipiv", apicv: false, vcpus: 2, ioapicInKernel: false, hostSemantics: "2021" },
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* causes(cpu, XAPIC, { vm: rig.vm, level: "none", faults: false });
    });
  });

  it("exits as with APICv alone where enable_ipiv is off", () => {
    for (const [mode, rows] of [["xapic", XAPIC], ["x2apic", X2APIC]] as const) {
      const rig = tracingRig({ vm: { acceleration: "ipiv", ipiv: false, vcpus: 2, ioapicInKernel: false } });
      rig.finish(function* (cpu) {
        yield* enter(cpu, mode);
        yield* causes(cpu, rows, { vm: rig.vm, level: "apicv", faults: false });
      });
    }
  });
});
