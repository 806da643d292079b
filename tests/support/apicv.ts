/**
 * What tests of hardware that delivers interrupts share: a port by which a guest has it inhibited and allowed again, and a
 * look at a VMX processor's virtual APIC.
 *
 * @module
 */

import { setApicvInhibit } from "../../host/kvm/apicv.ts";
import type { Vm } from "../../host/mod.ts";
import type { VmxHardware } from "../../host/vmx/mod.ts";
import type { X86Cpu } from "../../abi/mod.ts";
import { vectors } from "./apic.ts";

/** The port: what is written inhibits (1) or allows (0). */
const APICV_PORT = 0x90;

/** Gives a virtual machine the port. User space debugs the guest with interrupts blocked, or does not any more. */
export function addApicvPort(vm: Vm): void {
  vm.pioBus.add({
    base: APICV_PORT,
    length: 1,
    read: () => undefined,
    write(_address, _bytes, value) {
      setApicvInhibit(vm, "BLOCKIRQ", value !== 0n);
      return true;
    },
  });
}

/** A guest has APICv inhibited, or allowed again: from the next instruction on. */
export function allowApicv(cpu: X86Cpu, allowed: boolean): number {
  return cpu.out8(APICV_PORT, allowed ? 0 : 1);
}

/** Whether each vCPU uses it. */
export function activity(vm: Vm): boolean[] {
  return vm.vcpus.map(({ lapic }) => lapic.apicvActive);
}

/** The virtual APIC of a VMX processor. */
export function virtualApic(vm: Vm, index = 0): { rvi: number; svi: number; irr: number[]; isr: number[] } {
  const { lapic, backend } = vm.vcpus[index];
  const { rvi, svi } = (backend.hardware as VmxHardware).vmcs;
  return { rvi, svi, irr: vectors(lapic, 0x200), isr: vectors(lapic, 0x100) };
}
