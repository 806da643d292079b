/**
 * The APIC-access page: a page of the host's memory behind guest-physical 0xfee00000, one for a virtual machine. VMX and
 * AVIC alike need it mapped. Nobody looks at what is in it: an access that the processor virtualizes never gets there.
 *
 * Others do. A vCPU whose APIC is disabled, or in x2APIC mode, has its accesses not virtualized, and where the page is
 * mapped it is memory to them.
 *
 * @module
 */

import { APIC_DEFAULT_BASE, APIC_PAGE_SIZE, instructionText } from "../../abi/mod.ts";
import { ACCESS, emulateOperand, type Processor } from "../cpu/mod.ts";
import { GuestMemory, type HostBlock } from "../memory/mod.ts";
import { perOwner } from "./per_owner.ts";
import type { Vm } from "./vm.ts";

interface AccessPage {
  readonly block: HostBlock;
  readonly memory: GuestMemory;
}

/** KVM allocates it with the first vCPU (kvm_alloc_apic_access_page). */
const pageOf: (vm: Vm) => AccessPage = perOwner((vm) => {
  const memory = new GuestMemory();
  const { u8 } = memory.addSlot({ base: APIC_DEFAULT_BASE, size: APIC_PAGE_SIZE });
  const words = new Uint32Array(u8.buffer, u8.byteOffset, APIC_PAGE_SIZE / 4);
  return { block: vm.machine.hostMemory.adopt(words, APIC_PAGE_SIZE), memory };
});

/** The page's host-physical address. */
export function accessPageAddress(vm: Vm): number {
  return pageOf(vm).block.address;
}

/**
 * Whether it is mapped. Since v5.15 VMX too has it only while nothing inhibits APICv (__kvm_mmu_faultin_pfn); that KVM maps
 * it at its first use is left out here.
 */
export function accessPageMapped({ backend, behaviour, enableApicv, apicvInhibits }: Vm): boolean {
  return (behaviour.apicAccessPage && backend === "vmx") || (enableApicv && apicvInhibits === 0);
}

/** Executes the pending instruction on the page as on memory: all of its operand is there. Always true. */
export function accessPageMemory(vm: Vm, p: Processor, offset: number): true {
  const { memory } = pageOf(vm);
  const op = p.context.pending;
  const spec = ACCESS[op];
  if (spec === undefined) {
    throw p.error(`the operand of ${instructionText(op)} is in the APIC-access page: that is not modelled`);
  }
  const { bytes, reads, writes, primitive } = spec;
  const address = APIC_DEFAULT_BASE + offset;
  const operand = reads ? memory.read(address, bytes) : 0n;
  if (operand === undefined) {
    throw p.error("an access across the end of the APIC-access page is not modelled");
  }
  const result = emulateOperand(p, op, operand);
  if (writes && result !== undefined) memory.write(address, bytes, result);
  p.charge(p.cost[primitive]);
  p.retire(op);
  return true;
}
