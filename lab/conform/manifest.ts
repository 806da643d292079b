/**
 * What conformance asks of which headers. Constants are asked by pattern, so that the record also holds those that the
 * tables do not have.
 *
 * @module
 */

import type { Members } from "./probe.ts";

/** Packages that together have a set of headers, and the folders in them that are searched. */
export interface Origin {
  /** Names of packages; `*` stands for anything. */
  readonly packages: readonly string[];
  /** What must be said of them besides. */
  readonly note?: string;
  /** Folders with the number of the package that they are in, in the order in which they are searched. */
  readonly include: readonly (readonly [packageNumber: number, folder: string])[];
}

/** A set of headers that one compilation can include, and what is asked of it. */
export interface HeaderSet {
  /** Its name in the record: the architecture, and which of its ABIs where it has several. */
  readonly name: string;
  /** The compiler's target. */
  readonly target: string;
  /** Where the headers are; the first that is there is taken. */
  readonly origins: readonly Origin[];
  /** Further arguments of the compiler. */
  readonly args?: readonly string[];
  /**
   * The folders of an architecture whose missing headers stand for those of the same name in asm-generic: what the
   * kernel's build system generates as wrappers.
   */
  readonly generic?: readonly (readonly [folder: string, generic: string])[];
  /** Whether a release may do without: not every package has every architecture's. */
  readonly optional?: boolean;
  /** Lines before the `#include`s. */
  readonly prologue?: readonly string[];
  /** The headers, and what the names of their constants look like. */
  readonly headers: Readonly<Record<string, RegExp>>;
  /** Structures with their members. */
  readonly structs?: Readonly<Record<string, Members>>;
  /** Headers with none of those constants. */
  readonly besides?: readonly string[];
  /** Macros that are lists of numbers and names. */
  readonly lists?: readonly string[];
  /** Headers of which every macro is recorded by name, to show how little they hold. */
  readonly whole?: readonly string[];
}

/** The namespace that x86, PowerPC and MIPS share. */
const KVM_PARA = { "linux/kvm_para.h": /^KVM_(HC_|E(PERM|2BIG|FAULT|INVAL|OPNOTSUPP|NOSYS)$)/ };
/** What a kernel tells user space. */
const KVM = {
  "linux/kvm.h": /^KVM_(EXIT|SYSTEM_EVENT|S390_(INT|PROGRAM|RESET|SIGP|RESTART)|PPC_PVINFO|X2APIC_API)_/,
};
/** The parts of `struct kvm_run` that hypercalls fill. */
const KVM_RUN: Readonly<Record<string, Members>> = {
  kvm_run: ["exit_reason", "hypercall.nr", "hypercall.args", "hypercall.ret"],
};

/** The headers of user space. Since 6.12 one package has those of all architectures; before, there was one for each. */
function uapi(triplet: string, cross?: string): Pick<HeaderSet, "origins"> {
  const folders = [[0, `usr/include/${triplet}`], [0, "usr/include"]] as const;
  if (cross === undefined) return { origins: [{ packages: ["linux-libc-dev"], include: folders }] };
  return {
    origins: [
      { packages: [`linux-libc-dev-${cross}-cross`], include: [[0, `usr/${triplet}/include`]] },
      { packages: ["linux-libc-dev"], include: folders, note: " of 6.12 or later" },
    ],
  };
}

/** What a kernel of x86 and the tasks that it runs have in common. */
const SYSTEM_CALLS = {
  "asm/unistd_64.h": /^__NR_/,
  "asm-generic/errno-base.h": /^E[A-Z0-9]+$/,
  "asm-generic/errno.h": /^E[A-Z0-9]+$/,
  "asm-generic/mman-common.h": /^(PROT|MAP|MADV)_/,
  "linux/mman.h": /^MAP_/,
  "linux/futex.h": /^FUTEX_/,
  "asm/signal.h": /^SIG[A-Z0-9]+$/,
};

const X86: HeaderSet = {
  name: "x86",
  target: "x86_64-linux-gnu",
  ...uapi("x86_64-linux-gnu"),
  headers: {
    ...KVM_PARA,
    ...KVM,
    "asm/kvm_para.h": /^(MSR_)?KVM_/,
    "asm/kvm.h": /^KVM_(X86_QUIRK|NR_INTERRUPTS|IRQCHIP|IOAPIC|APIC)/,
    "asm/vmx.h": /^EXIT_REASON_|^VMX_(ABORT|EXIT_REASONS_FAILED)/,
    "asm/svm.h": /^SVM_/,
    "asm/processor-flags.h": /^X86_/,
    ...SYSTEM_CALLS,
  },
  structs: {
    ...KVM_RUN,
    kvm_steal_time: ["steal", "version", "flags", "preempted", "u8_pad", "pad"],
    kvm_clock_pairing: ["sec", "nsec", "tsc", "flags", "pad"],
    kvm_vcpu_pv_apf_data: ["flags", "token", "pad"],
  },
  lists: ["VMX_EXIT_REASONS", "SVM_EXIT_REASONS"],
  besides: ["linux/errno.h"],
};

/** The kernel's own headers. */
function kernel(arch: string, generated: readonly string[]): Pick<HeaderSet, "origins" | "args"> {
  return {
    origins: [{
      packages: ["linux-headers-*-common", "linux-headers-*-amd64"],
      include: [
        [0, `arch/${arch}/include`],
        ...generated.map((folder) => [1, folder] as const),
        [0, "include"],
        [0, `arch/${arch}/include/uapi`],
        [0, "include/uapi"],
        [1, "include"],
      ],
    }],
    args: [
      "-D__KERNEL__",
      "-nostdinc",
      "-fms-extensions",
      "-include",
      "linux/kconfig.h",
      "-include",
      "linux/compiler_types.h",
    ],
  };
}

/** The kernel's own headers of an architecture that a package for amd64 holds no generated ones of. */
function foreignKernel(
  arch: string,
  ...args: readonly string[]
): Pick<HeaderSet, "origins" | "args" | "generic"> {
  const { origins, args: common } = kernel(arch, []);
  return {
    origins,
    // An attribute that older compilers do not have on statements.
    args: [...common!, "-D__assume__(x)=", ...args],
    generic: [
      [`arch/${arch}/include/asm`, "include/asm-generic"],
      [`arch/${arch}/include/uapi/asm`, "include/uapi/asm-generic"],
    ],
  };
}

const X86_GENERATED = kernel("x86", ["arch/x86/include/generated", "arch/x86/include/generated/uapi"]);
const X86_KERNEL: HeaderSet = {
  name: "x86-kernel",
  target: "x86_64-linux-gnu",
  origins: X86_GENERATED.origins,
  args: [...X86_GENERATED.args!, "-DCC_USING_FENTRY", "-mcmodel=kernel", "-mno-red-zone"],
  prologue: ["#include <linux/kvm_host.h>"],
  headers: {
    "asm/vmx.h": /^[A-Z]/,
    "asm/svm.h": /^[A-Z]/,
    "asm/apicdef.h": /^(X2|XAPIC|IO_)?APIC/,
    "asm/msr-index.h":
      /^(MSR_(IA32_(VMX|TSC_|TSC$|APICBASE|FEAT_CTL)|EFER|STAR|LSTAR|CSTAR|SYSCALL_MASK|FS_BASE|GS_BASE|KERNEL_GS_BASE|TSC_AUX|AMD64_SVM_AVIC)|_?EFER_|VMX_BASIC|FEAT_CTL)/,
    "asm/trapnr.h": /^X86_TRAP/,
    "asm/vmxfeatures.h": /^VMX_FEATURE_|^NVMXINTS/,
    "asm/kvm_host.h": /^(PFERR|APICV_INHIBIT|KVM_APIC)/,
    "asm/pgtable_types.h": /^_PAGE_BIT/,
    "asm/segment.h": /^__(KERNEL|USER)(32)?_CS/,
  },
  structs: {
    gate_struct: ["offset_low", "segment", "offset_middle", "offset_high", "reserved"],
    desc_ptr: ["size", "address"],
    pvclock_vcpu_time_info: [
      "version",
      "tsc_timestamp",
      "system_time",
      "tsc_to_system_mul",
      "tsc_shift",
      "flags",
    ],
    pvclock_wall_clock: ["version", "sec", "nsec"],
  },
};

const S390_KERNEL: HeaderSet = {
  name: "s390-kernel",
  target: "s390x-linux-gnu",
  ...foreignKernel("s390", "-DCONFIG_64BIT=1", "-march=z13"),
  besides: ["asm/sysinfo.h", "asm/schid.h"],
  headers: {
    "asm/ptrace.h": /^(PSW|PER)_/,
    "asm/lowcore.h": /^LC_/,
  },
  structs: {
    lowcore: [
      "ext_params",
      "ext_cpu_addr",
      "ext_int_code",
      "svc_int_code",
      "pgm_ilc",
      "pgm_code",
      "trans_exc_code",
      "subchannel_id",
      "subchannel_nr",
      "io_int_parm",
      "io_int_word",
      "restart_old_psw",
      "external_old_psw",
      "svc_old_psw",
      "program_old_psw",
      "mcck_old_psw",
      "io_old_psw",
      "restart_psw",
      "external_new_psw",
      "svc_new_psw",
      "program_new_psw",
      "mcck_new_psw",
      "io_new_psw",
      "lpp",
      "ext_params2",
    ],
    sysinfo_3_2_2: [
      "vm",
      "vm[1]",
      "vm[0].cpus_total",
      "vm[0].cpus_configured",
      "vm[0].cpus_standby",
      "vm[0].cpus_reserved",
      "vm[0].name",
      "vm[0].caf",
      "vm[0].cpi",
      "vm[0].evmne",
      "vm[0].uuid",
      "ext_names",
    ],
    subchannel_id: [],
  },
};

/** As assembly sources include them: macros alone, of headers whose declarations need generated ones. */
const S390_ASSEMBLY: HeaderSet = {
  name: "s390-assembly",
  target: "s390x-linux-gnu",
  ...foreignKernel("s390", "-DCONFIG_64BIT=1", "-D__ASSEMBLY__", "-D__ASSEMBLER__"),
  headers: { "asm/irq.h": /^EXT_IRQ_/ },
};

const PPC_KERNEL: HeaderSet = {
  name: "ppc-kernel",
  target: "powerpc64-linux-gnu",
  ...foreignKernel("powerpc", "-DCONFIG_PPC64", "-DCONFIG_PPC_BOOK3S_64"),
  headers: {
    "asm/reg.h": /^(MSR|SPRN|SRR1|DSISR)_/,
    "asm/reg_booke.h": /^(MSR|SPRN|ESR)_/,
    "asm/kvm_asm.h": /^(BOOK3S|BOOKE)_/,
    "asm/ppc-opcode.h": /^PPC_INST_/,
  },
};

const MIPS_KERNEL: HeaderSet = {
  name: "mips-kernel",
  target: "mips64-linux-gnuabi64",
  ...foreignKernel("mips", "-DCONFIG_64BIT=1", "-DCONFIG_PAGE_SIZE_4KB=1", "-DCONFIG_CPU_MIPS64_R5=1"),
  optional: true,
  headers: { "asm/mipsregs.h": /^(EXCCODE|CAUSEF|CAUSEB|ST0)_/ },
};

const S390: HeaderSet = {
  name: "s390",
  target: "s390x-linux-gnu",
  ...uapi("s390x-linux-gnu", "s390x"),
  headers: {
    ...KVM_PARA,
    ...KVM,
    "asm/virtio-ccw.h": /^KVM_/,
    "asm/kvm.h": /^KVM_/,
    "asm/ptrace.h": /^PSW/,
    "asm-generic/errno-base.h": /^E[A-Z0-9]+$/,
    "asm-generic/errno.h": /^E[A-Z0-9]+$/,
  },
  structs: {
    ...KVM_RUN,
    kvm_sync_regs: ["prefix", "gprs", "acrs", "crs", "todpr", "cputm", "pft", "pfs", "pfc"],
  },
  lists: ["diagnose_codes", "icpt_prog_codes"],
  besides: ["linux/errno.h", "asm/sie.h"],
  whole: ["asm/kvm_para.h"],
};

const PPC_HEADERS: Pick<HeaderSet, "headers" | "structs" | "besides"> = {
  besides: ["linux/errno.h"],
  headers: {
    ...KVM_PARA,
    ...KVM,
    "asm/kvm_para.h": /^(KVM_|MAGIC_)/,
    "asm/epapr_hcalls.h": /^_?EV_/,
  },
  structs: {
    kvm_vcpu_arch_shared: [
      "scratch1",
      "scratch2",
      "scratch3",
      "critical",
      "sprg0",
      "sprg1",
      "sprg2",
      "sprg3",
      "srr0",
      "srr1",
      "dar",
      "msr",
      "dsisr",
      "int_pending",
      "sr",
      "mas0",
      "mas1",
      "mas7_3",
      "mas2",
      "mas4",
      "mas6",
      "esr",
      "pir",
      "sprg4",
      "sprg5",
      "sprg6",
      "sprg7",
    ],
    kvm_ppc_pvinfo: ["flags", "hcall", "pad"],
    ...KVM_RUN,
  },
};

const MIPS_HEADERS: Pick<HeaderSet, "headers" | "structs" | "besides" | "whole"> = {
  besides: ["linux/errno.h"],
  headers: { ...KVM_PARA, ...KVM, "asm/inst.h": /^(cop0|hypcall|cop|wait|eret|mfc|mtc)_op$/ },
  structs: KVM_RUN,
  whole: ["asm/kvm_para.h"],
};

/** Every set of headers. */
export const HEADER_SETS: readonly HeaderSet[] = [
  X86,
  X86_KERNEL,
  S390,
  S390_KERNEL,
  S390_ASSEMBLY,
  PPC_KERNEL,
  MIPS_KERNEL,
  { name: "ppc", target: "powerpc-linux-gnu", ...uapi("powerpc-linux-gnu", "powerpc"), ...PPC_HEADERS },
  {
    name: "ppc64le",
    target: "powerpc64le-linux-gnu",
    ...uapi("powerpc64le-linux-gnu", "ppc64el"),
    ...PPC_HEADERS,
  },
  { name: "mips", target: "mips-linux-gnu", ...uapi("mips-linux-gnu", "mips"), ...MIPS_HEADERS },
  { name: "mipsel", target: "mipsel-linux-gnu", ...uapi("mipsel-linux-gnu", "mipsel"), ...MIPS_HEADERS },
  {
    name: "mips64el",
    target: "mips64el-linux-gnuabi64",
    ...uapi("mips64el-linux-gnuabi64", "mips64el"),
    ...MIPS_HEADERS,
  },
];
