/**
 * SVM exit codes (APM volume 2 appendix C), with the names that kvm_exit prints (arch/x86/include/uapi/asm/svm.h,
 * SVM_EXIT_REASONS). The codes that SEV-ES guests raise themselves are left out; -1 stands as its low 32 bits.
 *
 * @module
 */

/** Exit codes and their names. */
export const SVM_EXIT_REASONS: ReadonlyMap<number, string> = new Map<number, string>([
  [0x000, "read_cr0"],
  [0x002, "read_cr2"],
  [0x003, "read_cr3"],
  [0x004, "read_cr4"],
  [0x008, "read_cr8"],
  [0x010, "write_cr0"],
  [0x012, "write_cr2"],
  [0x013, "write_cr3"],
  [0x014, "write_cr4"],
  [0x018, "write_cr8"],
  [0x020, "read_dr0"],
  [0x021, "read_dr1"],
  [0x022, "read_dr2"],
  [0x023, "read_dr3"],
  [0x024, "read_dr4"],
  [0x025, "read_dr5"],
  [0x026, "read_dr6"],
  [0x027, "read_dr7"],
  [0x030, "write_dr0"],
  [0x031, "write_dr1"],
  [0x032, "write_dr2"],
  [0x033, "write_dr3"],
  [0x034, "write_dr4"],
  [0x035, "write_dr5"],
  [0x036, "write_dr6"],
  [0x037, "write_dr7"],
  [0x040, "DE excp"],
  [0x041, "DB excp"],
  [0x043, "BP excp"],
  [0x044, "OF excp"],
  [0x045, "BR excp"],
  [0x046, "UD excp"],
  [0x047, "NM excp"],
  [0x048, "DF excp"],
  [0x04a, "TS excp"],
  [0x04b, "NP excp"],
  [0x04c, "SS excp"],
  [0x04d, "GP excp"],
  [0x04e, "PF excp"],
  [0x050, "MF excp"],
  [0x051, "AC excp"],
  [0x052, "MC excp"],
  [0x053, "XF excp"],
  [0x060, "interrupt"],
  [0x061, "nmi"],
  [0x062, "smi"],
  [0x063, "init"],
  [0x064, "vintr"],
  [0x065, "cr0_sel_write"],
  [0x066, "read_idtr"],
  [0x067, "read_gdtr"],
  [0x068, "read_ldtr"],
  [0x069, "read_rt"],
  [0x06a, "write_idtr"],
  [0x06b, "write_gdtr"],
  [0x06c, "write_ldtr"],
  [0x06d, "write_rt"],
  [0x06e, "rdtsc"],
  [0x06f, "rdpmc"],
  [0x070, "pushf"],
  [0x071, "popf"],
  [0x072, "cpuid"],
  [0x073, "rsm"],
  [0x074, "iret"],
  [0x075, "swint"],
  [0x076, "invd"],
  [0x077, "pause"],
  [0x078, "hlt"],
  [0x079, "invlpg"],
  [0x07a, "invlpga"],
  [0x07b, "io"],
  [0x07c, "msr"],
  [0x07d, "task_switch"],
  [0x07e, "ferr_freeze"],
  [0x07f, "shutdown"],
  [0x080, "vmrun"],
  [0x081, "hypercall"],
  [0x082, "vmload"],
  [0x083, "vmsave"],
  [0x084, "stgi"],
  [0x085, "clgi"],
  [0x086, "skinit"],
  [0x087, "rdtscp"],
  [0x088, "icebp"],
  [0x089, "wbinvd"],
  [0x08a, "monitor"],
  [0x08b, "mwait"],
  [0x08d, "xsetbv"],
  [0x08f, "write_efer_trap"],
  [0x090, "write_cr0_trap"],
  [0x094, "write_cr4_trap"],
  [0x098, "write_cr8_trap"],
  [0x0a2, "invpcid"],
  [0x0a5, "buslock"],
  [0x0a6, "idle-halt"],
  [0x400, "npf"],
  [0x401, "avic_incomplete_ipi"],
  [0x402, "avic_unaccelerated_access"],
  [0x403, "vmgexit"],
  [0xffff_ffff, "invalid_guest_state"],
]);

/** MOV from CR0; from CRn, n more. */
export const SVM_EXIT_READ_CR0 = 0x000;
/** MOV to CR0; to CRn, n more. */
export const SVM_EXIT_WRITE_CR0 = 0x010;
/** MOV to CR8. */
export const SVM_EXIT_WRITE_CR8 = 0x018;
/** Intercepted exceptions start here: 0x40 + vector. */
export const SVM_EXIT_EXCP_BASE = 0x040;
/** A physical maskable interrupt. */
export const SVM_EXIT_INTR = 0x060;
/** A virtual interrupt is about to be taken: the interrupt window. */
export const SVM_EXIT_VINTR = 0x064;
/** A write to CR0 that changes more than TS and MP. */
export const SVM_EXIT_CR0_SEL_WRITE = 0x065;
/** CPUID. */
export const SVM_EXIT_CPUID = 0x072;
/** IRET. */
export const SVM_EXIT_IRET = 0x074;
/** INVD. */
export const SVM_EXIT_INVD = 0x076;
/** HLT. */
export const SVM_EXIT_HLT = 0x078;
/** IN or OUT. */
export const SVM_EXIT_IOIO = 0x07b;
/** RDMSR (EXITINFO1 0) or WRMSR (1). */
export const SVM_EXIT_MSR = 0x07c;
/** Shutdown: a triple fault. */
export const SVM_EXIT_SHUTDOWN = 0x07f;
/** VMMCALL. */
export const SVM_EXIT_VMMCALL = 0x081;
/** WBINVD. */
export const SVM_EXIT_WBINVD = 0x089;
/** INVPCID. */
export const SVM_EXIT_INVPCID = 0x0a2;
/** Nested page fault. */
export const SVM_EXIT_NPF = 0x400;
/** AVIC could not complete an IPI; behind the instruction (APM 2 15.29.9.1). */
export const SVM_EXIT_AVIC_INCOMPLETE_IPI = 0x401;
/** An access to the APIC that AVIC does not carry out; before or behind it (APM 2 15.29.9.2). */
export const SVM_EXIT_AVIC_UNACCELERATED_ACCESS = 0x402;
/** VMRUN found the VMCB inconsistent (VMEXIT_INVALID); the low half of -1. */
export const SVM_EXIT_ERR = 0xffff_ffff;

/** int_ctl bits 3:0: V_TPR. */
export const V_TPR_MASK = 0x0f;
/** int_ctl bit 8: a virtual interrupt is pending. */
export const V_IRQ_MASK = 1 << 8;
/** int_ctl bits 19:16: the virtual interrupt's priority. */
export const V_INTR_PRIO_SHIFT = 16;
/** int_ctl bit 20: take the virtual interrupt whatever V_TPR says. */
export const V_IGN_TPR_MASK = 1 << 20;
/** int_ctl bit 24: the guest's IF masks virtual interrupts alone. */
export const V_INTR_MASKING_MASK = 1 << 24;
