import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_CD,
  CR0_ET,
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_PAE,
  IA32_APICBASE,
  IA32_CSTAR,
  IA32_EFER,
  IA32_FMASK,
  IA32_FS_BASE,
  IA32_GS_BASE,
  IA32_KERNEL_GS_BASE,
  IA32_LSTAR,
  IA32_STAR,
  IA32_TSC,
  IA32_TSC_AUX,
  MSR_KVM_POLL_CONTROL,
  UD_VECTOR,
  type X86Cpu,
} from "../../../abi/mod.ts";
import { type Asking, completes, enter, lookAtEvents } from "../../support/apic.ts";
import { eventsOf, type Exit, exits, exitsOf, halves, mark, tracingRig } from "../../support/events.ts";
import { DATA, type RigOptions } from "../../support/guests.ts";

const APIC = 0xfee0_0000;
const CR0 = CR0_PG | CR0_ET | CR0_PE;
const NOTHING: readonly Exit[] = [];
const SVM: RigOptions = { vm: { backend: "svm" } };

/** An instruction, and the exits that it causes. */
type Row = readonly [what: string, op: (cpu: X86Cpu) => number, expected: readonly Exit[]];

function exit(name: string, info1: number | bigint = 0): readonly Exit[] {
  return [[name, BigInt(info1)]];
}

/** EXITINFO1 of MSR intercepts (APM 2 15.11). */
const READ_MSR = exit("msr", 0);
const WRITE_MSR = exit("msr", 1);

/** EXITINFO1 of a MOV to or from a control register, with decode assists: valid, RAX (APM 2 15.33.1). */
const RAX_OPERAND = 1n << 63n;

/** EXITINFO1 of IOIO (APM 2 15.10.2): IN in bit 0, size in bits 6:4, address size in bits 9:7, port in bits 31:16. */
function io(port: number, bytes: number, input: boolean, addressSize = 64): readonly Exit[] {
  const size = bytes << 4;
  return exit("io", port * 0x1_0000 + (addressSize === 64 ? 0x200 : 0x100) + size + (input ? 1 : 0));
}

/** In 64-bit mode at CPL 0 (APM 2 15.9; KVM's intercepts: svm.c, init_vmcb). */
const INSTRUCTIONS: readonly Row[] = [
  ["CPUID", (cpu) => cpu.cpuid(0), exit("cpuid")],
  ["VMMCALL", (cpu) => cpu.loadHypercall(1).vmmcall(), exit("hypercall")],
  ["INVD", (cpu) => cpu.invd(), exit("invd")],
  ["WBINVD", (cpu) => cpu.wbinvd(), exit("wbinvd")],
  ["RDTSC", (cpu) => cpu.rdtsc(), NOTHING],
  ["PAUSE", (cpu) => cpu.pause(), NOTHING],
  ["CLI", (cpu) => cpu.cli(), NOTHING],
  ["STI", (cpu) => cpu.sti(), NOTHING],
  ["PUSHF", (cpu) => cpu.pushf(), NOTHING],
  ["a load", (cpu) => cpu.load32(DATA), NOTHING],
  ["a locked read-modify-write", (cpu) => cpu.lockBtr(DATA, 5), NOTHING],
  ["LIDT", (cpu) => cpu.lidt(DATA), NOTHING],

  ["IN AL", (cpu) => cpu.in8(0x60), io(0x60, 1, true)],
  ["IN AX", (cpu) => cpu.in16(0x1f0), io(0x1f0, 2, true)],
  ["IN EAX", (cpu) => cpu.in32(0xcfc), io(0xcfc, 4, true)],
  ["OUT AL", (cpu) => cpu.out8(0x80, 1), io(0x80, 1, false)],
  ["OUT AX", (cpu) => cpu.out16(0xfffe, 1), io(0xfffe, 2, false)],
  ["OUT EAX", (cpu) => cpu.out32(0xcf8, 1), io(0xcf8, 4, false)],

  // The selective intercept lets changes of TS and MP through.
  ["MOV to CR0 of what it holds", (cpu) => cpu.movToCr0(CR0), NOTHING],
  ["MOV to CR0 that sets TS and MP", (cpu) => cpu.movToCr0(CR0 | 0xa), NOTHING],
  ["MOV to CR0 that sets WP", (cpu) => cpu.movToCr0(CR0 | 0xa | CR0_WP), exit("cr0_sel_write", RAX_OPERAND)],
  ["MOV from CR0", (cpu) => cpu.movFromCr0(), NOTHING],
  ["MOV to CR3", (cpu) => cpu.movToCr3(0x18), NOTHING],
  ["MOV from CR3", (cpu) => cpu.movFromCr3(), NOTHING],
  ["MOV to CR4 of what it holds", (cpu) => cpu.movToCr4(CR4_PAE), exit("write_cr4", RAX_OPERAND)],
  ["MOV to CR4 that sets PGE", (cpu) => cpu.movToCr4(CR4_PAE | 0x80), exit("write_cr4", RAX_OPERAND)],
  ["MOV from CR4", (cpu) => cpu.movFromCr4(), exit("read_cr4", RAX_OPERAND)],
  ["MOV from CR8", (cpu) => cpu.movFromCr8(), NOTHING],

  ["RDMSR", (cpu) => cpu.rdmsr(IA32_APICBASE), READ_MSR],
  ["WRMSR", (cpu) => cpu.wrmsr(MSR_KVM_POLL_CONTROL, 1), WRITE_MSR],
  ["RDMSR of the TSC", (cpu) => cpu.rdmsr(IA32_TSC), READ_MSR],
  ["WRMSR of the TSC", (cpu) => cpu.wrmsr(IA32_TSC, 0, 1), WRITE_MSR],
  ["RDMSR of EFER", (cpu) => cpu.rdmsr(IA32_EFER), READ_MSR],
  ["RDMSR of TSC_AUX", (cpu) => cpu.rdmsr(IA32_TSC_AUX), READ_MSR],
  // svm.c, direct_access_msrs.
  ...[
    IA32_STAR,
    IA32_LSTAR,
    IA32_CSTAR,
    IA32_FMASK,
    IA32_FS_BASE,
    IA32_GS_BASE,
    IA32_KERNEL_GS_BASE,
  ].flatMap((msr): Row[] => [
    [`RDMSR of 0x${msr.toString(16)}`, (cpu) => cpu.rdmsr(msr), NOTHING],
    [`WRMSR of 0x${msr.toString(16)}`, (cpu) => cpu.wrmsr(msr, 1), NOTHING],
  ]),
];

/** The APIC's registers by MSR, in x2APIC mode without x2AVIC: every one exits. CR8 is V_TPR. */
const X2APIC: readonly Row[] = [
  ["RDMSR of the ID", (cpu) => cpu.rdmsr(0x802), READ_MSR],
  ["RDMSR of the TPR", (cpu) => cpu.rdmsr(0x808), READ_MSR],
  ["WRMSR of the TPR", (cpu) => cpu.wrmsr(0x808, 0x35), WRITE_MSR],
  ["MOV to CR8", (cpu) => cpu.movToCr8(0), NOTHING],
  ["WRMSR of the EOI register", (cpu) => cpu.wrmsr(0x80b, 0), WRITE_MSR],
  ["WRMSR of the ICR", (cpu) => cpu.wrmsr(0x830, 0x40, 99), WRITE_MSR],
  ["RDMSR of the timer's count", (cpu) => cpu.rdmsr(0x839), READ_MSR],
  ["WRMSR of the self-IPI register", (cpu) => cpu.wrmsr(0x83f, 0x40), WRITE_MSR],
];

/** A nested page fault's error code (APM 2 15.25.6): user, the final address; write in bit 1. */
const NPF_READ = 0x1_0000_0004n;
const NPF_WRITE = 0x1_0000_0006n;
/** Once KVM has marked the page as MMIO: present, a reserved bit set. */
const MARKED = 0x9n;

/** The APIC's page in xAPIC mode: there is no slot behind it without AVIC, so it is MMIO like any. */
const XAPIC: readonly Row[] = [
  ["the first read", (cpu) => cpu.load32(APIC + 0x020), exit("npf", NPF_READ | MARKED)],
  ["a write of the TPR", (cpu) => cpu.store32(APIC + 0x080, 0), exit("npf", NPF_WRITE | MARKED)],
  ["a write of the EOI register", (cpu) => cpu.store32(APIC + 0x0b0, 0), exit("npf", NPF_WRITE | MARKED)],
  ["a write of the ICR", (cpu) => cpu.store32(APIC + 0x300, 0x4_0041), exit("npf", NPF_WRITE | MARKED)],
  ["MOV to CR8", (cpu) => cpu.movToCr8(3), NOTHING],
];

function exitAsListed(rows: readonly Row[], mode: "xapic" | "x2apic" | "off" = "off"): void {
  const rig = tracingRig(SVM);
  rig.vm.memory.write(DATA, 2, 0xfffn); // LIDT's operand: the IDT where it is.
  rig.finish(function* (cpu) {
    if (mode !== "off") yield* enter(cpu, mode);
    yield* lookAtEvents(cpu);
    for (const [what, op, expected] of rows) {
      assertEquals(yield* exitsOf(rig.vm, op(cpu)), expected, what);
    }
  });
}

describe("SVM: an instruction in 64-bit mode at CPL 0", () => {
  it("exits with its own code and information, or not at all", () => exitAsListed(INSTRUCTIONS));

  it("exits for every register of an x2APIC, and not for CR8", () => exitAsListed(X2APIC, "x2apic"));

  it("is a nested page fault at each access to an xAPIC's page", () => exitAsListed(XAPIC, "xapic"));

  it("is a nested page fault at an MMIO page, with a reserved bit from the second access on", () => {
    const rig = tracingRig(SVM);
    rig.finish(function* (cpu) {
      const from = mark(rig.vm);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(0xd000_0010)), exit("npf", NPF_READ));
      assertEquals(yield* exitsOf(rig.vm, cpu.store32(0xd000_0ffc, 1)), exit("npf", NPF_WRITE | MARKED));
      assertEquals(
        yield* exitsOf(rig.vm, cpu.store32(0xd000_1000, 1)),
        exit("npf", NPF_WRITE),
        "another page",
      );
      const faults = eventsOf(rig.vm, "kvm_page_fault", from);
      assertEquals(faults.map(({ args }) => args.slice(0, 2)), [
        halves(0xd000_0010),
        halves(0xd000_0ffc),
        halves(0xd000_1000),
      ]);
    });
  });

  it("exits for MOV to CR8 until KVM has first looked at an enabled APIC", () => {
    const rig = tracingRig(SVM);
    rig.finish(function* (cpu) {
      assertEquals(yield* exitsOf(rig.vm, cpu.movToCr8(7)), exit("write_cr8", RAX_OPERAND));
      yield cpu.movFromCr8();
      assertEquals(cpu.rax, 7n);
      yield* enter(cpu, "xapic");
      assertEquals(
        yield* exitsOf(rig.vm, cpu.movToCr8(2)),
        exit("write_cr8", RAX_OPERAND),
        "nobody made it look",
      );
      yield* lookAtEvents(cpu);
      assertEquals(yield* exitsOf(rig.vm, cpu.movToCr8(1)), NOTHING);
    });
  });

  it("exits for MOV to and from CR0 while the guest believes its caches off, and KVM keeps them on", () => {
    const rig = tracingRig(SVM);
    rig.finish(function* (cpu) {
      assertEquals(yield* exitsOf(rig.vm, cpu.movToCr0(CR0 | CR0_CD)), exit("cr0_sel_write", RAX_OPERAND));
      assertEquals(yield* exitsOf(rig.vm, cpu.movFromCr0()), exit("read_cr0", RAX_OPERAND));
      assertEquals(cpu.eax, (CR0 | CR0_CD) >>> 0);
      assertEquals(yield* exitsOf(rig.vm, cpu.movToCr0(CR0 | CR0_CD | 0x8)), exit("write_cr0", RAX_OPERAND));
      assertEquals(yield* exitsOf(rig.vm, cpu.movToCr0(CR0)), exit("write_cr0", RAX_OPERAND));
      assertEquals(yield* exitsOf(rig.vm, cpu.movFromCr0()), NOTHING);
    });
  });

  it("that raises #UD exits first: KVM looks at it, and gives it back", () => {
    const rig = tracingRig(SVM).on(UD_VECTOR, function* (cpu) {
      cpu.skip();
      yield cpu.iret();
    });
    rig.finish(function* (cpu) {
      assertEquals(yield* exitsOf(rig.vm, cpu.ud2()), exit("UD excp"));
    });
    assertEquals(eventsOf(rig.vm, "kvm_inj_exception").map(({ args }) => args[0]), [UD_VECTOR]);
  });

  it("that nobody handles is a shutdown", () => {
    const rig = tracingRig(SVM);
    rig.gate(13, 0, { type: 0 }); // No #GP handler after all, nor any other.
    assertEquals(
      rig.run(function* (cpu) {
        yield cpu.rdmsr(0x1234);
      }).end,
      "shutdown",
    );
    assertEquals(rig.vm.exits(), { msr: 1, shutdown: 1 });
  });
});

describe("SVM: an instruction in 32-bit mode", () => {
  it("tells its address size with I/O", () => {
    const rig = tracingRig({ ...SVM, mode: "32-bit" });
    rig.finish(function* (cpu) {
      assertEquals(yield* exitsOf(rig.vm, cpu.in8(0x60)), io(0x60, 1, true, 32));
      assertEquals(yield* exitsOf(rig.vm, cpu.out32(0xcf8, 1)), io(0xcf8, 4, false, 32));
    });
  });
});

describe("SVM: an instruction at CPL 3", () => {
  /** #GP for privilege comes before the intercept (APM 2 15.9, table 15-7); VMMCALL and CPUID need none. */
  const ROWS: readonly (readonly [string, (cpu: X86Cpu) => number, readonly Exit[] | "#GP"])[] = [
    ["CPUID", (cpu) => cpu.cpuid(0), exit("cpuid")],
    ["VMMCALL", (cpu) => cpu.loadHypercall(1).vmmcall(), exit("hypercall")],
    ["RDTSC", (cpu) => cpu.rdtsc(), NOTHING],
    ["HLT", (cpu) => cpu.hlt(), "#GP"],
    ["IN", (cpu) => cpu.in8(0x60), "#GP"],
    ["RDMSR", (cpu) => cpu.rdmsr(IA32_APICBASE), "#GP"],
    ["WRMSR", (cpu) => cpu.wrmsr(MSR_KVM_POLL_CONTROL, 0), "#GP"],
    ["MOV to CR4", (cpu) => cpu.movToCr4(0), "#GP"],
    ["MOV from CR4", (cpu) => cpu.movFromCr4(), "#GP"],
    ["WBINVD", (cpu) => cpu.wbinvd(), "#GP"],
  ];

  it("exits where its privilege allows it at all, and raises #GP without an exit otherwise", () => {
    const rig = tracingRig(SVM);
    const done: string[] = [];
    const user = rig.text.add(function* user(cpu): Asking<void> {
      for (const [what, op, expected] of ROWS) {
        const from = mark(rig.vm);
        assertEquals(yield* completes(op(cpu)), expected !== "#GP", what);
        assertEquals(exits(rig.vm, from), expected === "#GP" ? NOTHING : expected, what);
        done.push(what);
      }
    });
    rig.finish(function* (cpu) {
      yield cpu.rdmsr(IA32_EFER);
      yield cpu.wrmsr(IA32_EFER, cpu.eax | 1);
      yield cpu.sysret(user);
    });
    assertEquals(done.length, ROWS.length);
  });
});
