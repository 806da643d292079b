import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  CR0_ET,
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_PAE,
  IA32_APICBASE,
  IA32_EFER,
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
import type { HostSemantics } from "../../../host/mod.ts";
import { type Asking, completes, enter } from "../../support/apic.ts";
import { eventsOf, type Exit, exits, exitsOf, halves, mark, tracingRig } from "../../support/events.ts";
import { DATA } from "../../support/guests.ts";

const APIC = 0xfee0_0000;
const CR0 = CR0_PG | CR0_ET | CR0_PE;
const NOTHING: readonly Exit[] = [];

/** An instruction, and the exits that it causes. */
type Row = readonly [what: string, op: (cpu: X86Cpu) => number, expected: readonly Exit[]];

function exit(name: string, info1 = 0): readonly Exit[] {
  return [[name, BigInt(info1)]];
}

/** I/O qualification (SDM 3C table 28-5): size - 1 in bits 2:0, IN in bit 3, DX as operand, port in bits 31:16. */
function io(port: number, bytes: number, input: boolean): readonly Exit[] {
  return exit("IO_INSTRUCTION", port * 0x1_0000 + (input ? 8 : 0) + bytes - 1);
}

/** In 64-bit mode at CPL 0 (SDM 3C 26.1.2, 26.1.3; KVM's controls: setup_vmcs_config). */
const INSTRUCTIONS: readonly Row[] = [
  ["CPUID", (cpu) => cpu.cpuid(0), exit("CPUID")],
  ["VMCALL", (cpu) => cpu.loadHypercall(1).vmcall(), exit("VMCALL")],
  ["INVD", (cpu) => cpu.invd(), exit("INVD")],
  ["WBINVD", (cpu) => cpu.wbinvd(), exit("WBINVD")],
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

  // CR0.TS and CR0.WP are the guest's; a change of any other bit exits, type 0 (MOV to CR), RAX.
  ["MOV to CR0 of what it holds", (cpu) => cpu.movToCr0(CR0), NOTHING],
  ["MOV to CR0 that sets WP", (cpu) => cpu.movToCr0(CR0 | CR0_WP), NOTHING],
  ["MOV to CR0 that sets TS", (cpu) => cpu.movToCr0(CR0 | CR0_WP | 8), NOTHING],
  ["MOV to CR0 that sets NE", (cpu) => cpu.movToCr0(CR0 | 0x20), exit("CR_ACCESS", 0)],
  ["MOV from CR0", (cpu) => cpu.movFromCr0(), NOTHING],
  ["MOV to CR3", (cpu) => cpu.movToCr3(0x18), NOTHING],
  ["MOV from CR3", (cpu) => cpu.movFromCr3(), NOTHING],
  ["MOV to CR4 that sets PGE", (cpu) => cpu.movToCr4(CR4_PAE | 0x80), NOTHING],
  ["MOV to CR4 that sets MCE", (cpu) => cpu.movToCr4(CR4_PAE | 0x80 | 0x40), exit("CR_ACCESS", 4)],
  ["MOV from CR4", (cpu) => cpu.movFromCr4(), NOTHING],
  ["MOV to CR8", (cpu) => cpu.movToCr8(5), NOTHING],
  ["MOV from CR8", (cpu) => cpu.movFromCr8(), NOTHING],

  ["RDMSR", (cpu) => cpu.rdmsr(IA32_APICBASE), exit("MSR_READ")],
  ["WRMSR", (cpu) => cpu.wrmsr(MSR_KVM_POLL_CONTROL, 1), exit("MSR_WRITE")],
  ["RDMSR of the TSC", (cpu) => cpu.rdmsr(IA32_TSC), NOTHING],
  ["WRMSR of the TSC", (cpu) => cpu.wrmsr(IA32_TSC, 0, 1), exit("MSR_WRITE")],
  ["RDMSR of the FS base", (cpu) => cpu.rdmsr(IA32_FS_BASE), NOTHING],
  ["WRMSR of the FS base", (cpu) => cpu.wrmsr(IA32_FS_BASE, 1), NOTHING],
  ["RDMSR of the GS base", (cpu) => cpu.rdmsr(IA32_GS_BASE), NOTHING],
  ["WRMSR of the GS base", (cpu) => cpu.wrmsr(IA32_GS_BASE, 1), NOTHING],
  ["RDMSR of the kernel GS base", (cpu) => cpu.rdmsr(IA32_KERNEL_GS_BASE), NOTHING],
  ["WRMSR of the kernel GS base", (cpu) => cpu.wrmsr(IA32_KERNEL_GS_BASE, 1), NOTHING],
  ["RDMSR of STAR", (cpu) => cpu.rdmsr(IA32_STAR), exit("MSR_READ")],
  ["WRMSR of LSTAR", (cpu) => cpu.wrmsr(IA32_LSTAR, 1), exit("MSR_WRITE")],
  ["RDMSR of EFER", (cpu) => cpu.rdmsr(IA32_EFER), exit("MSR_READ")],
  ["RDMSR of TSC_AUX", (cpu) => cpu.rdmsr(IA32_TSC_AUX), exit("MSR_READ")],
];

/**
 * The APIC's registers by MSR, in x2APIC mode: the TPR's is virtualized (SDM 3C 30.5), the rest KVM's
 * (vmx_update_msr_bitmap_x2apic).
 */
const X2APIC: readonly Row[] = [
  ["RDMSR of the ID", (cpu) => cpu.rdmsr(0x802), exit("MSR_READ")],
  ["RDMSR of the TPR", (cpu) => cpu.rdmsr(0x808), NOTHING],
  ["WRMSR of the TPR", (cpu) => cpu.wrmsr(0x808, 0x35), NOTHING],
  ["MOV to CR8", (cpu) => cpu.movToCr8(0), NOTHING],
  ["RDMSR of the PPR", (cpu) => cpu.rdmsr(0x80a), exit("MSR_READ")],
  ["WRMSR of the EOI register", (cpu) => cpu.wrmsr(0x80b, 0), exit("MSR_WRITE")],
  ["WRMSR of the ICR", (cpu) => cpu.wrmsr(0x830, 0x40, 99), exit("MSR_WRITE")],
  ["RDMSR of the timer's count", (cpu) => cpu.rdmsr(0x839), exit("MSR_READ")],
  ["WRMSR of the self-IPI register", (cpu) => cpu.wrmsr(0x83f, 0x40), exit("MSR_WRITE")],
];

/** A read and a write of a linear address that EPT does not map: bits 7 and 8 (SDM 3C table 28-7). */
const EPT_READ = exit("EPT_VIOLATION", 0x181);
const EPT_WRITE = exit("EPT_VIOLATION", 0x182);

/** The APIC's page in xAPIC mode today: KVM does not map it without APICv, so hardware virtualizes nothing. */
const XAPIC: readonly Row[] = [
  ["a read of the ID", (cpu) => cpu.load32(APIC + 0x020), EPT_READ],
  ["a second read of it", (cpu) => cpu.load32(APIC + 0x020), EPT_READ],
  ["a read of the TPR", (cpu) => cpu.load32(APIC + 0x080), EPT_READ],
  ["a write of the TPR", (cpu) => cpu.store32(APIC + 0x080, 0), EPT_WRITE],
  ["a write of the EOI register", (cpu) => cpu.store32(APIC + 0x0b0, 0), EPT_WRITE],
  ["a write of the ICR", (cpu) => cpu.store32(APIC + 0x300, 0x40), EPT_WRITE],
  ["MOV to CR8", (cpu) => cpu.movToCr8(3), NOTHING],
];

/**
 * The same in 2018 and 2012: the page is the APIC-access page; the TPR's four bytes are the shadow's (SDM 3C 30.4), and
 * everything else exits with its offset, type 0 for reads and 1 for writes.
 */
const APIC_ACCESS_PAGE: readonly Row[] = [
  ["a read of the ID", (cpu) => cpu.load32(APIC + 0x020), exit("APIC_ACCESS", 0x0020)],
  ["a read of the TPR", (cpu) => cpu.load32(APIC + 0x080), NOTHING],
  ["a write of the TPR", (cpu) => cpu.store32(APIC + 0x080, 0), NOTHING],
  ["a write of the EOI register", (cpu) => cpu.store32(APIC + 0x0b0, 0), exit("APIC_ACCESS", 0x10b0)],
  ["a write of the ICR", (cpu) => cpu.store32(APIC + 0x300, 0x40), exit("APIC_ACCESS", 0x1300)],
  ["MOV to CR8", (cpu) => cpu.movToCr8(3), NOTHING],
];

/** Runs the instructions of a table one behind the other; each must cause its exits. */
function exitAsListed(
  rows: readonly Row[],
  mode: "xapic" | "x2apic" | "off" = "off",
  hostSemantics: HostSemantics = "v6.19",
): void {
  const rig = tracingRig({ vm: { hostSemantics } });
  rig.vm.memory.write(DATA, 2, 0xfffn); // LIDT's operand: the IDT where it is.
  rig.finish(function* (cpu) {
    if (mode !== "off") yield* enter(cpu, mode);
    for (const [what, op, expected] of rows) {
      assertEquals(yield* exitsOf(rig.vm, op(cpu)), expected, what);
    }
  });
}

describe("VMX: an instruction in 64-bit mode at CPL 0", () => {
  it("exits with its own reason and qualification, or not at all", () => exitAsListed(INSTRUCTIONS));

  it("exits for the registers of an x2APIC, but for the task priority", () => exitAsListed(X2APIC, "x2apic"));

  it("exits for each access to an xAPIC's page, the task priority included", () =>
    exitAsListed(XAPIC, "xapic"));

  for (const host of ["2018", "2012"] as const) {
    it(`exits for an access to the APIC-access page, but for the task priority (${host})`, () => {
      exitAsListed(APIC_ACCESS_PAGE, "xapic", host);
    });
  }

  it("that sets reserved bits of the virtualized task priority raises #GP, and does not exit", () => {
    const rig = tracingRig();
    rig.finish(function* (cpu) {
      yield* enter(cpu, "x2apic");
      yield cpu.wrmsr(0x808, 0x20);
      const from = mark(rig.vm);
      assertEquals(yield* completes(cpu.wrmsr(0x808, 0x130)), false);
      assertEquals(yield* completes(cpu.wrmsr(0x808, 0x30, 1)), false);
      assertEquals(exits(rig.vm, from), NOTHING);
      yield cpu.rdmsr(0x808);
      assertEquals(cpu.rax, 0x20n);
    });
  });

  it("is an EPT violation at the first access to an MMIO page, and a misconfiguration from then on", () => {
    const rig = tracingRig();
    rig.finish(function* (cpu) {
      const from = mark(rig.vm);
      assertEquals(yield* exitsOf(rig.vm, cpu.load32(0xd000_0010)), EPT_READ);
      const [{ args }] = eventsOf(rig.vm, "kvm_page_fault", from);
      assertEquals(args.slice(0, 3), [...halves(0xd000_0010), 0x181]);
      const misconfigured = mark(rig.vm);
      assertEquals(yield* exitsOf(rig.vm, cpu.store32(0xd000_0ffc, 1)), exit("EPT_MISCONFIG"));
      assertEquals(yield* exitsOf(rig.vm, cpu.load8(0xd000_0000)), exit("EPT_MISCONFIG"));
      assertEquals(eventsOf(rig.vm, "kvm_page_fault", misconfigured), []);
      assertEquals(yield* exitsOf(rig.vm, cpu.store32(0xd000_1000, 1)), EPT_WRITE, "another page");
    });
  });

  it("never marks the APIC's page as MMIO, whatever the APIC's mode: there is a memory slot behind it", () => {
    const rig = tracingRig();
    rig.finish(function* (cpu) {
      yield cpu.load32(APIC + 0x020);
      yield* enter(cpu, "x2apic");
      for (let i = 0; i < 2; i++) assertEquals(yield* exitsOf(rig.vm, cpu.load32(APIC + 0x020)), EPT_READ);
    });
  });

  it("that raises #UD exits first: KVM looks at it, and gives it back", () => {
    const rig = tracingRig().on(UD_VECTOR, function* (cpu) {
      cpu.skip();
      yield cpu.iret();
    });
    rig.finish(function* (cpu) {
      assertEquals(yield* exitsOf(rig.vm, cpu.ud2()), exit("EXCEPTION_NMI"));
    });
    assertEquals(eventsOf(rig.vm, "kvm_inj_exception").map(({ args }) => args[0]), [UD_VECTOR]);
  });

  it("that nobody handles is a triple fault", () => {
    const rig = tracingRig();
    rig.gate(13, 0, { type: 0 }); // No #GP handler after all, nor any other.
    assertEquals(
      rig.run(function* (cpu) {
        yield cpu.rdmsr(0x1234);
      }).end,
      "shutdown",
    );
    assertEquals(rig.vm.exits(), { MSR_READ: 1, TRIPLE_FAULT: 1 });
  });
});

describe("VMX: an instruction at CPL 3", () => {
  /** Privilege is checked before the exit (SDM 3C 26.1.1); VMCALL and CPUID need none. */
  const ROWS:
    readonly (readonly [what: string, op: (cpu: X86Cpu) => number, expected: readonly Exit[] | "#GP"])[] = [
      ["CPUID", (cpu) => cpu.cpuid(0), exit("CPUID")],
      ["VMCALL", (cpu) => cpu.loadHypercall(1).vmcall(), exit("VMCALL")],
      ["RDTSC", (cpu) => cpu.rdtsc(), NOTHING],
      ["an xAPIC read", (cpu) => cpu.load32(APIC + 0x020), EPT_READ],
      ["HLT", (cpu) => cpu.hlt(), "#GP"],
      ["IN", (cpu) => cpu.in8(0x60), "#GP"],
      ["OUT", (cpu) => cpu.out8(0x60, 1), "#GP"],
      ["RDMSR", (cpu) => cpu.rdmsr(IA32_APICBASE), "#GP"],
      ["WRMSR", (cpu) => cpu.wrmsr(MSR_KVM_POLL_CONTROL, 0), "#GP"],
      ["MOV to CR0", (cpu) => cpu.movToCr0(0), "#GP"],
      ["MOV to CR8", (cpu) => cpu.movToCr8(1), "#GP"],
      ["INVD", (cpu) => cpu.invd(), "#GP"],
      ["WBINVD", (cpu) => cpu.wbinvd(), "#GP"],
      ["CLI", (cpu) => cpu.cli(), "#GP"],
    ];

  it("exits where its privilege allows it at all, and raises #GP without an exit otherwise", () => {
    const rig = tracingRig();
    const done: string[] = [];
    const user = rig.text.add(function* user(cpu): Asking<void> {
      for (const [what, op, expected] of ROWS) {
        const from = mark(rig.vm);
        const completed = yield* completes(op(cpu));
        assertEquals(completed, expected !== "#GP", what);
        assertEquals(exits(rig.vm, from), expected === "#GP" ? NOTHING : expected, what);
        done.push(what);
      }
    });
    rig.finish(function* (cpu) {
      yield* enter(cpu, "xapic");
      yield cpu.rdmsr(IA32_EFER);
      yield cpu.wrmsr(IA32_EFER, cpu.eax | 1);
      yield cpu.sysret(user);
    });
    assertEquals(done.length, ROWS.length);
  });
});
