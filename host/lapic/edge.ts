/**
 * The straight way of what nearly every IPI is: a fixed interrupt, edge-triggered. It comes to what
 * {@linkcode deliver} would, without a message: nobody asks each target again what all of them share.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { lowestBit } from "../../abi/mod.ts";
import * as requests from "../kvm/requests.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import * as tracing from "../trace/mod.ts";
import * as maps from "./apic_map.ts";
import * as delivery from "./delivery.ts";
import type { Lapic } from "./lapic.ts";
import { clearVector } from "./vectors.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_BROADCAST,
  APIC_DEST_ALLBUT,
  APIC_DEST_ALLINC,
  APIC_DEST_LOGICAL,
  APIC_DM_FIXED,
  APIC_INT_ASSERT,
  APIC_SHORT_MASK,
  APIC_TMR,
  APIC_VECTOR_MASK,
} = abi;
const { REQ_EVENT } = requests;
const { TP } = tracing;
const { LogicalGroup, LogicalMode } = maps;
const { deliverFast, LAST_CLUSTER_OF_2013 } = delivery;

/** What the low half of an ICR may say here; a level does not matter to an edge. */
const DESTINED = APIC_VECTOR_MASK | APIC_INT_ASSERT | APIC_DEST_LOGICAL;

/** Whether the low half of an ICR says fixed, edge-triggered, and no shorthand. */
export function isEdge(low: number): boolean {
  return (low & ~DESTINED) === 0;
}

/** Whether it says fixed, edge-triggered, and a shorthand of more than the sender itself. */
export function isEdgeToAll(low: number): boolean {
  return (low & ~(DESTINED | APIC_SHORT_MASK)) === 0 && (low & APIC_DEST_ALLINC) !== 0;
}

const group = new LogicalGroup();

/** As {@linkcode deliverFast}, of what {@linkcode isEdge} says; `destination` may be signed. */
export function deliverEdge(sender: Vcpu, low: number, destination: number): number {
  const map = sender.vm.apicMap;
  if (map === undefined) return rest(sender, low, destination);
  if ((low & APIC_DEST_LOGICAL) !== 0) {
    if (map.logicalMode !== LogicalMode.X2apic || (destination & ~LAST_CLUSTER_OF_2013) !== 0) {
      return rest(sender, low, destination);
    }
    group.find(map, destination);
    const { slots, first, mask } = group;
    const vector = low & APIC_VECTOR_MASK;
    let accepted = 0;
    for (let bits = mask; bits !== 0; bits &= bits - 1) {
      const target = slots[first + lowestBit(bits)];
      if (target !== undefined) accepted += acceptEdge(sender, target, vector);
    }
    return accepted;
  }
  if (destination < 0 || destination > map.maxApicId || destination === APIC_BROADCAST) {
    return rest(sender, low, destination);
  }
  const target = map.phys[destination];
  return target === undefined ? 0 : acceptEdge(sender, target, low & APIC_VECTOR_MASK);
}

/** Broadcasts, and what the map cannot say. */
function rest(sender: Vcpu, low: number, destination: number): number {
  const { vm, lapic } = sender;
  return deliverFast(vm, lapic, vm.ipi.fromIcr(low, destination >>> 0));
}

/** As {@linkcode deliverSlow}, of what {@linkcode isEdgeToAll} says. */
export function deliverEdgeToAll(sender: Vcpu, low: number): void {
  const { slowMatch } = sender.cost;
  const spared = (low & APIC_SHORT_MASK) === APIC_DEST_ALLBUT ? sender.lapic : undefined;
  const vector = low & APIC_VECTOR_MASK;
  for (const { lapic } of sender.vm.vcpus) {
    if (!lapic.hardwareEnabled) continue;
    sender.time += slowMatch;
    if (lapic !== spared) acceptEdge(sender, lapic, vector);
  }
}

/** As {@linkcode acceptInterrupt}, from `sender`'s own thread. */
export function acceptEdge(sender: Vcpu, target: Lapic, vector: number): number {
  const { vcpu } = target;
  vcpu.touch();
  if (sender.hit(TP.kvm_apic_accept_irq)) sender.record(TP.kvm_apic_accept_irq, vcpu.vcpuId, 0, 0, vector);
  sender.time += sender.cost.accept;
  if (!target.enabled) return 0;
  if (sender.vm.enableApicv) return accelerated(target, vector);
  target.requestEdge(vector);
  vcpu.requests |= REQ_EVENT;
  vcpu.kick();
  return 1;
}

/** The target's hardware may deliver it. */
function accelerated(target: Lapic, vector: number): number {
  clearVector(target.page, APIC_TMR, vector);
  target.vcpu.backend.deliver(target, APIC_DM_FIXED, vector, false);
  return 1;
}
