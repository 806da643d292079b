/**
 * What AVIC does when the guest writes its interrupt command register (APM volume 2, 15.29.6.1): it finds the targets in
 * the tables, requests the vector in the page of each, and rings the doorbell of those that are running. What it cannot
 * complete exits behind the instruction.
 *
 * The tables are read before any request is made: an IPI with one invalid target reaches nobody (as KVM's comment in
 * avic_incomplete_ipi_interception has it). Where the manual is silent: an x2APIC's broadcast is 0xffffffff, in either
 * destination mode, as 0xff is an xAPIC's; and of several targets that are not running the first one's index is told.
 *
 * @module
 */

import * as abi from "../../../abi/mod.ts";
import type { Steps } from "../../core/mod.ts";
import type { Processor } from "../../cpu/mod.ts";
import * as vectors from "../../lapic/vectors.ts";
import type { AvicHardware } from "./hardware.ts";
import { logicalIndex } from "./logical_ids.ts";
import * as tables from "./tables.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_BROADCAST,
  APIC_DEST_ALLBUT,
  APIC_DEST_LOGICAL,
  APIC_DEST_SELF,
  APIC_DFR,
  APIC_ID,
  APIC_INT_ASSERT,
  APIC_INT_LEVELTRIG,
  APIC_IRR,
  APIC_MODE_MASK,
  APIC_SHORT_MASK,
  APIC_VECTOR_MASK,
  AVIC_IPI_INVALID_BACKING_PAGE,
  AVIC_IPI_INVALID_INT_TYPE,
  AVIC_IPI_INVALID_TARGET,
  AVIC_IPI_INVALID_VECTOR,
  AVIC_IPI_TARGET_NOT_RUNNING,
  AVIC_LOGICAL_GUEST_ID,
  AVIC_LOGICAL_VALID,
  HIGH,
  SVM_EXIT_AVIC_INCOMPLETE_IPI,
  X2APIC_BROADCAST,
} = abi;
const { setVector } = vectors;
const { physicalBlock, physicalDoorbell, physicalPage, physicalValid } = tables;

/** DFR bits 31:28: all ones are the flat model. */
const DFR_MODEL = 0xf;

/** A target: where the tables name it, and its page. */
interface Target {
  /** Its physical APIC ID. */
  readonly id: number;
  /** What an exit tells of it. */
  readonly index: number;
  readonly page: Uint32Array;
}

/** Why an IPI cannot be sent. */
interface Failure {
  readonly failure: number;
  readonly index: number;
}

/** Sends what the halves of the ICR say, which it holds already. Ends behind the instruction, or with the exit. */
export function* sendIpi(avic: AvicHardware, p: Processor, low: number, high: number): Steps {
  if ((low & (APIC_MODE_MASK | APIC_INT_LEVELTRIG)) !== 0) {
    return incomplete(avic, p, low, high, { failure: AVIC_IPI_INVALID_INT_TYPE, index: 0 });
  }
  const vector = low & APIC_VECTOR_MASK;
  if (vector < 16) return incomplete(avic, p, low, high, { failure: AVIC_IPI_INVALID_VECTOR, index: 0 });
  if ((low & APIC_SHORT_MASK) === APIC_DEST_SELF) {
    // Whether the table says that this vCPU is running does not matter.
    avic.request(vector);
    p.charge(p.cost.virtualEoi);
    p.skipInstruction();
    return avic.evaluate(p);
  }
  const targets = findTargets(avic, low, high);
  if (!Array.isArray(targets)) return incomplete(avic, p, low, high, targets);
  let asleep: Failure | undefined;
  for (const target of targets) {
    p.charge(p.cost.postIpi);
    yield;
    const hostId = yield* request(avic, target, vector);
    if (hostId < 0) asleep ??= { failure: AVIC_IPI_TARGET_NOT_RUNNING, index: target.index };
    else ringDoorbell(avic, p, hostId);
  }
  if (asleep === undefined) p.skipInstruction();
  else incomplete(avic, p, low, high, asleep);
}

/** What the low half of an ICR may say that {@linkcode sendDirected} sends. */
const DIRECTED = APIC_VECTOR_MASK | APIC_INT_ASSERT;

/**
 * The same as {@linkcode sendIpi}, sooner, of what most IPIs are: a fixed edge to one physical ID that has an entry. false
 * leaves it to that. Nobody can come between its accesses.
 */
export function sendDirected(avic: AvicHardware, p: Processor, low: number, high: number): boolean {
  const { vmcb, physical, vcpu } = avic;
  const vector = low & APIC_VECTOR_MASK;
  if ((low & ~DIRECTED) !== 0 || vector < 16) return false;
  const id = vmcb.x2avic ? high : high >>> 24;
  if (id > vmcb.avicMaxIndex || (id === APIC_BROADCAST && !vmcb.x2avic)) return false;
  if (!physicalValid(physical, id)) return false;
  const page = physicalBlock(physical, id, vcpu.machine.hostMemory);
  if (page === undefined) return false;
  p.charge(p.cost.postIpi);
  setVector(page.words, APIC_IRR, vector);
  const hostId = physicalDoorbell(physical, id);
  if (hostId < 0) {
    incomplete(avic, p, low, high, { failure: AVIC_IPI_TARGET_NOT_RUNNING, index: id });
  } else {
    ringDoorbell(avic, p, hostId);
    p.skipInstruction();
  }
  return true;
}

/**
 * Requests a vector in a target's page, and only then looks whether it is running: whoever clears IsRunning looks for
 * requests after that. Answers with the CPU to ring, -1 where it is not running.
 */
function* request({ vcpu, physical }: AvicHardware, { id, page }: Target, vector: number): Steps<number> {
  if (vcpu.vm.quirk("avic-stale-is-running")) {
    const hostId = physicalDoorbell(physical, id);
    yield;
    setVector(page, APIC_IRR, vector);
    return hostId;
  }
  setVector(page, APIC_IRR, vector);
  yield;
  return physicalDoorbell(physical, id);
}

/** Rings the doorbell of a CPU: whatever guest it runs looks at its own page. */
function ringDoorbell({ vcpu }: AvicHardware, p: Processor, hostId: number): void {
  vcpu.vm.scheduler.pcpus[hostId]?.notify(p.thread.time + p.cost.ipiLatency);
}

function incomplete(avic: AvicHardware, p: Processor, low: number, high: number, why: Failure): void {
  avic.vmcb.incompleteIcrHigh = high;
  p.skipInstruction();
  p.leaveWith(SVM_EXIT_AVIC_INCOMPLETE_IPI, low, why.failure * HIGH + why.index);
}

/** Everybody whom the ICR means, or why that cannot be said. */
function findTargets(avic: AvicHardware, low: number, high: number): Target[] | Failure {
  const { vmcb } = avic;
  const destination = vmcb.x2avic ? high : high >>> 24;
  const everybody = vmcb.x2avic ? X2APIC_BROADCAST : APIC_BROADCAST;
  // The manual asks for a broadcast before it looks at the destination mode.
  if ((low & APIC_SHORT_MASK) !== 0 || destination === everybody) return broadcast(avic, low);
  if ((low & APIC_DEST_LOGICAL) === 0) return directed(avic, [[destination, destination]]);
  return vmcb.x2avic ? directed(avic, x2apicIds(destination)) : logical(avic, destination);
}

/** Every valid entry of the physical table; the others are skipped. */
function broadcast(avic: AvicHardware, low: number): Target[] | Failure {
  const { vmcb, page, physical } = avic;
  const own = page[APIC_ID >>> 2] >>> (vmcb.x2avic ? 0 : 24);
  const spared = (low & APIC_SHORT_MASK) === APIC_DEST_ALLBUT ? own : -1;
  const ids: [id: number, index: number][] = [];
  for (let id = 0; id <= vmcb.avicMaxIndex && 2 * id < physical.length; id++) {
    if (id !== spared && physicalValid(physical, id)) ids.push([id, id]);
  }
  return directed(avic, ids);
}

/** An x2APIC's logical ID follows from its physical ID: no table says so, and no index is told. */
function* x2apicIds(destination: number): Generator<readonly [id: number, index: number], void, void> {
  const cluster = (destination >>> 16) << 4;
  for (let bit = 0; bit < 16; bit++) {
    if (((destination >>> bit) & 1) !== 0) yield [cluster + bit, 0];
  }
}

/** A logical xAPIC destination: each of its bits is an entry of the logical table. */
function logical(avic: AvicHardware, destination: number): Target[] | Failure {
  const { page, logical: table } = avic;
  const flat = page[APIC_DFR >>> 2] >>> 28 === DFR_MODEL;
  const ids: [id: number, index: number][] = [];
  for (let bit = 0; bit < (flat ? 8 : 4); bit++) {
    if (((destination >>> bit) & 1) === 0) continue;
    const index = logicalIndex(flat ? 1 << bit : (destination & 0xf0) | (1 << bit), flat);
    const entry = index < 0 ? 0 : table[index];
    if ((entry & AVIC_LOGICAL_VALID) === 0) {
      return { failure: AVIC_IPI_INVALID_TARGET, index: Math.max(index, 0) };
    }
    ids.push([entry & AVIC_LOGICAL_GUEST_ID, index]);
  }
  return directed(avic, ids);
}

/** Those with these physical IDs, each of which must have a valid entry and a page. */
function directed(
  { vcpu, vmcb, physical }: AvicHardware,
  ids: Iterable<readonly [id: number, index: number]>,
): Target[] | Failure {
  const { hostMemory } = vcpu.machine;
  const targets: Target[] = [];
  for (const [id, index] of ids) {
    const known = id <= vmcb.avicMaxIndex && 2 * id < physical.length && physicalValid(physical, id);
    if (!known) return { failure: AVIC_IPI_INVALID_TARGET, index: index & 0xfff };
    const page = hostMemory.find(physicalPage(physical, id))?.words;
    if (page === undefined) return { failure: AVIC_IPI_INVALID_BACKING_PAGE, index: id };
    targets.push({ id, index, page });
  }
  return targets;
}
