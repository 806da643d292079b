/**
 * Delivery: from a message to the local APICs that accept it (arch/x86/kvm/lapic.c,
 * kvm_irq_delivery_to_apic and __apic_accept_irq).
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { lowestBit, popcount } from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import * as requests from "../kvm/requests.ts";
import type { Vm } from "../kvm/vm.ts";
import * as tracing from "../trace/mod.ts";
import { type ApicMap, LogicalGroup, LogicalMode } from "./apic_map.ts";
import { matchDestination } from "./destination.ts";
import { type Lapic, PENDING_INIT, PENDING_SIPI } from "./lapic.ts";
import type { InterruptMessage } from "./message.ts";
import { clearVector, setVector, testVector } from "./vectors.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_BROADCAST,
  APIC_DEST_SELF,
  APIC_DM_EXTINT,
  APIC_DM_FIXED,
  APIC_DM_INIT,
  APIC_DM_LOWEST,
  APIC_DM_NMI,
  APIC_DM_REMRD,
  APIC_DM_SMI,
  APIC_DM_STARTUP,
  APIC_LVTPC,
  APIC_LVT_LEVEL_TRIGGER,
  APIC_LVT_MASKED,
  APIC_MODE_MASK,
  APIC_TMR,
  APIC_VECTOR_MASK,
  X2APIC_BROADCAST,
} = abi;
const { REQ_EVENT } = requests;
const { TP } = tracing;

/** What {@linkcode deliverFast} answers where the map cannot say who is meant. */
export const NOT_RESOLVED = -2;
/** What {@linkcode deliver} answers when nobody was meant. */
export const NOBODY_MATCHED = -1;

/**
 * Delivers a message. Answers with the number of APICs that accepted it, -1 where every APIC was asked and none was
 * meant.
 */
export function deliver(vm: Vm, source: Lapic | undefined, message: InterruptMessage): number {
  const fast = deliverFast(vm, source, message);
  return fast === NOT_RESOLVED ? deliverSlow(vm, source, message) : fast;
}

const group = new LogicalGroup();

/** Delivers through the optimized map; {@linkcode NOT_RESOLVED} where that cannot be. */
export function deliverFast(vm: Vm, source: Lapic | undefined, message: InterruptMessage): number {
  if (message.shorthand === APIC_DEST_SELF && source !== undefined) return accept(source, message);
  const map = vm.apicMap;
  if (message.shorthand !== 0 || map === undefined || broadcast(vm, source, message, map)) {
    return NOT_RESOLVED;
  }
  if (!message.logical) {
    if (message.destination > map.maxApicId) return 0;
    const target = map.phys[message.destination];
    return target === undefined ? 0 : accept(target, message);
  }
  if (!group.find(map, message.destination)) return NOT_RESOLVED;
  if (message.destination > LAST_CLUSTER_OF_2013) checkCluster(vm, map);
  const { slots, first, mask } = group;
  if (message.lowestPriority) {
    const chosen = lowestPrioritySlot(vm, message, group);
    return chosen === undefined ? 0 : accept(chosen, message);
  }
  let accepted = 0;
  for (let bits = mask; bits !== 0; bits &= bits - 1) {
    const target = slots[first + lowestBit(bits)];
    if (target !== undefined) accepted += accept(target, message);
  }
  return accepted;
}

/** The highest x2APIC logical destination within the first sixteen clusters. */
export const LAST_CLUSTER_OF_2013 = 0xf_ffff;

function checkCluster(vm: Vm, map: ApicMap): void {
  if (map.logicalMode === LogicalMode.X2apic && vm.quirk("x2apic-cluster-unchecked")) {
    vm.hostFailure("BUG_ON(cid >= ARRAY_SIZE(map->logical_map)) in kvm_irq_delivery_to_apic_fast");
  }
}

function broadcast(vm: Vm, source: Lapic | undefined, message: InterruptMessage, map: ApicMap): boolean {
  const { destination } = message;
  if (vm.x2apicBroadcastQuirkDisabled) {
    return destination === X2APIC_BROADCAST ||
      (destination === APIC_BROADCAST && map.logicalMode !== LogicalMode.X2apic);
  }
  return destination === (source?.x2apicMode ? X2APIC_BROADCAST : APIC_BROADCAST);
}

function lowestPrioritySlot(vm: Vm, message: InterruptMessage, from: LogicalGroup): Lapic | undefined {
  const { slots, first, mask } = from;
  if (vm.vectorHashing) {
    if (mask === 0) return undefined;
    return slots[first + nthBit(mask, message.vector % popcount(mask))];
  }
  let lowest: Lapic | undefined;
  for (let bits = mask; bits !== 0; bits &= bits - 1) {
    const target = slots[first + lowestBit(bits)];
    if (target === undefined) continue;
    if (lowest === undefined || target.arbitrationPriority < lowest.arbitrationPriority) lowest = target;
  }
  return lowest;
}

function nthBit(mask: number, n: number): number {
  for (; n > 0; n--) mask &= mask - 1;
  return lowestBit(mask);
}

/** Delivers by asking every vCPU, in the order of their indices. */
export function deliverSlow(vm: Vm, source: Lapic | undefined, message: InterruptMessage): number {
  const physicalBroadcast = !message.logical && message.destination === APIC_BROADCAST;
  if (physicalBroadcast && message.lowestPriority) message.deliveryMode = APIC_DM_FIXED;
  const lowestPriority = message.lowestPriority;
  const candidates: Lapic[] = [];
  let accepted = NOBODY_MATCHED;
  for (const { lapic } of vm.vcpus) {
    if (!lapic.hardwareEnabled) continue;
    vm.chargeRunning(vm.cost.slowMatch);
    const { shorthand, destination, logical } = message;
    if (!matchDestination(lapic, source, shorthand, destination, logical)) continue;
    if (!lowestPriority) accepted = Math.max(accepted, 0) + accept(lapic, message);
    else if (lapic.softwareEnabled) candidates.push(lapic);
  }
  if (candidates.length > 0) {
    const chosen = vm.vectorHashing
      ? candidates[message.vector % candidates.length]
      : candidates.reduce((a, b) => b.arbitrationPriority < a.arbitrationPriority ? b : a);
    accepted = accept(chosen, message);
  }
  return accepted;
}

function accept(lapic: Lapic, message: InterruptMessage): number {
  const { deliveryMode, vector, level, levelTriggered, takers } = message;
  const accepted = acceptInterrupt(lapic, deliveryMode, vector, level, levelTriggered);
  if (takers !== undefined && accepted !== 0 && deliveryMode <= APIC_DM_LOWEST) takers.push(lapic);
  return accepted;
}

/** Gives an interrupt to one APIC: 1 if it accepts it, 0 if it is dropped. */
export function acceptInterrupt(
  lapic: Lapic,
  deliveryMode: number,
  vector: number,
  level: boolean,
  levelTriggered: boolean,
): number {
  const { vcpu } = lapic;
  vcpu.touch();
  vcpu.vm.traceRunning(TP.kvm_apic_accept_irq, vcpu.vcpuId, deliveryMode, levelTriggered ? 1 : 0, vector);
  vcpu.vm.chargeRunning(vcpu.vm.cost.accept);
  switch (deliveryMode) {
    case APIC_DM_FIXED:
      return acceptFixed(lapic, deliveryMode, vector, level, levelTriggered);
    case APIC_DM_LOWEST:
      lapic.arbitrationPriority++;
      return acceptFixed(lapic, deliveryMode, vector, level, levelTriggered);
    case APIC_DM_REMRD:
      vcpu.pvUnhalted = true;
      vcpu.request(REQ_EVENT);
      vcpu.kick();
      return 1;
    case APIC_DM_SMI:
      // With CONFIG_KVM_SMM=n kvm_inject_smi fails with -ENOTTY and the SMI is dropped; this is such a host.
      return 0;
    case APIC_DM_NMI:
      vcpu.queueNmi();
      vcpu.kick();
      return 1;
    case APIC_DM_INIT:
      if (levelTriggered && !level) return 0;
      lapic.pendingEvents = PENDING_INIT;
      vcpu.request(REQ_EVENT);
      vcpu.kick();
      return 1;
    case APIC_DM_STARTUP:
      lapic.sipiVector = vector;
      lapic.pendingEvents |= PENDING_SIPI;
      vcpu.request(REQ_EVENT);
      vcpu.kick();
      return 1;
    case APIC_DM_EXTINT:
      // Only a PIC behind LINT0 brings these, and there is none (lapic.c accepts nothing here either).
      return 0;
    default:
      throw new NotModelled(`delivery mode ${deliveryMode}`, "SDM 3A 11.6.1");
  }
}

function acceptFixed(
  lapic: Lapic,
  deliveryMode: number,
  vector: number,
  level: boolean,
  levelTriggered: boolean,
): number {
  if ((levelTriggered && !level) || !lapic.enabled) return 0;
  const { vcpu } = lapic;
  recordTrigger(lapic, vector, levelTriggered);
  if (vcpu.vm.enableApicv) {
    vcpu.backend.deliver(lapic, deliveryMode, vector, levelTriggered);
    return 1;
  }
  lapic.setIrr(vector);
  vcpu.request(REQ_EVENT);
  vcpu.kick();
  return 1;
}

/** A vector's trigger mode, in the TMR. */
function recordTrigger(lapic: Lapic, vector: number, levelTriggered: boolean): void {
  const { page } = lapic;
  lapic.levels ||= levelTriggered;
  if (testVector(page, APIC_TMR, vector) === levelTriggered) return;
  if (levelTriggered) setVector(page, APIC_TMR, vector);
  else clearVector(page, APIC_TMR, vector);
}

/** Delivers through an entry of the APIC's own vector table; 0 if it is masked or dropped. */
export function localDeliver(lapic: Lapic, lvt: number): number {
  const entry = lapic.get(lvt);
  if (!lapic.hardwareEnabled || (entry & APIC_LVT_MASKED) !== 0) return 0;
  const levelTriggered = (entry & APIC_LVT_LEVEL_TRIGGER) !== 0;
  const accepted = acceptInterrupt(
    lapic,
    entry & APIC_MODE_MASK,
    entry & APIC_VECTOR_MASK,
    true,
    levelTriggered,
  );
  // Intel's APIC masks the performance-counter entry when it has delivered (lapic.c, kvm_apic_local_deliver).
  if (accepted !== 0 && lvt === APIC_LVTPC && lapic.vcpu.cpuid.intelCompatible) {
    lapic.set(lvt, entry | APIC_LVT_MASKED);
  }
  return accepted;
}
