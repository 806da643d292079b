import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { APIC_DEFAULT_BASE, APIC_REGISTERS, type X86Cpu } from "../../../abi/mod.ts";
import type { Acceleration } from "../../../host/mod.ts";
import type { Vmx } from "../../../host/vmx/mod.ts";
import {
  APIC_MODES,
  type ApicMode,
  type Asking,
  completes,
  enter,
  read,
  still,
  write,
} from "../../support/apic.ts";
import { type Exit, exits, exitsOf, lines, mark, tracingRig } from "../../support/events.ts";

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

/** A guest's access, and what it causes without APICv, with APICv, and with IPI virtualization besides (x86-hw 4.1). */
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

/** A host of 2021 maps the APIC-access page in any case: its column without APICv is that of x86-hw 4.1. */
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
  { vm, level, faults }: { vm: Parameters<typeof exitsOf>[0]; level: Acceleration; faults: boolean },
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

describe("VMX: a virtualized APIC", () => {
  it("is where the VMCS says, a page for each vCPU; the access page is one for all", () => {
    const vm = still({ acceleration: "apicv", vcpus: 2 });
    const other = vm.machine.createVm({ acceleration: "apicv" });
    const [a, b, c] = [...vm.vcpus, ...other.vcpus].map((vcpu) => (vcpu.backend as Vmx).vmcs);
    for (const [i, { virtualApicPage }] of [a, b, c].entries()) {
      const { lapic } = [...vm.vcpus, ...other.vcpus][i];
      assertEquals(virtualApicPage % 4096, 0);
      assertEquals(vm.machine.hostMemory.at(virtualApicPage) === lapic.page, true);
    }
    assertEquals(a.apicAccessPage, b.apicAccessPage);
    assertEquals(new Set([a, b, c].flatMap((v) => [v.virtualApicPage, v.apicAccessPage])).size, 5);
    assertEquals(vm.machine.hostMemory.at(a.apicAccessPage).byteLength, 4096);
  });

  it("has nothing requested and nothing in service behind RESET, and INIT leaves the exits of EOIs as they are", () => {
    const vm = still({ acceleration: "apicv" });
    const { vmcs } = vm.bootstrap.backend as Vmx;
    for (const init of [true, false]) {
      vm.bootstrap.lapic.setIrr(0x52);
      vmcs.rvi = 0x52;
      vmcs.svi = 0x31;
      vmcs.eoiExitBitmap[2] = 1;
      vm.bootstrap.reset(init);
      // After INIT, RVI is what the next synchronization finds: nothing.
      for (const _ of vm.bootstrap.backend.syncPirToIrr() ?? []) { /* Straight through. */ }
      assertEquals([vmcs.rvi, vmcs.svi, vmcs.eoiExitBitmap[2]], [0, 0, init ? 1 : 0]);
    }
  });

  /** Registers, and what is written to them before all are read. */
  const VALUES: readonly (readonly [offset: number, value: number])[] = [
    [0x080, 0x35],
    [0x0d0, 0x5500_0000],
    [0x0e0, 0x0fff_ffff],
    [0x0f0, 0xffff_f3fe],
    [0x320, 0xffff_ffff],
    [0x330, 0xffff_ffff],
    [0x340, 0x1_0432],
    [0x350, 0xffff_ffff],
    [0x360, 0x8700],
    [0x370, 0x1_00fe],
    [0x380, 0],
    [0x3e0, 0xffff_ffff],
    [0x310, 0xffff_ffff],
  ];

  function registers(level: Acceleration, mode: ApicMode): (readonly [string, number | "#GP"])[] {
    const rig = tracingRig({ vm: { acceleration: level } });
    const values: (readonly [string, number | "#GP"])[] = [];
    rig.finish(function* (cpu) {
      yield* enter(cpu, mode);
      for (const [offset, value] of VALUES) yield* write(cpu, mode, offset, value);
      yield* write(cpu, mode, 0x300, 0x4_0041); // An IPI to itself: requested, and not taken.
      yield* write(cpu, mode, 0x300, 0x4_0093);
      for (const { offset, name, count } of APIC_REGISTERS) {
        for (let i = 0; i < count; i++) {
          const at = offset + 16 * i;
          values.push([`${name}+${i}`, yield* read(cpu, mode, at)]);
        }
      }
    });
    return values;
  }

  for (const mode of APIC_MODES) {
    it(`reads as an emulated one does, register by register (${mode})`, () => {
      const emulated = registers("none", mode);
      for (const level of ["apicv", "ipiv"] as const) assertEquals(registers(level, mode), emulated, level);
    });
  }

  it("keeps what the guest wrote to the error status: behind the write KVM can only leave it (xAPIC)", () => {
    // x86-hw 1.1: an emulated one stores nothing there.
    for (const [level, kept] of [["none", 0], ["apicv", 0x1234_5678], ["ipiv", 0x1234_5678]] as const) {
      tracingRig({ vm: { acceleration: level } }).finish(function* (cpu) {
        yield* enter(cpu, "xapic");
        yield* write(cpu, "xapic", 0x280, 0x1234_5678);
        assertEquals(yield* read(cpu, "xapic", 0x280), kept, level);
      });
    }
  });

  it("reads as zeroes where EOI was written, and keeps the written half of the ICR's upper word", () => {
    const rig = tracingRig({ vm: { acceleration: "apicv" } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield* write(cpu, "xapic", 0x0b0, 0xffff_ffff);
      assertEquals(yield* read(cpu, "xapic", 0x0b0), 0);
      yield* write(cpu, "xapic", 0x310, 0xabcd_ef01);
      assertEquals(yield* read(cpu, "xapic", 0x310), 0xab00_0000);
      // SDM 3C 30.4.3.2 means all of 310H-313H, where for other registers it names their first byte.
      for (const [byte, left] of [[2, 0xab00_0000], [3, 0xff00_0000]]) {
        assertEquals(yield* exitsOf(rig.vm, cpu.store8(APIC + 0x310 + byte, 0xff)), []);
        assertEquals(yield* read(cpu, "xapic", 0x310), left);
      }
      yield* write(cpu, "xapic", 0x080, 0xffff_ff42);
      assertEquals(yield* read(cpu, "xapic", 0x080), 0x42);
      yield cpu.xchg32(APIC + 0x080, 0x1_0031);
      assertEquals(cpu.eax, 0x42);
      yield cpu.load8(APIC + 0x080);
      assertEquals(cpu.eax, 0x31);
      yield cpu.load16(APIC + 0x082);
      assertEquals(cpu.eax, 0);
    });
  });

  it("exits behind the instruction that wrote: RIP has moved on, and the page has the value", () => {
    const rig = tracingRig({ vm: { acceleration: "apicv" } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      const { processor, lapic, backend } = rig.vm.bootstrap;
      const handle = backend.handleExit.bind(backend);
      let looked = 0;
      backend.handleExit = () => {
        if (processor.exitReason === 56) {
          looked++;
          // Nothing is pending: the store is done, in the page as the guest wrote it.
          assertEquals(processor.context.pending, 0);
          assertEquals(lapic.get(0x320), 0xffff_ffff);
        }
        handle();
        // KVM keeps what the register has, and does not skip anything.
        if (processor.exitReason === 56) assertEquals(lapic.get(0x320), 0x0007_10ff);
      };
      yield* write(cpu, "xapic", 0x320, 0xffff_ffff);
      assertEquals(looked, 1);
      delete (backend as { handleExit?: unknown }).handleExit;
    });
  });

  it("hands KVM an x2APIC's whole ICR behind an APIC-write exit, at offset 0x300", () => {
    const rig = tracingRig({ vm: { acceleration: "ipiv", vcpus: 2 } });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      const from = mark(rig.vm);
      // Bit 12 does not fault, and is KVM's to clear.
      yield cpu.wrmsr(0x830, 0x5841, 0x0001_0001);
      assertEquals(
        lines(rig.vm, from).filter((line) => /^kvm_(apic|apic_ipi|msr|exit):/.test(line)).map((line) =>
          line.split(":")[0]
        ),
        [
          "kvm_exit",
          "kvm_apic_ipi",
          "kvm_apic",
        ],
      );
      yield cpu.rdmsr(0x830);
      assertEquals([cpu.eax, cpu.edx], [0x4841, 0x0001_0001]);
    });
  });
});
