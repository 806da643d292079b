/**
 * VMX basic exit reasons (SDM 3D appendix C), with the names that kvm_exit prints
 * (arch/x86/include/uapi/asm/vmx.h, VMX_EXIT_REASONS).
 *
 * @module
 */

/** Names by basic exit reason; reasons that KVM's table leaves out are undefined. */
export const VMX_EXIT_REASONS: readonly (string | undefined)[] = reasons({
  0: "EXCEPTION_NMI",
  1: "EXTERNAL_INTERRUPT",
  2: "TRIPLE_FAULT",
  3: "INIT_SIGNAL",
  4: "SIPI_SIGNAL",
  7: "INTERRUPT_WINDOW",
  8: "NMI_WINDOW",
  9: "TASK_SWITCH",
  10: "CPUID",
  12: "HLT",
  13: "INVD",
  14: "INVLPG",
  15: "RDPMC",
  16: "RDTSC",
  18: "VMCALL",
  19: "VMCLEAR",
  20: "VMLAUNCH",
  21: "VMPTRLD",
  22: "VMPTRST",
  23: "VMREAD",
  24: "VMRESUME",
  25: "VMWRITE",
  26: "VMOFF",
  27: "VMON",
  28: "CR_ACCESS",
  29: "DR_ACCESS",
  30: "IO_INSTRUCTION",
  31: "MSR_READ",
  32: "MSR_WRITE",
  33: "INVALID_STATE",
  34: "MSR_LOAD_FAIL",
  36: "MWAIT_INSTRUCTION",
  37: "MONITOR_TRAP_FLAG",
  39: "MONITOR_INSTRUCTION",
  40: "PAUSE_INSTRUCTION",
  41: "MCE_DURING_VMENTRY",
  43: "TPR_BELOW_THRESHOLD",
  44: "APIC_ACCESS",
  45: "EOI_INDUCED",
  46: "GDTR_IDTR",
  47: "LDTR_TR",
  48: "EPT_VIOLATION",
  49: "EPT_MISCONFIG",
  50: "INVEPT",
  51: "RDTSCP",
  52: "PREEMPTION_TIMER",
  53: "INVVPID",
  54: "WBINVD",
  55: "XSETBV",
  56: "APIC_WRITE",
  57: "RDRAND",
  58: "INVPCID",
  59: "VMFUNC",
  60: "ENCLS",
  61: "RDSEED",
  62: "PML_FULL",
  63: "XSAVES",
  64: "XRSTORS",
  67: "UMWAIT",
  68: "TPAUSE",
  74: "BUS_LOCK",
  75: "NOTIFY",
  77: "TDCALL",
  84: "MSR_READ_IMM",
  85: "MSR_WRITE_IMM",
});

function reasons(names: Readonly<Record<number, string>>): readonly (string | undefined)[] {
  const table: (string | undefined)[] = [];
  for (const [reason, name] of Object.entries(names)) table[Number(reason)] = name;
  return table;
}

/** Exception or NMI. */
export const EXIT_REASON_EXCEPTION_NMI = 0;
/** External interrupt. */
export const EXIT_REASON_EXTERNAL_INTERRUPT = 1;
/** Triple fault. */
export const EXIT_REASON_TRIPLE_FAULT = 2;
/** Interrupt window. */
export const EXIT_REASON_INTERRUPT_WINDOW = 7;
/** NMI window. */
export const EXIT_REASON_NMI_WINDOW = 8;
/** CPUID. */
export const EXIT_REASON_CPUID = 10;
/** HLT. */
export const EXIT_REASON_HLT = 12;
/** INVD. */
export const EXIT_REASON_INVD = 13;
/** INVLPG. */
export const EXIT_REASON_INVLPG = 14;
/** VMCALL. */
export const EXIT_REASON_VMCALL = 18;
/** Control-register access. */
export const EXIT_REASON_CR_ACCESS = 28;
/** I/O instruction. */
export const EXIT_REASON_IO_INSTRUCTION = 30;
/** RDMSR. */
export const EXIT_REASON_MSR_READ = 31;
/** WRMSR. */
export const EXIT_REASON_MSR_WRITE = 32;
/** TPR below threshold. */
export const EXIT_REASON_TPR_BELOW_THRESHOLD = 43;
/** APIC access. */
export const EXIT_REASON_APIC_ACCESS = 44;
/** Virtualized EOI: its vector is in the EOI-exit bitmap. */
export const EXIT_REASON_EOI_INDUCED = 45;
/** EPT violation. */
export const EXIT_REASON_EPT_VIOLATION = 48;
/** EPT misconfiguration. */
export const EXIT_REASON_EPT_MISCONFIG = 49;
/** VMX-preemption timer expired. */
export const EXIT_REASON_PREEMPTION_TIMER = 52;
/** WBINVD. */
export const EXIT_REASON_WBINVD = 54;
/** APIC write: behind an instruction that wrote to the virtual-APIC page. */
export const EXIT_REASON_APIC_WRITE = 56;
/** INVPCID. */
export const EXIT_REASON_INVPCID = 58;

/** APIC-access exit qualification bits 15:12: a data read by an instruction (SDM 3C table 28-6). */
export const APIC_ACCESS_LINEAR_READ = 0 << 12;
/** APIC-access exit qualification bits 15:12: a data write by an instruction. */
export const APIC_ACCESS_LINEAR_WRITE = 1 << 12;

/** Interruption information bit 31: valid (SDM 3C table 25-17). */
export const INTR_INFO_VALID = 0x8000_0000;
/** Interruption information bit 11: an error code is delivered. */
export const INTR_INFO_ERROR_CODE = 1 << 11;
/** Interruption type, bits 10:8: external interrupt. */
export const INTR_TYPE_EXT_INTR = 0 << 8;
/** Interruption type: NMI. */
export const INTR_TYPE_NMI = 2 << 8;
/** Interruption type: hardware exception. */
export const INTR_TYPE_HARD_EXCEPTION = 3 << 8;
