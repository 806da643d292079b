/**
 * KVM's tracepoints on MIPS (arch/mips/kvm/trace.h), and the exits that kvm_exit names: the root's exception codes up to
 * 31, and from 64 on what GuestCtl0.GExcCode says of a guest exit.
 *
 * @module
 */

import { tracepointTable } from "../arch/tracepoints.ts";
import type { TracepointSpec } from "../trace/mod.ts";

/** The name of a tracepoint. */
export type MipsTracepoint = "kvm_enter" | "kvm_reenter" | "kvm_out" | "kvm_exit" | "kvm_userspace_exit";

const PC = ["pc", "hex64"] as const;

const TABLE = tracepointTable<MipsTracepoint>({
  kvm_enter: { args: [PC], fires: "KVM_RUN enters the guest" },
  kvm_reenter: { args: [PC], fires: "the guest is entered again after an exit that the kernel has handled" },
  kvm_out: { args: [PC], fires: "KVM_RUN is about to come back" },
  kvm_exit: {
    args: [["reason", "exit"], PC],
    fires: "each exit; a guest exit once more, with what kind it is",
  },
  kvm_userspace_exit: { args: [["reason", "dec"]], fires: "each return to user space" },
});

/** Every tracepoint, by number. */
export const MIPS_TRACEPOINTS: readonly TracepointSpec[] = TABLE.specs;
/** The tracepoints' numbers. */
export const MIPS_TP: Readonly<Record<MipsTracepoint, number>> = TABLE.numbers;

/** A TLB refill of the root's: the guest loads or fetches where no memory slot is. */
export const MIPS_EXIT_TLBL = 2;
/** The same for a store. */
export const MIPS_EXIT_TLBS = 3;
/** The root's exception for whatever GExcCode tells. */
export const MIPS_EXIT_GUEST_EXIT = 27;
/** GExcCode 2: HYPCALL. */
export const MIPS_EXIT_HC: number = 64 + 2;

/** The names that kvm_exit prints (kvm_trace_symbol_exit_types), by number; of those that happen here. */
export const MIPS_EXIT_NAMES: readonly string[] = Object.assign(
  new Array<string>(MIPS_EXIT_HC + 1).fill(""),
  {
    [MIPS_EXIT_TLBL]: "TLB Miss (LD)",
    [MIPS_EXIT_TLBS]: "TLB Miss (ST)",
    [MIPS_EXIT_GUEST_EXIT]: "Guest Exit",
    [MIPS_EXIT_HC]: "HC",
  },
);
