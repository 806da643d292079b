/**
 * What Linux makes of a processor's VMX at boot, before KVM: it looks at what firmware left in IA32_FEATURE_CONTROL,
 * and keeps the capability MSRs as words of features (arch/x86/kernel/cpu/feat_ctl.c, init_ia32_feat_ctl and
 * init_vmx_capabilities). Linux has these words since v5.6 (2020), and the two of the tertiary controls since v6.0.
 *
 * @module
 */

import {
  CPU_BASED_TPR_SHADOW,
  FEAT_CTL_LOCKED,
  FEAT_CTL_VMX_ENABLED_INSIDE_SMX,
  FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX,
  highOf,
  IA32_VMX_EPT_VPID_CAP,
  IA32_VMX_PINBASED_CTLS,
  IA32_VMX_PROCBASED_CTLS,
  IA32_VMX_PROCBASED_CTLS2,
  IA32_VMX_PROCBASED_CTLS3,
  IA32_VMX_VMFUNC,
  lowOf,
  PIN_BASED_POSTED_INTR,
  PIN_BASED_VIRTUAL_NMIS,
  SECONDARY_EXEC_APIC_REGISTER_VIRT,
  SECONDARY_EXEC_ENABLE_EPT,
  SECONDARY_EXEC_ENABLE_VPID,
  SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
  SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES,
  VMX_EPT_1GB_PAGE_BIT,
  VMX_EPT_AD_BIT,
  VMX_EPT_EXECUTE_ONLY_BIT,
  VMX_EPT_PAGE_WALK_5_BIT,
  VMX_FEATURE_WORDS,
  VMX_FEATURES,
} from "../../abi/mod.ts";
import type { HostBehaviour } from "../semantics.ts";
import type { ReadsCapabilities } from "./config.ts";
import type { Decision } from "./setup.ts";

/** What firmware left, and how the host was booted. */
export interface FeatureControlOptions {
  /** IA32_FEATURE_CONTROL as firmware left it; 0, so unlocked, by default. undefined: there is no such MSR. */
  readonly featCtl?: number | undefined;
  /** Whether a measured launch (tboot) started the kernel; false by default. */
  readonly tboot?: boolean;
  /** What Linux of a year knows; all by default. */
  readonly behaviour?: Pick<HostBehaviour, "tertiaryControls">;
}

/** VMX as Linux sees it after boot. */
export interface VmxFeatures {
  /** Whether VMX can be used, and why not. */
  readonly vmx: Decision;
  /** IA32_FEATURE_CONTROL from now on; undefined where there is none. */
  readonly featCtl: number | undefined;
  /** The words of features (vmx_capability); all 0 where VMX cannot be used. */
  readonly words: readonly number[];
  /** The "vmx flags" of /proc/cpuinfo. */
  readonly vmxFlags: readonly string[];
  /** Those of its "flags" that are VMX features: older than the others, and kept for whoever reads them. */
  readonly flags: readonly string[];
}

/** Bits of word 0 above the pin-based controls. */
const INVVPID_SHIFT = 16;
const EPT_EXECUTE_ONLY = 1 << 17;
const EPT_AD = 1 << 18;
const EPT_1GB = 1 << 19;
const EPT_5LEVEL = 1 << 20;
const FLEXPRIORITY = 1 << 24;
const APICV = 1 << 25;
const VMFUNC_SHIFT = 28;

/** Boots Linux on a processor with VMX (init_ia32_feat_ctl). */
export function initFeatCtl(processor: ReadsCapabilities, options: FeatureControlOptions = {}): VmxFeatures {
  const found = "featCtl" in options ? options.featCtl : 0;
  if (found === undefined) return unusable("the processor has no MSR IA32_FEATURE_CONTROL", undefined);
  const tboot = options.tboot ?? false;
  const enabled = tboot ? FEAT_CTL_VMX_ENABLED_INSIDE_SMX : FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX;
  // What firmware left without locking it does not count.
  const featCtl = (found & FEAT_CTL_LOCKED) !== 0
    ? found
    : FEAT_CTL_LOCKED | FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX | (tboot ? FEAT_CTL_VMX_ENABLED_INSIDE_SMX : 0);
  if ((featCtl & enabled) === 0) {
    return unusable(`VMX (${tboot ? "inside" : "outside"} TXT) disabled by BIOS`, featCtl);
  }
  const words = initVmxCapabilities(processor, options.behaviour?.tertiaryControls ?? true);
  return { vmx: { on: true, why: "" }, featCtl, words, vmxFlags: vmxFlags(words), flags: cpuFlags(words) };
}

function unusable(why: string, featCtl: number | undefined): VmxFeatures {
  return {
    vmx: { on: false, why },
    featCtl,
    words: new Array(VMX_FEATURE_WORDS).fill(0),
    vmxFlags: [],
    flags: [],
  };
}

/** The words of features: what can be turned on, whether or not it can be turned off (init_vmx_capabilities). */
function initVmxCapabilities(processor: ReadsCapabilities, tertiary: boolean): number[] {
  const read = (msr: number): bigint => processor.read(msr) ?? 0n; // rdmsr_safe
  const primary = highOf(read(IA32_VMX_PROCBASED_CTLS));
  const secondary = highOf(read(IA32_VMX_PROCBASED_CTLS2));
  // One mask of 64 bits, where the others have a mask of 32 in each half.
  const ctls3 = tertiary ? read(IA32_VMX_PROCBASED_CTLS3) : 0n;
  const pin = highOf(read(IA32_VMX_PINBASED_CTLS));
  // The MSR is one mask too, but Linux reads its high half: EPTP switching, bit 0, never shows.
  const functions = highOf(read(IA32_VMX_VMFUNC));
  const ept = lowOf(read(IA32_VMX_EPT_VPID_CAP));
  const vpid = highOf(read(IA32_VMX_EPT_VPID_CAP));
  let misc = (pin & 0xffff) | ((vpid & 1) << INVVPID_SHIFT) | ((functions & 0xf) << VMFUNC_SHIFT);
  if ((ept & VMX_EPT_EXECUTE_ONLY_BIT) !== 0) misc |= EPT_EXECUTE_ONLY;
  if ((ept & VMX_EPT_AD_BIT) !== 0) misc |= EPT_AD;
  if ((ept & VMX_EPT_1GB_PAGE_BIT) !== 0) misc |= EPT_1GB;
  if ((ept & VMX_EPT_PAGE_WALK_5_BIT) !== 0) misc |= EPT_5LEVEL;
  if ((primary & CPU_BASED_TPR_SHADOW) !== 0) {
    if ((secondary & SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) !== 0) misc |= FLEXPRIORITY;
    const delivery = SECONDARY_EXEC_APIC_REGISTER_VIRT | SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY;
    if ((secondary & delivery) === delivery && (pin & PIN_BASED_POSTED_INTR) !== 0) misc |= APICV;
  }
  return [misc >>> 0, primary, secondary, lowOf(ctls3), highOf(ctls3)];
}

/** The features that /proc/cpuinfo shows, in its order. */
function vmxFlags(words: readonly number[]): string[] {
  return VMX_FEATURES
    .filter(({ shown, word, bit }) => shown && ((words[word] >>> bit) & 1) !== 0)
    .map(({ name }) => name);
}

/**
 * The features that are flags of the processor too. `vpid` is looked for in the word of the pin-based controls, where its
 * bit 5 says virtual NMIs: Linux takes only the place in the word from the feature's number.
 */
function cpuFlags([misc, primary, secondary]: readonly number[]): string[] {
  const flags: [name: string, set: number][] = [
    ["tpr_shadow", primary & CPU_BASED_TPR_SHADOW],
    ["flexpriority", misc & FLEXPRIORITY],
    ["vnmi", misc & PIN_BASED_VIRTUAL_NMIS],
    ["ept", secondary & SECONDARY_EXEC_ENABLE_EPT],
    ["ept_ad", misc & EPT_AD],
    ["vpid", misc & SECONDARY_EXEC_ENABLE_VPID],
  ];
  return flags.filter(([, set]) => set !== 0).map(([name]) => name);
}
