/**
 * PowerPC's hypercall conventions: ePAPR's registers, and one of two sequences of words that the guest takes from the
 * device tree (ePAPR 1.1; Documentation/virt/kvm/ppc-pv.rst; arch/powerpc/kvm/powerpc.c, kvmppc_kvm_pv).
 *
 * @module
 */

import { type Convention, raises, returns } from "../convention.ts";
import type { InstructionFormat } from "../instruction_format.ts";
import { EV_STATUS } from "./hcalls.ts";
import { BOOK3S_INTERRUPTS, BOOKE_INTERRUPTS } from "./interrupts.ts";
import { HCALL_WORDS_BOOKE_HV, HCALL_WORDS_PR } from "./pvinfo.ts";

/** Hosts that run guests in problem state: "KVM!" in r0, and a plain system call. */
export const PPC_HCALL_PR: InstructionFormat<never> = {
  name: "sc",
  text: "lis r0,0x4b56; ori r0,r0,0x4d21; sc; nop",
  unitBytes: 4,
  units: HCALL_WORDS_PR,
  fields: {},
};

/** Hosts of BookE that have hypervisor state. */
export const PPC_HCALL_BOOKE_HV: InstructionFormat<never> = {
  name: "sc 1",
  text: "sc 1; nop; nop; nop",
  unitBytes: 4,
  units: HCALL_WORDS_BOOKE_HV,
  fields: {},
};

/** The registers of a call. */
export type PpcCallRegister = "r3" | "r4" | "r5" | "r6" | "r7" | "r8" | "r9" | "r10" | "r11";

const EPAPR = {
  arch: "ppc",
  byteOrder: "guest",
  number: "r11",
  arguments: ["r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10"],
  results: ["r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11"],
  widths: {
    narrowMode: "MSR[SF] = 0",
    // The host reads r11 as an int in either mode.
    number: { wide: "u32", narrow: "u32" },
    arguments: { wide: "u64", narrow: "u32" },
    results: { wide: "u64", narrow: "u64" },
  },
  advance: "hardware",
  discovery:
    'device tree: /hypervisor is compatible with "linux,kvm" and has hcall-instructions; then KVM_HC_FEATURES',
  clobbers: ["r0", "r5-r12", "xer", "ctr", "lr", "cr", "memory"],
} as const;

/** A result that is no call: EV_UNIMPLEMENTED, and 0 in r4. */
const UNKNOWN = returns(BigInt(EV_STATUS.EV_UNIMPLEMENTED), 0n);

/**
 * The convention of Book3S hosts that run guests in problem state. In user mode the same words are a system call to
 * the guest.
 */
export const PPC_PR_CONVENTION: Convention<PpcCallRegister> = {
  ...EPAPR,
  instructions: [PPC_HCALL_PR],
  errors: {
    status: "ev-status",
    unknown: UNKNOWN,
    fromUserMode: raises("SYSCALL", BOOK3S_INTERRUPTS.SYSCALL),
  },
};

/** The same of BookE hosts without hypervisor state, whose interrupts have other numbers. */
export const PPC_BOOKE_PR_CONVENTION: Convention<PpcCallRegister> = {
  ...PPC_PR_CONVENTION,
  errors: { ...PPC_PR_CONVENTION.errors, fromUserMode: raises("SYSCALL", BOOKE_INTERRUPTS.SYSCALL) },
};

/** The convention of BookE hosts with hypervisor state. In user mode the call is a privileged instruction. */
export const PPC_BOOKE_HV_CONVENTION: Convention<PpcCallRegister> = {
  ...EPAPR,
  instructions: [PPC_HCALL_BOOKE_HV],
  errors: {
    status: "ev-status",
    unknown: UNKNOWN,
    fromUserMode: raises("PROGRAM", BOOKE_INTERRUPTS.PROGRAM),
  },
};
