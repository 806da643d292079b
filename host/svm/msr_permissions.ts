/**
 * Which MSRs KVM lets guests reach without an exit: always (svm.c, direct_access_msrs), and while x2AVIC is in use
 * (avic.c, avic_set_x2apic_msr_interception).
 *
 * @module
 */

import {
  IA32_CSTAR,
  IA32_FMASK,
  IA32_FS_BASE,
  IA32_GS_BASE,
  IA32_KERNEL_GS_BASE,
  IA32_LSTAR,
  IA32_STAR,
} from "../../abi/mod.ts";

/** MSRs that always pass. */
export const DIRECT_ACCESS_MSRS: ReadonlySet<number> = new Set<number>([
  IA32_STAR,
  IA32_LSTAR,
  IA32_CSTAR,
  IA32_FMASK,
  IA32_FS_BASE,
  IA32_GS_BASE,
  IA32_KERNEL_GS_BASE,
]);

/**
 * x2APIC MSRs that pass while x2AVIC is in use, reads and writes alike.
 *
 * Of the ISR, TMR and IRR KVM lists the first register each; the rest exit, and so do the timer's LVT entry, as hardware
 * would refuse TSC-deadline mode with #GP instead of an exit, and SELF_IPI.
 */
export const X2AVIC_MSRS: readonly number[] = [
  0x802, // ID
  0x803, // version
  0x808, // TPR
  0x809, // arbitration priority
  0x80a, // PPR
  0x80b, // EOI
  0x80c, // remote read
  0x80d, // LDR
  0x80e, // DFR
  0x80f, // spurious vector
  0x810, // ISR, first
  0x818, // TMR, first
  0x820, // IRR, first
  0x828, // ESR
  0x830, // ICR
  0x831, // ICR, high half
  0x833, // LVT thermal
  0x834, // LVT counters
  0x835, // LVT LINT0
  0x836, // LVT LINT1
  0x837, // LVT error
  0x838, // timer, initial count
  0x839, // timer, current count
  0x83e, // timer, divide configuration
];

/** Of the x2APIC's 256 MSRs, by the low byte: 1 where one passes. None does without x2AVIC. */
export const NO_X2APIC_MSRS: Uint8Array = new Uint8Array(256);
/** Those that pass with it. */
export const X2AVIC_PERMISSIONS: Uint8Array = new Uint8Array(256);
for (const msr of X2AVIC_MSRS) X2AVIC_PERMISSIONS[msr & 0xff] = 1;
