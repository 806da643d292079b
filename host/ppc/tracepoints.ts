/**
 * KVM's tracepoints on PowerPC (arch/powerpc/kvm/{trace,trace_pr,trace_booke,trace_hv}.h), and virt/kvm's that this host
 * emits.
 *
 * @module
 */

import { type TracepointTable, tracepointTable } from "../arch/tracepoints.ts";
import type { TracepointSpec } from "../trace/mod.ts";

/** The events. */
export type PpcEvent =
  | "kvm_exit"
  | "kvm_ppc_instr"
  | "kvm_book3s_reenter"
  | "kvm_booke_queue_irqprio"
  | "kvm_guest_enter"
  | "kvm_guest_exit"
  | "kvm_userspace_exit";

const TABLE: TracepointTable<PpcEvent> = tracepointTable<PpcEvent>({
  kvm_exit: {
    args: [["exit", "exit"], ["pc", "hex"], ["msr", "hex64"], ["last_inst", "hex"]],
    fires: "each exit, before any handling; not on KVM-HV",
  },
  kvm_ppc_instr: {
    args: [["inst", "dec"], ["pc", "hex"], ["emulate", "dec"]],
    fires: "each emulated instruction",
  },
  kvm_book3s_reenter: {
    args: [["r", "dec"], ["pc", "hex"]],
    fires: "KVM-PR has handled an exit, and goes back to the guest or to user space",
  },
  kvm_booke_queue_irqprio: {
    args: [["priority", "dec"]],
    fires: "an interrupt becomes pending on BookE",
  },
  kvm_guest_enter: { args: [["pc", "hex"]], fires: "KVM-HV enters" },
  kvm_guest_exit: {
    args: [["trap", "exit"], ["pc", "hex"], ["msr", "hex64"]],
    fires: "each exit to KVM-HV, but for what its real-mode handlers have done already",
  },
  kvm_userspace_exit: { args: [["reason", "dec"]], fires: "KVM_RUN comes back" },
});

/** The tracepoints, by number. */
export const PPC_TRACEPOINTS: readonly TracepointSpec[] = TABLE.specs;
/** Their numbers. */
export const PPC_TP: TracepointTable<PpcEvent>["numbers"] = TABLE.numbers;
