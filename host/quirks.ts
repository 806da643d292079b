/**
 * Named deviations: historical bugs, errata, behaviour of old versions. All are off unless asked for. A bug ships as a
 * pair: with the quirk it shows, without it does not.
 *
 * @module
 */

/** A deviation. */
export interface QuirkSpec {
  /** What goes wrong. */
  readonly effect: string;
  /** Where it is known from: the commit that fixed it, its CVE. */
  readonly source: string;
}

/** Every deviation by name. */
export const QUIRKS = {
  "send-ipi-unchecked-bounds": {
    effect: "KVM_HC_SEND_IPI indexes the APIC map with whatever the guest asks for",
    source: "fixed by bdf7ffc89922",
  },
  "send-ipi-null-map": {
    effect: "KVM_HC_SEND_IPI uses the APIC map before there is one",
    source: "CVE-2018-19406, fixed by 38ab012f109c",
  },
  "pv-eoi-disable-while-pending": {
    effect: "KVM dies when the guest disables PV EOI while a PV EOI that it cannot read back is pending",
    source: "CVE-2026-72284, fixed by 9285e4070df2",
  },
  "ioapic-scan-skips-masked": {
    effect: "a masked level-triggered entry is left out of the vectors whose EOI the I/O APIC must see",
    source: "fixed by 0f6c0a740b7d",
  },
  "apic-map-stale-size": {
    effect: "an APIC that is enabled while the map is rebuilt is written behind the map's end",
    source: "fixed in v6.4 with the selftest recalc_apic_map_test",
  },
  "x2apic-cluster-unchecked": {
    effect: "a logical x2APIC destination beyond the sixteenth cluster stops KVM",
    source: "CVE-2013-6376, fixed by 17d68b763f09",
  },
  "lapic-timer-catches-up": {
    effect:
      "a periodic timer whose vCPU has not run for long expires once for each period it missed, in one interrupt",
    source: "CVE-2025-71104, fixed by 18ab3fc8e880",
  },
  "lapic-read-straddles": {
    effect: "a read past the first four bytes of an APIC register returns what is on KVM's stack",
    source: "CVE-2021-47255, fixed by 218bf772bddd",
  },
  "tpr-threshold-stale": {
    effect:
      "a task priority that falls below the threshold while an interrupt in service holds the others back leaves the " +
      "threshold: it exits for ever, or, in x2APIC mode, is no legal VM entry",
    source:
      "from eb90f3417a0c on, v6.19 has it, fixed by the patch of June 2026, as posted: Raise KVM_REQ_EVENT on TPR below " +
      "threshold exit",
  },
  "x2apic-icr-reserved-ignored": {
    effect: "reserved bits of the x2APIC ICR are ignored instead of raising #GP",
    source: "fixed by 71bf395a276f",
  },
  "apicv-activation-keeps-svi": {
    effect: "hardware that takes interrupts over does not learn which one is in service: its EOI is lost",
    source: "fixed in v6.19-rc1: Update SVI when activating APICv",
  },
  "apicv-activation-keeps-eoi-exitmap": {
    effect:
      "which EOIs exit is not told to hardware that takes interrupts over: the I/O APIC does not see those of lines that were routed meanwhile",
    source:
      "not fixed in v6.19, whose vmx_load_eoi_exitmap does nothing while APICv is inhibited; found by reading",
  },
  "posted-sync-forgets-irr": {
    effect:
      "a descriptor that is synchronized again, and was found empty, makes KVM say that nothing is requested: RVI is 0",
    source: "CVE-2026-46295, from b41f8638b9d3 (v6.16) on, v6.19 has it, fixed by 33fd0ccd2590",
  },
  "pid-table-keeps-freed": {
    effect:
      "a vCPU whose creation fails late leaves its descriptor in the PID-pointer table, where hardware follows it",
    source: "fixed by b41f2ca6c060 and 97d65b544f48 (2026)",
  },
  "preempted-post-unnoticed": {
    effect:
      "a vCPU that is put on a CPU again does not look for what was posted meanwhile: it waits for the next notification",
    source: "fixed by c112b5f50232",
  },
  "avic-kick-x2apic-mask": {
    effect:
      "the fast way to an x2APIC's logical targets looks at the cluster's bits instead of the vCPUs': nobody is woken",
    source: "603ccef42ce9, fixed by da3fb46d226a",
  },
  "avic-stale-is-running": {
    effect:
      "a processor reads IsRunning of an IPI's target before it writes the IRR: a target that falls asleep is not woken",
    source:
      "AMD erratum 1235; where processors have it, KVM's use of IPI virtualization is fixed by 8de4a1c8164e",
  },
  "avic-inhibit-race": {
    effect: "an interrupt for a vCPU that is just giving AVIC up is left to AVIC",
    source: "fixed by 66fa226c131f",
  },
  "avic-cr8-out-of-sync": {
    effect:
      "AVIC that is taken up leaves writes of CR8 intercepted and V_TPR as it was: the guest reads an old CR8 for good",
    source: "CVE-2026-43483, fixed by d02e48830e3f and 87d0f901a9bd",
  },
  "page-fault-maps-invalid-root": {
    effect:
      "a page fault that is under way while a memory slot is removed maps its page in the root that was invalidated",
    source: "fixed by a955cad84cda",
  },
} as const satisfies Record<string, QuirkSpec>;

/** The name of a deviation. */
export type Quirk = keyof typeof QUIRKS;

/** Vouches for the names of deviations. Throws `RangeError` naming those allowed. */
export function checkQuirks(names: Iterable<string>): ReadonlySet<Quirk> {
  const set = new Set<Quirk>();
  for (const name of names) {
    if (!Object.hasOwn(QUIRKS, name)) {
      throw new RangeError(`Cannot enable quirk ${name}: allowed are ${Object.keys(QUIRKS).join(", ")}`);
    }
    set.add(name as Quirk);
  }
  return set;
}

/** KVM's own compatibility quirks (KVM_CAP_DISABLE_QUIRKS2) that this host models; on unless disabled. */
export const KVM_QUIRKS = {
  LINT0_REENABLED: {
    bit: 0,
    effect: "the bootstrap processor's LINT0 accepts external interrupts after reset",
  },
  LAPIC_MMIO_HOLE: {
    bit: 2,
    effect: "the xAPIC page reads ones in x2APIC mode and while the APIC is disabled",
  },
  FIX_HYPERCALL_INSN: {
    bit: 5,
    effect: "the other vendor's hypercall instruction is rewritten in guest memory",
  },
  SLOT_ZAP_ALL: {
    bit: 7,
    effect: "removing a memory slot takes all vCPUs' page tables, not only what they had of the slot",
  },
} as const;

/** The name of a KVM quirk. */
export type KvmQuirk = keyof typeof KVM_QUIRKS;

/** KVM hit something that stops it: a bug that a quirk brought back. */
export class HostFailure extends Error {
  /** The error's name. */
  override readonly name = "HostFailure";

  /** `what` happened in the host. */
  constructor(what: string) {
    super(`Cannot go on in the host: ${what}`);
  }
}
