/**
 * KVM's tracepoints on s390 (arch/s390/kvm/trace.h and trace-s390.h), as far as this host fires them.
 *
 * @module
 */

import type { TracepointSpec } from "../trace/mod.ts";

type Row = readonly [name: string, args: TracepointSpec["args"], fires: string];

const ROWS = [
  ["kvm_s390_sie_enter", [["address", "hex64"]], "each entry"],
  ["kvm_s390_sie_exit", [["icptcode", "exit"], ["address", "hex64"]], "each exit, before any handling"],
  ["kvm_s390_sie_fault", [["address", "hex64"]], "the guest touched memory that the host has not mapped"],
  ["kvm_s390_intercept_instruction", [["ipa", "hex"], ["ipb", "hex"]], "an intercepted instruction"],
  ["kvm_s390_handle_diag", [["code", "hex"]], "each DIAGNOSE from the supervisor state"],
  [
    "kvm_s390_handle_stsi",
    [["fc", "dec"], ["sel1", "dec"], ["sel2", "dec"]],
    "each STSI that stores a block",
  ],
  ["kvm_s390_request_resets", [["flags", "hex"]], "DIAGNOSE 0x308 asks user space for a reset"],
  ["kvm_s390_inject_vm", [["type", "hex"], ["parm64", "hex64"]], "a floating interruption is queued"],
  ["kvm_s390_inject_vcpu", [["type", "hex"], ["parm64", "hex64"]], "a CPU's interruption is queued"],
  ["kvm_s390_deliver_interrupt", [["type", "hex"], ["parm64", "hex64"]], "an interruption goes to the guest"],
  ["kvm_userspace_exit", [["reason", "dec"]], "KVM_RUN comes back"],
] as const satisfies readonly Row[];

/** The tracepoints, by number. */
export const S390_TRACEPOINTS: readonly TracepointSpec[] = ROWS.map(([name, args, fires]) => ({
  name,
  name2012: null,
  args,
  fires,
}));

/** A tracepoint's name. */
export type S390Event = (typeof ROWS)[number][0];

/** The tracepoints' numbers, by name. */
export const S390_TP: Readonly<Record<S390Event, number>> = Object.fromEntries(
  ROWS.map(([name], number) => [name, number]),
) as Record<S390Event, number>;
