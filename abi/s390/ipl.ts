/**
 * DIAGNOSE 0x308, IPL functions: subcodes and results (QEMU's target/s390x/diag.c), and the reset that KVM asks user space
 * for.
 *
 * @module
 */

/** Subcode 0: modified clear. */
export const DIAG308_RESET_MOD_CLR = 0;
/** Subcode 1: load normal reset. */
export const DIAG308_RESET_LOAD_NORM = 1;
/** Subcode 3: load clear, an IPL that clears memory. */
export const DIAG308_LOAD_CLEAR = 3;
/** Subcode 4: load normal, an IPL that does not. */
export const DIAG308_LOAD_NORMAL_DUMP = 4;
/** Subcode 5: sets the IPL parameters. */
export const DIAG308_SET = 5;
/** Subcode 6: stores the IPL parameters. */
export const DIAG308_STORE = 6;

/** Result: done. */
export const DIAG308_RC_OK = 0x0001;
/** Result: there are no IPL parameters. */
export const DIAG308_RC_NO_CONF = 0x0102;
/** Result: the parameters are none. */
export const DIAG308_RC_INVALID = 0x0402;

/** The length of a whole IPL parameter block (sizeof(IplParameterBlock), QEMU's include/hw/s390x/ipl/qipl.h). */
export const IPLB_LENGTH = 4096;
/** Where a block has its type (pbt); its first word is its length. */
export const IPLB_TYPE_OFFSET = 12;

/**
 * The types of a block that names a device, and the shortest block of each (QEMU's hw/s390x/ipl.h, iplb_valid). Not here:
 * PCI's, which only the newest QEMU knows, and QEMU's own, by which its firmware asks for the next boot device.
 */
export const IPLB_TYPES = {
  S390_IPL_TYPE_FCP: { type: 0x00, shortest: 384 },
  S390_IPL_TYPE_CCW: { type: 0x02, shortest: 200 },
} as const;

/** KVM_EXIT_S390_RESET's flags (linux/kvm.h). */
export const KVM_S390_RESETS = {
  KVM_S390_RESET_POR: 1,
  KVM_S390_RESET_CLEAR: 2,
  KVM_S390_RESET_SUBSYSTEM: 4,
  KVM_S390_RESET_CPU_INIT: 8,
  KVM_S390_RESET_IPL: 16,
} as const;
