/**
 * Why KVM_RUN comes back (include/uapi/linux/kvm.h): what the hosts of s390, PowerPC and MIPS tell user space.
 *
 * @module
 */

/** KVM_EXIT_* numbers. */
export const KVM_EXITS = {
  KVM_EXIT_UNKNOWN: 0,
  KVM_EXIT_HYPERCALL: 3,
  KVM_EXIT_SHUTDOWN: 8,
  KVM_EXIT_S390_SIEIC: 13,
  KVM_EXIT_S390_RESET: 14,
  KVM_EXIT_INTERNAL_ERROR: 17,
  KVM_EXIT_PAPR_HCALL: 19,
  KVM_EXIT_SYSTEM_EVENT: 24,
  KVM_EXIT_S390_STSI: 25,
} as const;

/** The name of a reason. */
export type KvmExit = keyof typeof KVM_EXITS;

/** KVM_SYSTEM_EVENT_*: the types of KVM_EXIT_SYSTEM_EVENT that a host here reports. */
export const KVM_SYSTEM_EVENTS = {
  KVM_SYSTEM_EVENT_SHUTDOWN: 1,
} as const;

/** The name of a type. */
export type KvmSystemEvent = keyof typeof KVM_SYSTEM_EVENTS;
