/**
 * Whether the hardware delivers a virtual machine's interrupts by itself: APICv on VMX, AVIC on SVM. KVM calls both
 * APICv (arch/x86/kvm/x86.c): it is in use while nothing inhibits it, and it can come and go while guests run.
 *
 * @module
 */

import { APIC_ISR } from "../../abi/mod.ts";
import * as tracing from "../trace/mod.ts";
import type { Lapic } from "../lapic/lapic.ts";
import { countVectors, highestVector } from "../lapic/vectors.ts";
import { REQ_APICV_UPDATE, REQ_EVENT } from "./requests.ts";
import type { Vcpu } from "./vcpu.ts";
import type { Vm } from "./vm.ts";

const { TP } = tracing;

/** Why APICv is not in use, by the kernel's name: enum kvm_apicv_inhibit. */
export const APICV_INHIBITS = {
  DISABLED: { bit: 0, why: "the module parameter is off, or the processor lacks it" },
  HYPERV: { bit: 1, why: "the guest uses Hyper-V's AutoEOI" },
  ABSENT: { bit: 2, why: "the local APIC is not in the kernel" },
  BLOCKIRQ: { bit: 3, why: "user space debugs the guest with interrupts blocked" },
  PHYSICAL_ID_ALIASED: { bit: 4, why: "two local APICs have the same physical ID" },
  APIC_ID_MODIFIED: { bit: 5, why: "an xAPIC ID is not the vCPU's number" },
  APIC_BASE_MODIFIED: { bit: 6, why: "a local APIC is not at 0xfee00000" },
  NESTED: { bit: 7, why: "a nested guest runs" },
  IRQWIN: { bit: 8, why: "KVM waits for an interrupt window" },
  PIT_REINJ: { bit: 9, why: "the PIT reinjects lost ticks" },
  SEV: { bit: 10, why: "the guest's memory is encrypted" },
  LOGICAL_ID_ALIASED: { bit: 11, why: "local APICs disagree about logical IDs" },
  PHYSICAL_ID_TOO_BIG: { bit: 12, why: "a vCPU's number is above what the tables hold" },
  // Gone since v6.0; its number there was 5.
  X2APIC: { bit: 13, why: "the guest may use x2APIC mode, which this host's KVM cannot accelerate" },
} as const;

/** A reason why APICv is not in use. */
export type ApicvInhibit = keyof typeof APICV_INHIBITS;

/** The bits of reasons. */
export function inhibitMask(reasons: readonly ApicvInhibit[]): number {
  return reasons.reduce((mask, reason) => mask | (1 << APICV_INHIBITS[reason].bit), 0);
}

const COMMON: readonly ApicvInhibit[] = [
  "DISABLED",
  "HYPERV",
  "ABSENT",
  "BLOCKIRQ",
  "PHYSICAL_ID_ALIASED",
  "APIC_ID_MODIFIED",
  "APIC_BASE_MODIFIED",
];
/** The reasons that count on VMX (VMX_REQUIRED_APICV_INHIBITS). */
export const VMX_INHIBITS: number = inhibitMask(COMMON);
/** The reasons that count on SVM (AVIC_REQUIRED_APICV_INHIBITS). */
export const SVM_INHIBITS: number = inhibitMask([
  ...COMMON,
  "NESTED",
  "IRQWIN",
  "PIT_REINJ",
  "SEV",
  "LOGICAL_ID_ALIASED",
  "PHYSICAL_ID_TOO_BIG",
  "X2APIC",
]);

/** The reasons in a mask. */
export function inhibitNames(mask: number): ApicvInhibit[] {
  const names = Object.keys(APICV_INHIBITS) as ApicvInhibit[];
  return names.filter((name) => ((mask >>> APICV_INHIBITS[name].bit) & 1) !== 0);
}

/**
 * Sets or clears a reason (kvm_set_or_clear_apicv_inhibit). Where that changes whether APICv is in use, every vCPU
 * leaves guest mode and looks.
 */
export function setApicvInhibit(vm: Vm, reason: ApicvInhibit, set: boolean): void {
  if (!vm.enableApicv) return;
  const bit = 1 << APICV_INHIBITS[reason].bit;
  if ((vm.requiredInhibits & bit) === 0) return;
  const old = vm.apicvInhibits;
  const now = set ? old | bit : old & ~bit;
  // Traced even where nothing changes, and before it does.
  vm.traceRunning(TP.kvm_apicv_inhibit_changed, APICV_INHIBITS[reason].bit, set ? 1 : 0, now);
  vm.apicvInhibits = now;
  if ((old !== 0) !== (now !== 0)) vm.requestAll(REQ_APICV_UPDATE);
}

/**
 * A vCPU takes APICv up, or gives it up (__kvm_vcpu_update_apicv): what KVM remembers of the APIC page is forgotten
 * while hardware changes the page, and found again when it does not.
 */
export function updateApicv(vcpu: Vcpu): void {
  const { vm, lapic, backend } = vcpu;
  // A disabled APIC has nothing to accelerate.
  const active = vm.enableApicv && vm.apicvInhibits === 0 && lapic.hardwareEnabled;
  if (active === lapic.apicvActive) return;
  lapic.apicvActive = active;
  updateHints(lapic);
  backend.refreshApicv();
  if (!active) vcpu.request(REQ_EVENT); // What was accepted while hardware was to deliver it, KVM delivers now.
  else if (!vm.quirk("apicv-activation-keeps-svi")) {
    backend.serviceChanged(highestVector(lapic.page, APIC_ISR));
  }
}

/**
 * What KVM remembers of the page (kvm_apic_update_apicv). Hardware may still be setting requests while it gives up: the
 * next acknowledgement looks.
 */
export function updateHints(lapic: Lapic): void {
  lapic.irrPending = true;
  lapic.highestIsrCache = -1;
  lapic.isrCount = lapic.apicvActive ? 1 : countVectors(lapic.page, APIC_ISR);
  lapic.findIrr();
}
