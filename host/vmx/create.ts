/**
 * Making the VMX part of a vCPU (arch/x86/kvm/vmx/vmx.c, vmx_vcpu_create): one that has a VPID, and one that has to do
 * without, as the processor or kvm_intel's parameter is against it, or all are taken.
 *
 * @module
 */

import type { Vcpu } from "../kvm/vcpu.ts";
import type { Vm } from "../kvm/vm.ts";
import { createAndFree } from "./ipi_virtualization.ts";
import { Vmx } from "./vmx.ts";
import { vpidsOf } from "./vpid.ts";

/** The VMX part of a new vCPU. */
export function createVmx(vcpu: Vcpu): Vmx {
  const vpid = vcpu.vm.vmxSetup!.vpid.on ? vpidsOf(vcpu.machine).allocate() : 0;
  return vpid === 0 ? new VmxWithoutVpid(vcpu) : new Vmx(vcpu, vpid);
}

/** What is done for a vCPU whose creation fails late, and undone: its VPID, and its place in the PID-pointer table. */
export function createVmxInVain(vm: Vm, vcpuId: number): void {
  const vpid = vm.vmxSetup!.vpid.on ? vpidsOf(vm.machine).allocate() : 0;
  createAndFree(vm, vcpuId);
  vpidsOf(vm.machine).free(vpid);
}

/** Without a VPID the processor itself flushes at each entry and exit (SDM 3C 29.4.3.1). */
class VmxWithoutVpid extends Vmx {
  /** VM entry comes next. */
  override prepareEntry(): void {
    this.vcpu.pcpu!.tlbInUse?.invalidate({ operation: "VM entry without VPID" });
  }

  /** A VM exit was before. */
  override completeExit(): void {
    this.vcpu.pcpu!.tlbInUse?.invalidate({ operation: "VM exit without VPID" });
    super.completeExit();
  }
}
