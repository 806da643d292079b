/**
 * What tests of AVIC share: a processor's AVIC and KVM's part of it, the tables as they stand in memory, and guests whose
 * other processors sleep, or spin.
 *
 * @module
 */

import type { Svm } from "../../host/svm/mod.ts";
import type { Vcpu, Vm } from "../../host/mod.ts";
import { vectors } from "./apic.ts";

/** A vCPU's SVM module. */
export function svm(vcpu: Vcpu): Svm {
  return vcpu.backend as Svm;
}

/** The words at an address of the host's memory. */
export function hostWords(vm: Vm, address: number): Uint32Array {
  return vm.machine.hostMemory.at(address);
}

/** An entry of the physical APIC ID table, taken apart as the manual has it (APM 2 15.29.4.2). */
export interface EntrySeen {
  /** Bit 63. */
  readonly valid: boolean;
  /** Bit 62. */
  readonly running: boolean;
  /** Bits 51:12. */
  readonly page: number;
  /** Bits 11:0. */
  readonly hostId: number;
}

/** An entry of the physical APIC ID table. */
export function physicalEntry(vm: Vm, id: number): EntrySeen {
  const table = hostWords(vm, svm(vm.bootstrap).vmcb.avicPhysicalTable);
  const entry = (BigInt(table[2 * id + 1]) << 32n) | BigInt(table[2 * id]);
  return {
    valid: (entry >> 63n & 1n) === 1n,
    running: (entry >> 62n & 1n) === 1n,
    page: Number(entry & 0x000f_ffff_ffff_f000n),
    hostId: Number(entry & 0xfffn),
  };
}

/** The valid entries of the logical APIC ID table: index and guest physical ID. */
export function logicalEntries(vm: Vm): [index: number, id: number][] {
  const table = hostWords(vm, svm(vm.bootstrap).vmcb.avicLogicalTable);
  return [...table].flatMap((entry, index): [number, number][] =>
    entry >>> 31 === 1 ? [[index, entry & 0xff]] : []
  );
}

/** Which vCPUs, by number, have a vector's request in their page. */
export function requestedAt(vm: Vm, vector: number): number[] {
  return vm.vcpus.filter(({ lapic }) => vectors(lapic, 0x200).includes(vector)).map(({ vcpuId }) => vcpuId);
}
