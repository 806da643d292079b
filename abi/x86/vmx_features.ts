/**
 * VMX features: five words that Linux makes of the capability MSRs, and the names that /proc/cpuinfo prints in its
 * "vmx flags" line (arch/x86/include/asm/vmxfeatures.h).
 *
 *     word 0  pin-based controls in bits 15:0, EPT and VPIDs in 23:16, aggregates in 27:24, VM functions in 31:28
 *     word 1  primary processor-based controls
 *     word 2  secondary processor-based controls
 *     word 3  tertiary processor-based controls, bits 31:0
 *     word 4  tertiary processor-based controls, bits 63:32
 *
 * @module
 */

import { VMX_CONTROLS } from "./vmx_controls.ts";

/** A VMX feature. */
export interface VmxFeatureSpec {
  /** Its name in /proc/cpuinfo; for those not shown there, that of its macro in lower case. */
  readonly name: string;
  /** The word, 0 to 4. */
  readonly word: number;
  /** The bit in that word. */
  readonly bit: number;
  /** Whether /proc/cpuinfo shows it. */
  readonly shown: boolean;
  /** What it is; of controls, the SDM's name. */
  readonly title: string;
}

/** How many words of features there are (NVMXINTS). */
export const VMX_FEATURE_WORDS = 5;

/** What word 0 holds beside the pin-based controls. */
const SCATTERED: readonly VmxFeatureSpec[] = [
  { name: "invvpid", word: 0, bit: 16, shown: true, title: "INVVPID" },
  { name: "ept_x_only", word: 0, bit: 17, shown: true, title: "execute-only EPT translations" },
  { name: "ept_ad", word: 0, bit: 18, shown: true, title: "EPT accessed and dirty flags" },
  { name: "ept_1gb", word: 0, bit: 19, shown: true, title: "EPT pages of 1 GiB" },
  { name: "ept_5level", word: 0, bit: 20, shown: true, title: "EPT page walks of five levels" },
  { name: "flexpriority", word: 0, bit: 24, shown: true, title: "vtpr and vapic together" },
  { name: "apicv", word: 0, bit: 25, shown: true, title: "vtpr, vapic_reg, vid and posted_intr together" },
  { name: "eptp_switching", word: 0, bit: 28, shown: true, title: "EPTP switching by VMFUNC" },
];

function controls(word: number, from: "pin" | "primary" | "secondary" | "tertiary"): VmxFeatureSpec[] {
  return VMX_CONTROLS[from].map(({ mask, feature, shown, title }) => ({
    name: feature!,
    word,
    bit: 31 - Math.clz32(mask),
    shown,
    title,
  }));
}

/** The features, by word and bit: the order in which /proc/cpuinfo prints them. */
export const VMX_FEATURES: readonly VmxFeatureSpec[] = [
  ...controls(0, "pin"),
  ...SCATTERED,
  ...controls(1, "primary"),
  ...controls(2, "secondary"),
  ...controls(3, "tertiary"),
];
