/**
 * What KVM counts of an s390 vCPU, by its names (struct kvm_vcpu_stat in asm/kvm_host.h).
 *
 * @module
 */

/** The counters that calls and pfault move. */
export interface S390Stats {
  /** DIAGNOSE 0x10. */
  instruction_diagnose_10: number;
  /** DIAGNOSE 0x44. */
  instruction_diagnose_44: number;
  /** DIAGNOSE 0x9c. */
  instruction_diagnose_9c: number;
  /** Those that came to nothing. */
  diag_9c_ignored: number;
  /** Those that were passed on to the hypervisor below. */
  diag_9c_forward: number;
  /** DIAGNOSE 0x258. */
  instruction_diagnose_258: number;
  /** DIAGNOSE 0x308. */
  instruction_diagnose_308: number;
  /** DIAGNOSE 0x500. */
  instruction_diagnose_500: number;
  /** Other functions, which KVM leaves to user space. */
  instruction_diagnose_other: number;
  /** STSI. */
  instruction_stsi: number;
  /** Faults for which the vCPU waited in the host. */
  pfault_sync: number;
}

/** Counters at 0. */
export function s390Stats(): S390Stats {
  return {
    instruction_diagnose_10: 0,
    instruction_diagnose_44: 0,
    instruction_diagnose_9c: 0,
    diag_9c_ignored: 0,
    diag_9c_forward: 0,
    instruction_diagnose_258: 0,
    instruction_diagnose_308: 0,
    instruction_diagnose_500: 0,
    instruction_diagnose_other: 0,
    instruction_stsi: 0,
    pfault_sync: 0,
  };
}
