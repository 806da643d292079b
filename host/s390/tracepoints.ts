/**
 * KVM's tracepoints on s390 (arch/s390/kvm/trace.h and trace-s390.h), as far as this host fires them.
 *
 * @module
 */

import { tracepointTable } from "../arch/mod.ts";
import type { TracepointSpec } from "../trace/mod.ts";

/** An interruption: KVM's type, and two parameters, the second of 64 bits. */
const INTERRUPTION = [["type", "hex"], ["parm", "hex"], ["parm64", "hex64"]] as const;
/** The token of a page. */
const TOKEN = [["pfault_token", "hex64"]] as const;

const TABLE = tracepointTable({
  kvm_s390_vcpu_start_stop: {
    args: [["id", "dec"], ["state", "dec"]],
    fires: "user space has a CPU start, or stop",
  },
  kvm_s390_sie_enter: { args: [["address", "hex"]], fires: "each entry" },
  kvm_s390_sie_exit: {
    args: [["icptcode", "exit"], ["address", "hex"]],
    fires: "each exit, before any handling",
  },
  kvm_s390_sie_fault: {
    args: [["address", "hex"]],
    fires: "the guest touched an address where no memory is",
  },
  kvm_s390_major_guest_pfault: {
    args: [["address", "hex"]],
    fires: "the guest touched a page that has to be brought in",
  },
  kvm_s390_pfault_init: { args: TOKEN, fires: "the guest is to hear that a page is missing" },
  kvm_s390_pfault_done: { args: TOKEN, fires: "the guest is to hear that it has come" },
  kvm_s390_intercept_instruction: {
    args: [["ipa", "hex"], ["ipb", "hex"]],
    fires: "an intercepted instruction",
  },
  kvm_s390_handle_diag: { args: [["code", "hex"]], fires: "each DIAGNOSE from the supervisor state" },
  kvm_s390_handle_prefix: {
    args: [["set", "dec"], ["address", "hex"]],
    fires: "each SPX that sets the prefix, and each STPX that stores it",
  },
  kvm_s390_handle_stap: { args: [["address", "hex64"]], fires: "each STAP that stores the CPU's address" },
  kvm_s390_handle_stsi: {
    args: [["fc", "dec"], ["sel1", "dec"], ["sel2", "dec"], ["addr", "hex64"]],
    fires: "each STSI that stores a block",
  },
  kvm_s390_request_resets: { args: [["flags", "hex"]], fires: "DIAGNOSE 0x308 asks user space for a reset" },
  kvm_s390_inject_vm: { args: INTERRUPTION, fires: "a floating interruption is queued" },
  kvm_s390_inject_vcpu: { args: INTERRUPTION, fires: "a CPU's own interruption is queued" },
  kvm_s390_deliver_interrupt: { args: INTERRUPTION, fires: "KVM gives the guest an interruption" },
  kvm_userspace_exit: { args: [["reason", "dec"]], fires: "KVM_RUN comes back" },
});

/** The tracepoints, by number. */
export const S390_TRACEPOINTS: readonly TracepointSpec[] = TABLE.specs;

/** A tracepoint's name. */
export type S390Event =
  | "kvm_s390_vcpu_start_stop"
  | "kvm_s390_sie_enter"
  | "kvm_s390_sie_exit"
  | "kvm_s390_sie_fault"
  | "kvm_s390_major_guest_pfault"
  | "kvm_s390_pfault_init"
  | "kvm_s390_pfault_done"
  | "kvm_s390_intercept_instruction"
  | "kvm_s390_handle_diag"
  | "kvm_s390_handle_prefix"
  | "kvm_s390_handle_stap"
  | "kvm_s390_handle_stsi"
  | "kvm_s390_request_resets"
  | "kvm_s390_inject_vm"
  | "kvm_s390_inject_vcpu"
  | "kvm_s390_deliver_interrupt"
  | "kvm_userspace_exit";

/** The tracepoints' numbers, by name. */
export const S390_TP: Readonly<Record<S390Event, number>> = TABLE.numbers;
