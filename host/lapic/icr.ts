/**
 * The interrupt command register: sending IPIs.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import * as tracing from "../trace/mod.ts";
import * as delivery from "./delivery.ts";
import * as edge from "./edge.ts";
import type { Lapic } from "./lapic.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_ICR, APIC_ICR2, APIC_ICR_BUSY, X2APIC_ICR_RESERVED } = abi;
const { TP } = tracing;
const { deliver, deliverFast, NOT_RESOLVED } = delivery;
const { deliverEdge, deliverEdgeToAll, isEdge, isEdgeToAll } = edge;

/** Sends what the low half of an ICR says to `destination`. */
export function sendIpi(lapic: Lapic, low: number, destination: number): void {
  const { vcpu } = lapic;
  vcpu.charge(vcpu.cost.icr);
  vcpu.trace(TP.kvm_apic_ipi, low, destination);
  if (isEdgeToAll(low)) deliverEdgeToAll(vcpu, low);
  else deliver(vcpu.vm, lapic, vcpu.vm.ipi.fromIcr(low, destination));
}

/** Writes the x2APIC ICR: sends, then stores the value. false raises #GP. */
export function writeX2apicIcr(lapic: Lapic, low: number, high: number): boolean {
  const { vcpu } = lapic;
  if (refused(vcpu, low)) return false;
  const value = (low & ~APIC_ICR_BUSY) >>> 0;
  sendIpi(lapic, value, high);
  storeX2apicIcr(vcpu, value, high);
  return true;
}

/**
 * The same through the optimized map alone, or not at all: false leaves it to the slow path. The send is traced behind
 * it instead of before.
 */
export function fastWriteX2apicIcr(vcpu: Vcpu, low: number, high: number): boolean {
  if (refused(vcpu, low)) return false;
  const value = low & ~APIC_ICR_BUSY;
  vcpu.time += vcpu.cost.icr;
  const accepted = isEdge(value)
    ? deliverEdge(vcpu, value, high)
    : deliverFast(vcpu.vm, vcpu.lapic, vcpu.vm.ipi.fromIcr(value, high >>> 0));
  if (accepted === NOT_RESOLVED) return false;
  if (vcpu.hit(TP.kvm_apic_ipi)) vcpu.record(TP.kvm_apic_ipi, value, high);
  storeX2apicIcr(vcpu, value, high);
  return true;
}

function refused(vcpu: Vcpu, low: number): boolean {
  return (low & X2APIC_ICR_RESERVED) !== 0 && !vcpu.vm.quirk("x2apic-icr-reserved-ignored");
}

function storeX2apicIcr(vcpu: Vcpu, low: number, high: number): void {
  const { page } = vcpu.lapic;
  page[APIC_ICR >>> 2] = low;
  // Intel keeps one 64-bit register at 0x300; AMD splits it (x2apic_icr_is_split).
  if (vcpu.backend.x2apicIcrIsSplit) page[APIC_ICR2 >>> 2] = high;
  else page[(APIC_ICR >>> 2) + 1] = high;
  vcpu.time += vcpu.cost.apicRegister;
  if (vcpu.hit(TP.kvm_apic)) vcpu.record(TP.kvm_apic, 1, APIC_ICR, low, high);
}

/** The high half of the x2APIC ICR. */
export function x2apicIcrHigh(lapic: Lapic): number {
  return lapic.vcpu.backend.x2apicIcrIsSplit ? lapic.get(APIC_ICR2) : lapic.page[(APIC_ICR >>> 2) + 1];
}
