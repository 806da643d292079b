/**
 * The interrupt command register: sending IPIs.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as tracing from "../trace/mod.ts";
import { deliver, deliverFast, NOT_RESOLVED } from "./delivery.ts";
import type { Lapic } from "./lapic.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_ICR, APIC_ICR2, APIC_ICR_BUSY, X2APIC_ICR_RESERVED } = abi;
const { TP } = tracing;

/** Sends what the low half of an ICR says to `destination`. */
export function sendIpi(lapic: Lapic, low: number, destination: number): void {
  const { vcpu } = lapic;
  vcpu.charge(vcpu.cost.icr);
  vcpu.trace(TP.kvm_apic_ipi, low, destination);
  deliver(vcpu.vm, lapic, vcpu.vm.ipi.fromIcr(low, destination));
}

/** What a write of the x2APIC ICR came to. */
export type IcrOutcome = "sent" | "general-protection" | "not-resolved";

/**
 * Writes the x2APIC ICR: sends, then stores the value. `fast` sends through the optimized map alone, or not at all,
 * and traces the send behind it instead of before.
 */
export function writeX2apicIcr(lapic: Lapic, low: number, high: number, fast: boolean): IcrOutcome {
  const { vcpu } = lapic;
  if ((low & X2APIC_ICR_RESERVED) !== 0 && !vcpu.vm.quirk("x2apic-icr-reserved-ignored")) {
    return "general-protection";
  }
  low = (low & ~APIC_ICR_BUSY) >>> 0;
  if (fast) {
    vcpu.charge(vcpu.cost.icr);
    if (deliverFast(vcpu.vm, lapic, vcpu.vm.ipi.fromIcr(low, high)) === NOT_RESOLVED) return "not-resolved";
    vcpu.trace(TP.kvm_apic_ipi, low, high);
  } else {
    sendIpi(lapic, low, high);
  }
  lapic.set(APIC_ICR, low);
  // Intel keeps one 64-bit register at 0x300; AMD splits it (x2apic_icr_is_split).
  if (vcpu.backend.x2apicIcrIsSplit) lapic.set(APIC_ICR2, high);
  else lapic.page[(APIC_ICR >>> 2) + 1] = high;
  vcpu.charge(vcpu.cost.apicRegister);
  vcpu.trace(TP.kvm_apic, 1, APIC_ICR, low, high);
  return "sent";
}

/** The high half of the x2APIC ICR. */
export function x2apicIcrHigh(lapic: Lapic): number {
  return lapic.vcpu.backend.x2apicIcrIsSplit ? lapic.get(APIC_ICR2) : lapic.page[(APIC_ICR >>> 2) + 1];
}
