/**
 * What a KVM hypercall answers when it fails (include/uapi/linux/kvm_para.h): the negated code stands in the result
 * register, sign-extended to the width of the call.
 *
 * @module
 */

/** The call is not allowed from where it was made: on x86, CPL is not 0. */
export const KVM_EPERM = 1;
/** An argument list is too long; no x86 hypercall returns it. */
export const KVM_E2BIG = 7;
/** Guest memory that an argument names is not there. */
export const KVM_EFAULT = 14;
/** An argument has a value that the call does not allow. */
export const KVM_EINVAL = 22;
/** The call exists but cannot be served in the host's present state. */
export const KVM_EOPNOTSUPP = 95;
/** No such hypercall here, or its feature bit is absent and enforced. */
export const KVM_ENOSYS = 1000;

/** The errors by name. */
export const KVM_ERRORS: Readonly<
  Record<"KVM_EPERM" | "KVM_E2BIG" | "KVM_EFAULT" | "KVM_EINVAL" | "KVM_EOPNOTSUPP" | "KVM_ENOSYS", number>
> = { KVM_EPERM, KVM_E2BIG, KVM_EFAULT, KVM_EINVAL, KVM_EOPNOTSUPP, KVM_ENOSYS };
