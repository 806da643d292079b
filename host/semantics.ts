/**
 * Which host is simulated: today's KVM, or that of a year whose patches are reproduced here. One row says
 * what differs.
 *
 * @module
 */

import type { KvmFeature } from "../abi/mod.ts";
import type { AvicKick } from "./kvm/acceleration.ts";

/** A host's year. */
export type HostSemantics = "v6.19" | "2022" | "2021" | "2018" | "2012";

/** What differs between hosts. */
export interface HostBehaviour {
  /** An exit for an x2APIC ICR write may be served before the slow path. Since v5.5 (2019). */
  readonly icrFastPath: boolean;
  /**
   * It then serves whatever the optimized map resolves (since v6.18, 2025), and re-enters the guest at once (since
   * v6.12, 2024). Before, it served one fixed IPI with a physical destination, and the run loop went round.
   */
  readonly icrFastPathReenters: boolean;
  /** So may, where there is a preemption timer, its exit and that for IA32_TSC_DEADLINE. Since v5.8 (2020). */
  readonly timerFastPath: boolean;
  /** The latter may without a preemption timer too. Since v6.18 (2025). */
  readonly deadlineFastPath: boolean;
  /** So may HLT, since v6.12 (2024), and INVD, since v6.18 (2025). */
  readonly haltFastPath: boolean;
  /** KVM_HC_SEND_IPI looks at its bounds (bdf7ffc89922, v4.19) and at its map (38ab012f109c, v4.20) before their use. */
  readonly sendIpiChecked: boolean;
  /** A vCPU that halts may be polled for first. Since v4.0 (2015). */
  readonly haltPolling: boolean;
  /** KVM_HC_CLOCK_PAIRING exists. Since v4.11 (2017). */
  readonly clockPairing: boolean;
  /** halt_poll_ns_shrink, what a halt that was too long divides the polling window by; 0 empties it. 2 since v6.11. */
  readonly haltPollShrink: number;
  /**
   * Without APICv, VMX still sends xAPIC accesses through the APIC-access page. Since v5.15 the page is not mapped
   * then, and each access is an EPT violation (arch/x86/kvm/mmu/mmu.c, __kvm_mmu_faultin_pfn).
   */
  readonly apicAccessPage: boolean;
  /** VMX lets hardware deliver virtual interrupts, and posts them. Since v3.10 (2013). */
  readonly apicv: boolean;
  /** VMX knows tertiary controls, and IPI virtualization among them. Since the patches of 2021, merged in v6.0. */
  readonly tertiaryControls: boolean;
  /** What SVM knows of AVIC: AVIC since v4.7 (2016), x2AVIC, and AVIC for guests in x2APIC mode, since v6.0 (2022). */
  readonly avic: "none" | "avic" | "x2avic";
  /** How the targets of an incomplete IPI are found: asking every vCPU, until v5.19 (2022). */
  readonly avicKick: AvicKick;
  /** An IPI of which AVIC says that a target is invalid is sent by KVM, not dropped. Since v6.3 (2023). */
  readonly avicInvalidTargets: boolean;
  /** The paravirtual features that this host knows, of those modelled here. */
  readonly features: readonly KvmFeature[];
}

/** The hosts. */
export const HOST_SEMANTICS: Readonly<Record<HostSemantics, HostBehaviour>> = {
  "v6.19": {
    icrFastPath: true,
    icrFastPathReenters: true,
    timerFastPath: true,
    deadlineFastPath: true,
    haltFastPath: true,
    sendIpiChecked: true,
    haltPolling: true,
    clockPairing: true,
    haltPollShrink: 2,
    apicAccessPage: false,
    apicv: true,
    tertiaryControls: true,
    avic: "x2avic",
    avicKick: "v6.19",
    avicInvalidTargets: true,
    features: ["NOP_IO_DELAY", "PV_EOI", "PV_UNHALT", "PV_SEND_IPI", "POLL_CONTROL", "PV_SCHED_YIELD"],
  },
  "2022": {
    icrFastPath: true,
    icrFastPathReenters: false,
    timerFastPath: true,
    deadlineFastPath: false,
    haltFastPath: false,
    sendIpiChecked: true,
    haltPolling: true,
    clockPairing: true,
    haltPollShrink: 0,
    apicAccessPage: false,
    apicv: true,
    tertiaryControls: false,
    avic: "x2avic",
    avicKick: "2022",
    avicInvalidTargets: false,
    features: ["NOP_IO_DELAY", "PV_EOI", "PV_UNHALT", "PV_SEND_IPI", "POLL_CONTROL", "PV_SCHED_YIELD"],
  },
  "2021": {
    icrFastPath: true,
    icrFastPathReenters: false,
    timerFastPath: true,
    deadlineFastPath: false,
    haltFastPath: false,
    sendIpiChecked: true,
    haltPolling: true,
    clockPairing: true,
    haltPollShrink: 0,
    apicAccessPage: true,
    apicv: true,
    tertiaryControls: true,
    avic: "avic",
    avicKick: "slow",
    avicInvalidTargets: false,
    features: ["NOP_IO_DELAY", "PV_EOI", "PV_UNHALT", "PV_SEND_IPI", "POLL_CONTROL", "PV_SCHED_YIELD"],
  },
  "2018": {
    icrFastPath: false,
    icrFastPathReenters: false,
    timerFastPath: false,
    deadlineFastPath: false,
    haltFastPath: false,
    sendIpiChecked: false,
    haltPolling: true,
    clockPairing: true,
    haltPollShrink: 0,
    apicAccessPage: true,
    apicv: true,
    tertiaryControls: false,
    avic: "avic",
    avicKick: "slow",
    avicInvalidTargets: false,
    features: ["NOP_IO_DELAY", "PV_EOI", "PV_UNHALT", "PV_SEND_IPI"],
  },
  "2012": {
    icrFastPath: false,
    icrFastPathReenters: false,
    timerFastPath: false,
    deadlineFastPath: false,
    haltFastPath: false,
    sendIpiChecked: false,
    haltPolling: false,
    clockPairing: false,
    haltPollShrink: 0,
    apicAccessPage: true,
    apicv: false,
    tertiaryControls: false,
    avic: "none",
    avicKick: "slow",
    avicInvalidTargets: false,
    features: ["NOP_IO_DELAY", "PV_EOI"],
  },
};

/** Vouches for a host's name. Throws `RangeError` naming those allowed. */
export function hostSemantics(name: string): HostSemantics {
  if (!Object.hasOwn(HOST_SEMANTICS, name)) {
    throw new RangeError(
      `Cannot simulate a host of ${name}: allowed are ${Object.keys(HOST_SEMANTICS).join(", ")}`,
    );
  }
  return name as HostSemantics;
}
