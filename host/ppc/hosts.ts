/**
 * The hosts of PowerPC: what they run guests on, what of a guest leaves guest mode, how they are called, and what user
 * space (QEMU) tells guests of them.
 *
 * @module
 */

import {
  type Convention,
  HCALL_WORDS_FAIL,
  KVM_FEATURE_MAGIC_PAGE,
  PPC_BOOKE_HV_CONVENTION,
  PPC_BOOKE_PR_CONVENTION,
  PPC_PR_CONVENTION,
  type PpcCallRegister,
  type PpcCore,
  type PpcFamily,
} from "../../abi/mod.ts";

/** The hosts by name. */
export type PpcHostName =
  | "book3s-64-pr"
  | "book3s-32-pr"
  | "e500v2"
  | "e500mc"
  | "book3s-64-hv"
  | "book3s-64-hv+qemu-2.5"
  | "none";

/** What user space writes into the device tree's node of the hypervisor, beside KVM's name. */
export interface HypervisorNode {
  /** The words of hcall-instructions; undefined where there is no such property. */
  readonly words: readonly number[] | undefined;
  /** Whether there is has-idle. */
  readonly idle: boolean;
}

/** A host. */
export interface PpcHost {
  /** What its guests see of a processor. */
  readonly core: PpcCore;
  /** How interrupts work. */
  readonly family: PpcFamily;
  /**
   * Whether guests run in problem state, their kernels too: then each privileged instruction leaves guest mode. Else
   * hardware has a state for guest kernels, and executes most of them.
   */
  readonly problemState: boolean;
  /** How guests call it; undefined where KVM has no hypercalls of its own. */
  readonly convention: Convention<PpcCallRegister> | undefined;
  /** What the device tree says of the hypervisor; undefined where there is none. */
  readonly hypervisor: HypervisorNode | undefined;
  /** Whether user space has enabled PAPR's calls (KVM_CAP_PPC_PAPR), as QEMU does for its pseries machines. */
  readonly papr: boolean;
  /** What KVM_HC_FEATURES answers. */
  readonly features: number;
  /** The processor version that its guests read (QEMU, target/ppc/cpu-models.h). */
  readonly pvr: number;
  /** What it is: KVM, the processor, and how that translates addresses. */
  readonly meaning: string;
}

const MAGIC = 1 << KVM_FEATURE_MAGIC_PAGE;
/** A server that runs either byte order: CPU_POWERPC_POWER8_v20. It translates by hash alone. */
const POWER8 = 0x004d_0200;

const PR: HypervisorNode = { words: PPC_PR_CONVENTION.instructions[0].units, idle: false };

/**
 * Every host. QEMU writes has-idle for e500 boards alone (hw/ppc/e500.c); KVM_PPC_PVINFO_FLAGS_EV_IDLE is set
 * everywhere. For Book3S of 32 bits, whose node firmware writes, that is not confirmed.
 */
export const PPC_HOSTS: Readonly<Record<PpcHostName, PpcHost>> = {
  "book3s-64-pr": {
    core: "book3s-64",
    family: "book3s",
    problemState: true,
    convention: PPC_PR_CONVENTION,
    hypervisor: PR,
    papr: true,
    features: MAGIC,
    pvr: POWER8,
    meaning: "KVM-PR on a 64-bit server: POWER8, translation by hash",
  },
  "book3s-32-pr": {
    core: "book3s-32",
    family: "book3s",
    problemState: true,
    convention: PPC_PR_CONVENTION,
    hypervisor: PR,
    papr: false,
    features: MAGIC,
    pvr: 0x8003_0102,
    meaning: "KVM-PR on a 32-bit Book3S processor: MPC7447A, a G4; translation by segment registers and hash",
  },
  e500v2: {
    core: "booke",
    family: "booke",
    problemState: true,
    convention: PPC_BOOKE_PR_CONVENTION,
    hypervisor: { ...PR, idle: true },
    papr: false,
    features: MAGIC,
    pvr: 0x8021_0030,
    meaning: "KVM on BookE without hypervisor state: e500v2, a TLB that software fills",
  },
  e500mc: {
    core: "booke",
    family: "booke",
    problemState: false,
    convention: PPC_BOOKE_HV_CONVENTION,
    hypervisor: { words: PPC_BOOKE_HV_CONVENTION.instructions[0].units, idle: true },
    papr: false,
    features: 0,
    pvr: 0x8023_0020,
    meaning: "KVM on BookE with hypervisor state: e500mc, a TLB that software fills",
  },
  "book3s-64-hv": hv(
    // KVM_CAP_PPC_GET_PVINFO is there without hypervisor state only; QEMU leaves the property out (hw/ppc/spapr.c).
    undefined,
    "KVM-HV on a 64-bit server: POWER8, translation by hash; its guests call it by PAPR alone",
  ),
  "book3s-64-hv+qemu-2.5": hv(
    // Its spapr_create_fdt_skel did not look whether kvmppc_get_hypercall had found any words.
    HCALL_WORDS_FAIL,
    "the same under QEMU 2.5, which tells guests of a call that always fails",
  ),
  none: {
    ...hv(undefined, "a 64-bit server without a hypervisor: POWER8, translation by hash"),
    hypervisor: undefined,
    papr: false,
  },
};

function hv(words: readonly number[] | undefined, meaning: string): PpcHost {
  return {
    core: "book3s-64",
    family: "book3s",
    problemState: false,
    convention: undefined,
    hypervisor: { words, idle: false },
    papr: true,
    features: 0,
    pvr: POWER8,
    meaning,
  };
}
