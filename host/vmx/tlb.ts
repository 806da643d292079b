/**
 * What VMX flushes, and how: INVEPT and INVVPID (arch/x86/kvm/vmx/vmx.c, vmx_flush_tlb_all and its like; vmx_ops.h).
 * Processors that have either instruction have all its types here: KVM's wider choices for those that lack one are left
 * out.
 *
 * Where a vCPU has no VPID, entries and exits flush its linear mappings by themselves, and nothing is left to do for
 * them; guest-physical mappings have an EPT root for a tag, and stay until INVEPT.
 *
 * @module
 */

import { invalidateTlb } from "../kvm/tdp/invalidate.ts";
import { eptPointer } from "./exec_controls.ts";
import type { Vmx } from "./vmx.ts";

/** What a flush looks at. */
export type Flushed = Pick<Vmx, "vcpu" | "vmcs" | "setup">;

/** vmx_load_mmu_pgd (construct_eptp). */
export function loadMmuPgd({ vcpu, vmcs, setup }: Flushed, root: number): void {
  if (!setup.ept.on) return;
  vmcs.eptPointer = root + eptPointer(setup);
  vmcs.unchecked = 1;
  vcpu.processor.mmu?.moved();
}

/** vmx_flush_tlb_all: with EPT INVEPT, whether there are VPIDs or not. */
export function flushTlbAll({ vcpu, setup }: Flushed): void {
  if (setup.ept.on) invalidateTlb(vcpu, { operation: "INVEPT type 2" });
  else if (setup.vpid.on) invalidateTlb(vcpu, { operation: "INVVPID type 2" });
}

/** vmx_flush_tlb_current: of the root that is loaded. */
export function flushTlbCurrent(vmx: Flushed): void {
  const { vcpu, setup } = vmx;
  if (vcpu.root === undefined) return;
  if (setup.ept.on) invalidateTlb(vcpu, { operation: "INVEPT type 1", root: vcpu.root.root.address });
  else flushTlbGuest(vmx);
}

/** vmx_flush_tlb_guest (vpid_sync_context). */
export function flushTlbGuest({ vcpu, vmcs: { vpid } }: Flushed): void {
  if (vpid !== 0) invalidateTlb(vcpu, { operation: "INVVPID type 1", vpid });
}

/** vmx_flush_tlb_gva (vpid_sync_vcpu_addr). */
export function flushTlbGva({ vcpu, vmcs: { vpid } }: Flushed, address: number): void {
  if (vpid !== 0) invalidateTlb(vcpu, { operation: "INVVPID type 0", vpid, address });
}
