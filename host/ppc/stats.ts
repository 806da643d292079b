/**
 * What KVM counts of a PowerPC vCPU.
 *
 * @module
 */

/** What KVM counts of a vCPU, by the names of its statistics (arch/powerpc/kvm/{book3s,booke}.c). */
export interface PpcStats {
  /** Exits; BookE does not count them. */
  sum_exits: number;
  /** Emulated instructions. */
  emulated_inst_exits: number;
  /** System calls of the guest; on BookE without hypervisor state hypercalls too. */
  syscall_exits: number;
  /** The host wanted the CPU. */
  ext_intr_exits: number;
  /** The host's timer expired. */
  dec_exits: number;
  /** A guest doorbell: an interrupt is pending that the guest has just allowed. */
  gdbell_exits: number;
  /** Book3S: accesses to memory without a translation. */
  pf_storage: number;
  /** Book3S: fetches from memory without a translation. */
  pf_instruc: number;
  /** BookE: accesses for which the guest has no translation. */
  dtlb_real_miss_exits: number;
  /** BookE: those for which KVM had yet to make one. */
  dtlb_virt_miss_exits: number;
  /** BookE: fetches for which the guest has no translation. */
  itlb_real_miss_exits: number;
}

/** Nothing yet. */
export function noPpcStats(): PpcStats {
  return {
    sum_exits: 0,
    emulated_inst_exits: 0,
    syscall_exits: 0,
    ext_intr_exits: 0,
    dec_exits: 0,
    gdbell_exits: 0,
    pf_storage: 0,
    pf_instruc: 0,
    dtlb_real_miss_exits: 0,
    dtlb_virt_miss_exits: 0,
    itlb_real_miss_exits: 0,
  };
}
