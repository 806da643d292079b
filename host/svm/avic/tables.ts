/**
 * AVIC's two tables: from a guest's physical APIC ID to the backing page and the CPU of a vCPU, and from a logical ID
 * to a physical one. KVM writes them, every processor of the virtual machine reads them.
 *
 *     physical, 8 bytes   63 Valid | 62 IsRunning | 51:12 backing page | 11:0 host physical APIC ID
 *     logical, 4 bytes    31 Valid | 7:0 guest physical APIC ID
 *
 * @module
 */

import * as abi from "../../../abi/mod.ts";
import { perOwner } from "../../kvm/per_owner.ts";
import type { Vm } from "../../kvm/vm.ts";
import type { HostBlock, HostMemory } from "../../memory/mod.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  AVIC_MAX_PHYSICAL_ID,
  AVIC_PHYSICAL_HOST_ID,
  AVIC_PHYSICAL_IS_RUNNING,
  AVIC_PHYSICAL_PAGE_HIGH,
  AVIC_PHYSICAL_PAGE_LOW,
  AVIC_PHYSICAL_VALID,
  HIGH,
  X2AVIC_MAX_PHYSICAL_ID,
} = abi;

const TABLE_ALIGNMENT = 4096;
/** Bytes of the logical table (APM 2 15.29.4.3); a guest's eight or sixty logical IDs use little of them. */
const LOGICAL_BYTES = 4096;

/** What a valid entry of the physical table says. */
export interface PhysicalEntry {
  /** The backing page. */
  readonly page: number;
  /** The physical APIC ID of the CPU that has the vCPU, or had it last. */
  readonly hostId: number;
  /** Whether a CPU has the vCPU. */
  readonly running: boolean;
}

/** Whether an entry of a physical table is valid. */
export function physicalValid(table: Uint32Array, id: number): boolean {
  return (table[2 * id + 1] & AVIC_PHYSICAL_VALID) !== 0;
}

/** The backing page that an entry names. */
export function physicalPage(table: Uint32Array, id: number): number {
  const low = (table[2 * id] & AVIC_PHYSICAL_PAGE_LOW) >>> 0;
  return (table[2 * id + 1] & AVIC_PHYSICAL_PAGE_HIGH) * HIGH + low;
}

/** The same page, as the host's memory has it: undefined where nothing is there. */
export function physicalBlock(table: Uint32Array, id: number, memory: HostMemory): HostBlock | undefined {
  const low = table[2 * id] & AVIC_PHYSICAL_PAGE_LOW;
  return memory.findHalves(low, table[2 * id + 1] & AVIC_PHYSICAL_PAGE_HIGH);
}

/** The CPU whose doorbell an entry says to ring; -1 where the vCPU is not running. One access: both stand in 64 bits. */
export function physicalDoorbell(table: Uint32Array, id: number): number {
  const running = (table[2 * id + 1] & AVIC_PHYSICAL_IS_RUNNING) !== 0;
  return running ? table[2 * id] & AVIC_PHYSICAL_HOST_ID : -1;
}

/** Writes a valid entry. */
export function writePhysical(
  table: Uint32Array,
  id: number,
  { page, hostId, running }: PhysicalEntry,
): void {
  table[2 * id] = (page >>> 0) | hostId;
  table[2 * id + 1] = (page / HIGH) | (running ? AVIC_PHYSICAL_IS_RUNNING : 0) | AVIC_PHYSICAL_VALID;
}

/** A virtual machine's tables. */
export class AvicTables {
  /** The physical APIC ID table. */
  declare readonly physical: HostBlock;
  /** The logical APIC ID table. */
  declare readonly logical: HostBlock;
  /** The highest physical APIC ID that the physical table has room for. */
  declare readonly lastId: number;

  /** Zeroed tables (avic_vm_init, avic_alloc_physical_id_table). */
  constructor(vm: Vm) {
    const most = vm.acceleration === "x2avic" ? X2AVIC_MAX_PHYSICAL_ID : AVIC_MAX_PHYSICAL_ID;
    this.lastId = Math.min(vm.maxVcpuIds - 1, most);
    const bytes = Math.ceil(8 * (this.lastId + 1) / TABLE_ALIGNMENT) * TABLE_ALIGNMENT;
    this.physical = vm.machine.hostMemory.allocate(bytes, TABLE_ALIGNMENT);
    this.logical = vm.machine.hostMemory.allocate(LOGICAL_BYTES, TABLE_ALIGNMENT);
  }
}

/** A virtual machine's tables; they are made for its first vCPU. */
export const avicTables: (vm: Vm) => AvicTables = perOwner((vm) => new AvicTables(vm));
