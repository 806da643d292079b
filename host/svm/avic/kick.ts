/**
 * After hardware has requested an IPI's vector everywhere and found a target not running, KVM must find those whom the
 * IPI meant, and wake them (avic_kick_target_vcpus). Asking every vCPU takes a time that grows with their number; the
 * fast ways go from the destination to the vCPU, which has the number of its APIC ID.
 *
 * @module
 */

import * as abi from "../../../abi/mod.ts";
import type { Steps } from "../../core/mod.ts";
import type { Vcpu } from "../../kvm/vcpu.ts";
import type { Vm } from "../../kvm/vm.ts";
import * as lapics from "../../lapic/mod.ts";
import type { Lapic } from "../../lapic/mod.ts";
import * as tracing from "../../trace/mod.ts";
import { completeDelivery } from "./deliver.ts";
import { avicTables } from "./tables.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_BROADCAST,
  APIC_DEST_LOGICAL,
  APIC_DFR,
  APIC_DFR_FLAT,
  APIC_INT_LEVELTRIG,
  APIC_MODE_MASK,
  APIC_SHORT_MASK,
  APIC_VECTOR_MASK,
  AVIC_LOGICAL_GUEST_ID,
  AVIC_LOGICAL_VALID,
  lowestBit,
  popcount,
  X2APIC_BROADCAST,
} = abi;
const { matchDestination } = lapics;
const { TP } = tracing;

/** The index that the patch of 2022 takes from the exit, and the guest ID from a logical entry. */
const ID_MASK_OF_2022 = 0x1ff;

/** An IPI whose targets' IRRs are set. */
export interface SentIpi {
  /** Who sent it. */
  readonly source: Vcpu;
  /** The ICR. */
  readonly low: number;
  /** Its high half. */
  readonly high: number;
  /** What the exit told of the table. */
  readonly index: number;
}

/** Kicks the targets. */
export function* kickTargets(ipi: SentIpi): Steps {
  const { vm } = ipi.source;
  const found = vm.avicKick === "slow"
    ? undefined
    : vm.avicKick === "2022"
    ? targetOf2022(ipi)
    : targets(ipi);
  for (const vcpu of found ?? everyMatch(ipi)) yield* kick(vcpu, ipi);
}

/** The request is there already: its target may use AVIC, or not any more, and is told. */
function* kick({ lapic }: Vcpu, { low }: SentIpi): Steps {
  lapic.irrPending = true;
  lapic.findIrr(); // What hardware has set, KVM has not counted.
  yield;
  yield* completeDelivery(lapic, {
    deliveryMode: low & APIC_MODE_MASK,
    vector: low & APIC_VECTOR_MASK,
    levelTriggered: (low & APIC_INT_LEVELTRIG) !== 0,
  });
}

/** The slow way: asks every vCPU, in the order of their indices. */
function* everyMatch({ source, low, high, index }: SentIpi): Generator<Vcpu, void, void> {
  const { vm, lapic } = source;
  // The tracepoint came with v5.19, right behind the patch.
  if (vm.behaviour.avicKick === "v6.19") source.trace(TP.kvm_avic_kick_vcpu_slowpath, high, low, index);
  for (const vcpu of vm.vcpus) {
    source.charge(vm.cost.slowMatch);
    if (matches(vcpu.lapic, lapic, low, high)) yield vcpu;
  }
}

/** kvm_apic_match_dest. The mode of the sender says what the destination is; in 2022 the target's did (a879a88e05f3). */
function matches(target: Lapic, source: Lapic, low: number, high: number): boolean {
  const reader = source.vcpu.vm.avicKick === "2022" ? target : source;
  const destination = reader.x2apicMode ? high : high >>> 24;
  const logical = (low & APIC_DEST_LOGICAL) !== 0;
  return matchDestination(target, source, low & APIC_SHORT_MASK, destination, logical);
}

function find(source: Vcpu, id: number): Vcpu[] {
  const { vm } = source;
  source.charge(vm.cost.avicTarget);
  const vcpu = vm.vcpuById(id);
  return vcpu === undefined ? [] : [vcpu];
}

function logicalTable(vm: Vm): Uint32Array {
  return avicTables(vm).logical.words;
}

/**
 * As the patch of April 2022 was posted: the exit's index, or the one bit of an x2APIC's logical ID, leads to one vCPU,
 * and if the IPI means that one, nobody else is looked for. Whoever is meant besides sleeps on: an xAPIC's logical IPI
 * to several, and its physical broadcast without a shorthand.
 */
function targetOf2022({ source, low, high, index }: SentIpi): Vcpu[] | undefined {
  const { vm, lapic } = source;
  if ((low & APIC_SHORT_MASK) !== 0) return undefined;
  let id = index & ID_MASK_OF_2022;
  if ((low & APIC_DEST_LOGICAL) !== 0) {
    if (lapic.x2apicMode) {
      const bits = high & 0xffff;
      if (popcount(bits) !== 1) return undefined;
      id = ((high >>> 16) << 4) + lowestBit(bits);
    } else {
      id = logicalTable(vm)[id] & ID_MASK_OF_2022;
    }
  }
  const found = find(source, id);
  const meant = found.length > 0 && matches(found[0].lapic, lapic, low, high);
  return meant ? found : undefined;
}

/**
 * As v6.19 does it (avic_kick_target_vcpus_fast): every bit of the destination leads to a vCPU, which is not asked whether
 * it is meant. Only shorthands and physical broadcasts are left to the slow way: what is a broadcast to hardware and a
 * logical destination to this is looked up as one, and mostly nobody is found.
 */
function targets({ source, low, high, index }: SentIpi): Vcpu[] | undefined {
  const { x2apicMode } = source.lapic;
  if ((low & APIC_SHORT_MASK) !== 0) return undefined;
  const destination = x2apicMode ? high : high >>> 24;
  if ((low & APIC_DEST_LOGICAL) === 0) {
    // KVM warns of an index that is not the destination.
    const everybody = destination === (x2apicMode ? X2APIC_BROADCAST : APIC_BROADCAST);
    return everybody || destination !== index ? undefined : find(source, destination);
  }
  return x2apicMode ? x2apicTargets(source, destination) : xapicTargets(source, destination);
}

function x2apicTargets(source: Vcpu, destination: number): Vcpu[] {
  const mask = source.vm.quirk("avic-kick-x2apic-mask") ? 0xffff_0000 : 0xffff;
  const first = (destination >>> 16) << 4;
  return bitsOf(destination & mask).flatMap((bit) => find(source, first + bit));
}

/** The sender's destination format decides how the destination is read. */
function xapicTargets(source: Vcpu, destination: number): Vcpu[] {
  const flat = source.lapic.get(APIC_DFR) === APIC_DFR_FLAT;
  const first = flat ? 0 : (destination >>> 4) << 2;
  const table = logicalTable(source.vm);
  return bitsOf(flat ? destination : destination & 0xf).flatMap((bit) => {
    const entry = table[first + bit];
    return (entry & AVIC_LOGICAL_VALID) === 0 ? [] : find(source, entry & AVIC_LOGICAL_GUEST_ID);
  });
}

/** The sixteen bits that are looked at. */
function bitsOf(mask: number): number[] {
  const bits: number[] = [];
  for (let rest = mask & 0xffff; rest !== 0; rest &= rest - 1) bits.push(lowestBit(rest));
  return bits;
}
