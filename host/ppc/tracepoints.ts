/**
 * KVM's tracepoints on PowerPC (arch/powerpc/kvm/{trace,trace_pr,trace_booke}.h), and virt/kvm's that this host emits.
 *
 * @module
 */

import type { TracepointSpec } from "../trace/mod.ts";

/** The tracepoints. Their numbers are their places. */
export const PPC_TRACEPOINTS: readonly TracepointSpec[] = [
  {
    name: "kvm_exit",
    name2012: "kvm_exit",
    args: [["exit", "exit"], ["pc", "hex"], ["msr", "hex64"], ["last_inst", "hex"]],
    fires: "each exit, before any handling",
  },
  {
    name: "kvm_ppc_instr",
    name2012: "kvm_ppc_instr",
    args: [["inst", "dec"], ["pc", "hex"], ["emulate", "dec"]],
    fires: "each emulated instruction, before its address is left behind",
  },
  {
    name: "kvm_book3s_reenter",
    name2012: "kvm_book3s_reenter",
    args: [["r", "dec"], ["pc", "hex"]],
    fires: "KVM-PR goes back to the guest without user space",
  },
  {
    name: "kvm_booke_queue_irqprio",
    name2012: null,
    args: [["priority", "dec"], ["pending", "hex"]],
    fires: "an interrupt becomes pending on BookE",
  },
  {
    name: "kvm_userspace_exit",
    name2012: "kvm_userspace_exit",
    args: [["reason", "dec"]],
    fires: "KVM_RUN comes back",
  },
];

/** kvm_exit. */
export const TRACE_KVM_EXIT = 0;
/** kvm_ppc_instr. */
export const TRACE_KVM_PPC_INSTR = 1;
/** kvm_book3s_reenter. */
export const TRACE_KVM_BOOK3S_REENTER = 2;
/** kvm_booke_queue_irqprio. */
export const TRACE_KVM_BOOKE_QUEUE_IRQPRIO = 3;
/** kvm_userspace_exit. */
export const TRACE_KVM_USERSPACE_EXIT = 4;
