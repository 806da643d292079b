/**
 * PowerPC interrupts: their vectors, their numbers as exits, and the names that kvm_exit prints
 * (arch/powerpc/include/asm/kvm_asm.h, arch/powerpc/kvm/{trace_book3s,trace_booke}.h).
 *
 * @module
 */

/** The two families of interrupt architecture. */
export type PpcFamily = "book3s" | "booke";

/** Interrupts of Book3S: the offset of the vector, which is also the exit's number. */
export const BOOK3S_INTERRUPTS = {
  SYSTEM_RESET: 0x100,
  MACHINE_CHECK: 0x200,
  DATA_STORAGE: 0x300,
  DATA_SEGMENT: 0x380,
  INST_STORAGE: 0x400,
  INST_SEGMENT: 0x480,
  EXTERNAL: 0x500,
  ALIGNMENT: 0x600,
  PROGRAM: 0x700,
  FP_UNAVAIL: 0x800,
  DECREMENTER: 0x900,
  SYSCALL: 0xc00,
  TRACE: 0xd00,
  H_EMUL_ASSIST: 0xe40,
} as const;

/** Interrupts of BookE: the exit's number. Up to 15 it is the IVOR's number too. */
export const BOOKE_INTERRUPTS = {
  CRITICAL: 0,
  MACHINE_CHECK: 1,
  DATA_STORAGE: 2,
  INST_STORAGE: 3,
  EXTERNAL: 4,
  ALIGNMENT: 5,
  PROGRAM: 6,
  FP_UNAVAIL: 7,
  SYSCALL: 8,
  AP_UNAVAIL: 9,
  DECREMENTER: 10,
  FIT: 11,
  WATCHDOG: 12,
  DTLB_MISS: 13,
  ITLB_MISS: 14,
  DEBUG: 15,
  DOORBELL: 36,
  DOORBELL_CRITICAL: 37,
  GUEST_DBELL: 38,
  GUEST_DBELL_CRIT: 39,
  HV_SYSCALL: 40,
  HV_PRIV: 41,
} as const;

/** The interrupts that this project's processors raise; both families have them. */
export type PpcInterrupt =
  | "DATA_STORAGE"
  | "INST_STORAGE"
  | "EXTERNAL"
  | "PROGRAM"
  | "DECREMENTER"
  | "SYSCALL";

/**
 * The offset of an interrupt's vector from where the guest keeps its vectors. On BookE the guest chooses it, in a
 * register for each interrupt: this project's guests choose blocks of text in the order of the registers.
 */
export function ppcVector(family: PpcFamily, interrupt: PpcInterrupt): number {
  return family === "book3s" ? BOOK3S_INTERRUPTS[interrupt] : 0x200 * BOOKE_INTERRUPTS[interrupt];
}
