/**
 * The KVM hosts of PowerPC: what they run guests on, what of a guest leaves guest mode, and how they are called.
 *
 * @module
 */

import {
  type Convention,
  KVM_FEATURE_MAGIC_PAGE,
  PPC_BOOKE_HV_CONVENTION,
  PPC_BOOKE_PR_CONVENTION,
  PPC_PR_CONVENTION,
  type PpcCallRegister,
  type PpcCore,
  type PpcFamily,
} from "../../abi/mod.ts";

/** The hosts by name. */
export type PpcHostName = "book3s-64-pr" | "book3s-32-pr" | "e500v2" | "e500mc" | "book3s-64-hv";

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
  /** What KVM_HC_FEATURES answers. */
  readonly features: number;
  /** The processor version that its guests read. */
  readonly pvr: number;
  /** What it is. */
  readonly meaning: string;
}

const MAGIC = 1 << KVM_FEATURE_MAGIC_PAGE;

/** Every host. */
export const PPC_HOSTS: Readonly<Record<PpcHostName, PpcHost>> = {
  "book3s-64-pr": {
    core: "book3s-64",
    family: "book3s",
    problemState: true,
    convention: PPC_PR_CONVENTION,
    features: MAGIC,
    pvr: 0x003c_0301,
    meaning: "KVM-PR on a 64-bit server",
  },
  "book3s-32-pr": {
    core: "book3s-32",
    family: "book3s",
    problemState: true,
    convention: PPC_PR_CONVENTION,
    features: MAGIC,
    pvr: 0x8003_0102,
    meaning: "KVM-PR on a 32-bit Book3S processor such as the G4",
  },
  e500v2: {
    core: "booke",
    family: "booke",
    problemState: true,
    convention: PPC_BOOKE_PR_CONVENTION,
    features: MAGIC,
    pvr: 0x8021_0030,
    meaning: "KVM on BookE without hypervisor state",
  },
  e500mc: {
    core: "booke",
    family: "booke",
    problemState: false,
    convention: PPC_BOOKE_HV_CONVENTION,
    features: 0,
    pvr: 0x8023_0020,
    meaning: "KVM on BookE with hypervisor state",
  },
  "book3s-64-hv": {
    core: "book3s-64",
    family: "book3s",
    problemState: false,
    convention: undefined, // KVM_CAP_PPC_GET_PVINFO is there without hypervisor state only.
    features: 0,
    pvr: 0x004d_0200, // PVR_POWER8: translation by hash alone.
    meaning: "KVM-HV on a 64-bit server: its guests call it by PAPR alone",
  },
};
