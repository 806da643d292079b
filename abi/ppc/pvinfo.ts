/**
 * How a guest calls its host: the words that KVM_PPC_GET_PVINFO gives user space, which writes them into the device
 * tree, from where the guest patches them into its stub (arch/powerpc/kvm/powerpc.c,
 * arch/powerpc/kernel/epapr_hcalls.S).
 *
 * @module
 */

import { PPC_BLR, PPC_NOP, PPC_SC, PPC_SC1, ppcAsm } from "./assembly.ts";
import { encodePpc } from "./instructions.ts";
import { KVM_SC_MAGIC_R0 } from "./hcalls.ts";

/** The node of the device tree that describes the host. */
export const HYPERVISOR_NODE = "hypervisor";
/** Its property with the words; KVM's documentation calls it hypercall-instructions, and no code does. */
export const HCALL_INSTRUCTIONS = "hcall-instructions";
/** Its property that says: EV_IDLE can be used to wait. It has no value. */
export const HAS_IDLE = "has-idle";
/** Its `compatible`, by which a guest finds KVM. */
export const KVM_COMPATIBLE = "linux,kvm";

/** struct kvm_ppc_pvinfo's flag: EV_IDLE works (KVM_PPC_PVINFO_FLAGS_EV_IDLE). */
export const KVM_PPC_PVINFO_FLAGS_EV_IDLE = 1;

/** The words of hosts that run guests in problem state: "KVM!" in r0, and a plain system call. */
export const HCALL_WORDS_PR: readonly number[] = [
  ppcAsm.lis(0, KVM_SC_MAGIC_R0 >>> 16),
  encodePpc("ori", { RA: 0, RS: 0, UI: KVM_SC_MAGIC_R0 & 0xffff }),
  PPC_SC,
  PPC_NOP,
];

/** The words of a host of BookE with the embedded hypervisor category. */
export const HCALL_WORDS_BOOKE_HV: readonly number[] = [PPC_SC1, PPC_NOP, PPC_NOP, PPC_NOP];

/**
 * What QEMU writes where the host has no call (target/ppc/kvm.c, kvmppc_get_hypercall): r3 becomes -1 in either byte
 * order. Read one way round, the words are a trap that never traps, `li r3,-1` and a branch over the last; read the
 * other way, a branch over the second, and the same two. That trap, `tdi`, is a word of 64-bit processors alone: a
 * 32-bit guest takes an illegal instruction instead.
 */
export const HCALL_WORDS_FAIL: readonly number[] = [0x0800_0048, ppcAsm.li(3, -1), 0x4800_0008, 0xffff_6038];

/** The most words that a guest patches in. */
export const HCALL_WORDS_MAX = 4;

/** The stub before anybody patched it: r3 = -1. Its last word, the return, is never replaced. */
export const HCALL_STUB: readonly number[] = [ppcAsm.li(3, -1), PPC_NOP, PPC_NOP, PPC_NOP, PPC_BLR];
