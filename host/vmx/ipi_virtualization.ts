/**
 * IPI virtualization (SDM 3C 30.1.6): an IPI to one vCPU is posted to its descriptor by the sender's hardware, which
 * finds that in a table by APIC ID; and KVM's side of that table (arch/x86/kvm/vmx/vmx.c).
 *
 * KVM numbers the table by vCPU. That an APIC's ID is its vCPU's number is what the APICv inhibits PHYSICAL_ID_ALIASED
 * and APIC_ID_MODIFIED see to.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { hex } from "../../abi/mod.ts";
import type { Steps } from "../core/mod.ts";
import type { Processor } from "../cpu/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { perOwner } from "../kvm/per_owner.ts";
import type { Vm } from "../kvm/vm.ts";
import type { Machine } from "../machine.ts";
import type { HostBlock } from "../memory/mod.ts";
import type { Pcpu } from "../sched/mod.ts";
import type { VmxHardware } from "./hardware.ts";
import * as descriptors from "./posted_descriptor.ts";
import { apicWriteExit } from "./virtual_apic.ts";
import type { Vmx } from "./vmx.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_ICR, APIC_VECTOR_MASK, HIGH } = abi;
const { PI_DESCRIPTOR_BYTES, PiDescriptor, POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR } = descriptors;
type PiDescriptor = descriptors.PiDescriptor;

const PAGE_BYTES = 4096;
const ENTRY_BYTES = 8;
/** Of an entry: it points to a descriptor, whose address has these bits clear (PID_TABLE_ENTRY_VALID). */
const ENTRY_VALID = 1;
const ENTRY_LOW_BITS = 0x3f;
/** Vectors below this are reserved (SDM 3A 11.5.2). */
const FIRST_VECTOR = 16;

// KVM's side.

/** A virtual machine's PID-pointer table: one entry for each vCPU number that there may be. */
export class PidPointerTable {
  /** The highest index. */
  declare readonly lastIndex: number;
  readonly #block: HostBlock;

  /** An empty table, in whole pages, a power of two of them (vmx_alloc_ipiv_pid_table). */
  constructor({ machine, maxVcpuIds }: Vm) {
    const pages = 2 ** Math.ceil(Math.log2(Math.ceil(maxVcpuIds * ENTRY_BYTES / PAGE_BYTES)));
    this.lastIndex = maxVcpuIds - 1;
    this.#block = machine.hostMemory.allocate(pages * PAGE_BYTES, PAGE_BYTES);
  }

  /** Where hardware finds it. */
  get address(): number {
    return this.#block.address;
  }

  /** Enters a vCPU's descriptor. */
  set(vcpuId: number, descriptor: number): void {
    this.#block.words[2 * vcpuId] = (descriptor | ENTRY_VALID) >>> 0;
    this.#block.words[2 * vcpuId + 1] = Math.floor(descriptor / HIGH);
  }

  /** Takes a vCPU's entry back. */
  clear(vcpuId: number): void {
    this.#block.words[2 * vcpuId] = 0;
    this.#block.words[2 * vcpuId + 1] = 0;
  }
}

/** A virtual machine's table; it comes with the first vCPU (vmx_vcpu_precreate). */
export const pidPointerTable: (vm: Vm) => PidPointerTable = perOwner((vm) => new PidPointerTable(vm));

/**
 * A vCPU's VMCS learns of its descriptor and of the table, and the table of the descriptor: last, as all else may fail
 * (vmx_vcpu_create, init_vmcs).
 */
export function enterDescriptor({ vcpu, vmcs, posted }: Vmx): void {
  if (!vcpu.vm.enableApicv) return;
  vmcs.postedIntrNv = POSTED_INTR_VECTOR;
  vmcs.postedIntrDesc = posted.address;
  if (!vcpu.vm.enableIpiv) return;
  const table = pidPointerTable(vcpu.vm);
  vmcs.pidPointerTable = table.address;
  vmcs.lastPidPointerIndex = table.lastIndex;
  table.set(vcpu.vcpuId, posted.address);
}

/**
 * KVM_CREATE_VCPU that fails behind this module's part: a descriptor has been made and entered, and is freed again
 * (vmx_vcpu_create, vmx_vcpu_free).
 */
export function createAndFree(vm: Vm, vcpuId: number): void {
  if (!vm.enableIpiv) return;
  const { hostMemory } = vm.machine;
  const descriptor = hostMemory.allocate(PI_DESCRIPTOR_BYTES, PI_DESCRIPTOR_BYTES);
  const table = pidPointerTable(vm);
  table.set(vcpuId, descriptor.address);
  hostMemory.free(descriptor);
  if (!vm.quirk("pid-table-keeps-freed")) table.clear(vcpuId);
}

/** How a descriptor names a CPU: by its whole x2APIC ID, or by its xAPIC ID in bits 15:8. */
export function ndstOf({ x2apicHost }: Machine, pcpu: Pcpu): number {
  return x2apicHost ? pcpu.id : (pcpu.id << 8) & 0xff00;
}

// The hardware's side.

/**
 * Sends an IPI that may be virtualized as far as its ICR says, which is stored already. It retires the instruction, or
 * ends in an APIC-write exit, which software then serves as any other ICR write.
 *
 * Unlike software it sets ON even where the vector was posted before, and it heeds SN.
 */
export function* ipiVirtualization(p: Processor, low: number, destination: number): Steps {
  const hardware = p.virtualization as VmxHardware;
  const { pending } = p.context;
  const vector = low & APIC_VECTOR_MASK;
  p.charge(p.cost.postIpi);
  const descriptor = vector < FIRST_VECTOR ? undefined : descriptorOf(hardware, destination);
  if (descriptor === undefined) {
    apicWriteExit(p, APIC_ICR);
    return;
  }
  yield;
  descriptor.testAndSetPir(vector);
  yield;
  if (descriptor.requestNotification()) {
    const { nv, ndst } = descriptor;
    yield;
    sendPhysicalIpi(hardware, ndst, nv);
  }
  p.retire(pending);
}

/** The same in one piece: timed runs, in which nobody comes between two accesses, need no generator. */
export function ipiAtOnce(p: Processor, low: number, destination: number): void {
  const hardware = p.virtualization as VmxHardware;
  const vector = low & APIC_VECTOR_MASK;
  p.charge(p.cost.postIpi);
  const descriptor = vector < FIRST_VECTOR ? undefined : knownDescriptor(hardware, destination);
  if (descriptor === undefined) {
    apicWriteExit(p, APIC_ICR);
    return;
  }
  descriptor.testAndSetPir(vector);
  if (descriptor.requestNotification()) sendPhysicalIpi(hardware, descriptor.ndst, descriptor.nv);
  p.retire(p.context.pending);
}

/** The descriptor that the table names for an APIC ID; undefined where the entry is none, or is beyond the table. */
function descriptorOf(hardware: VmxHardware, apicId: number): PiDescriptor | undefined {
  const { vmcs, vcpu } = hardware;
  if (apicId > vmcs.lastPidPointerIndex) return undefined;
  const pidTable = hardware.pidTable();
  const low = pidTable[2 * apicId];
  const high = pidTable[2 * apicId + 1];
  if ((low & ENTRY_LOW_BITS) !== ENTRY_VALID || vmcs.capabilities.beyondHigh(high)) return undefined;
  const block = vcpu.machine.hostMemory.findHalves(low, high);
  return block === undefined
    ? followedToNowhere(vcpu, apicId, high * HIGH + low - ENTRY_VALID)
    : new PiDescriptor(block.words);
}

/** The same, without following an entry that was the last one to be followed. */
function knownDescriptor(hardware: VmxHardware, apicId: number): PiDescriptor | undefined {
  const { ipiTarget, vcpu, vmcs } = hardware;
  if (apicId > vmcs.lastPidPointerIndex) return undefined;
  const pidTable = hardware.pidTable();
  const low = pidTable[2 * apicId];
  const high = pidTable[2 * apicId + 1];
  const { freed } = vcpu.machine.hostMemory;
  return ipiTarget.find(low, high, freed) ??
    ipiTarget.keep(low, high, freed, descriptorOf(hardware, apicId));
}

function followedToNowhere({ vm }: Vcpu, apicId: number, address: number): never {
  return vm.hostFailure(
    `IPI virtualization follows PID-pointer table entry ${apicId} to ${hex(address)}, which is free`,
  );
}

/** A physical IPI as a descriptor describes it. */
function sendPhysicalIpi({ vcpu }: VmxHardware, ndst: number, vector: number): void {
  const { machine, cost } = vcpu;
  const id = machine.x2apicHost ? ndst : (ndst >>> 8) & 0xff;
  const pcpu = machine.scheduler.pcpus[id] as Pcpu | undefined;
  if (pcpu === undefined) return; // Nobody has that ID.
  const arrival = vcpu.time + cost.ipiLatency;
  if (vector === POSTED_INTR_VECTOR) pcpu.notify(arrival);
  else if (vector === POSTED_INTR_WAKEUP_VECTOR) pcpu.wakeup(arrival);
  else pcpu.interrupt(arrival);
}
