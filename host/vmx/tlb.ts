/**
 * What VMX flushes, and how: INVEPT and INVVPID (arch/x86/kvm/vmx/vmx.c, vmx_flush_tlb_all and its like; vmx_ops.h).
 *
 * Where a vCPU has no VPID, entries and exits flush its linear mappings by themselves, and nothing is left to do for
 * them; guest-physical mappings have an EPT root for a tag, and stay until INVEPT.
 *
 * @module
 */

import {
  VMX_EPT_EXTENT_CONTEXT_BIT,
  VMX_VPID_EXTENT_GLOBAL_CONTEXT_BIT,
  VMX_VPID_EXTENT_INDIVIDUAL_ADDR_BIT,
  VMX_VPID_EXTENT_SINGLE_CONTEXT_BIT,
} from "../../abi/mod.ts";
import { invalidateTlb } from "../kvm/tdp/invalidate.ts";
import { eptPointer } from "./exec_controls.ts";
import type { Vmx } from "./vmx.ts";

/** vmx_load_mmu_pgd (construct_eptp). */
export function loadMmuPgd({ vcpu, vmcs, setup }: Vmx, root: number): void {
  if (!setup.ept.on) return;
  vmcs.eptPointer = root + eptPointer(setup);
  vmcs.unchecked = 1;
  vcpu.processor.mmu?.moved();
}

/** vmx_flush_tlb_all: with EPT INVEPT, whether there are VPIDs or not. */
export function flushTlbAll({ vcpu, vmcs, setup }: Vmx): void {
  if (setup.ept.on) invalidateTlb(vcpu, { operation: "INVEPT type 2" });
  else if ((setup.capabilities.vpid & VMX_VPID_EXTENT_GLOBAL_CONTEXT_BIT) !== 0) {
    if (setup.vpid.on) invalidateTlb(vcpu, { operation: "INVVPID type 2" });
  } else if (vmcs.vpid !== 0) invalidateTlb(vcpu, { operation: "INVVPID type 1", vpid: vmcs.vpid });
}

/** vmx_flush_tlb_current: of the root that is loaded. */
export function flushTlbCurrent(vmx: Vmx): void {
  const { vcpu, setup } = vmx;
  if (vcpu.root === undefined) return;
  if (!setup.ept.on) flushTlbGuest(vmx);
  else if ((setup.capabilities.ept & VMX_EPT_EXTENT_CONTEXT_BIT) === 0) {
    invalidateTlb(vcpu, { operation: "INVEPT type 2" });
  } else invalidateTlb(vcpu, { operation: "INVEPT type 1", root: vcpu.root.root.address });
}

/** vmx_flush_tlb_guest (vpid_sync_context). */
export function flushTlbGuest({ vcpu, vmcs, setup }: Vmx): void {
  if (vmcs.vpid === 0) return;
  if ((setup.capabilities.vpid & VMX_VPID_EXTENT_SINGLE_CONTEXT_BIT) !== 0) {
    invalidateTlb(vcpu, { operation: "INVVPID type 1", vpid: vmcs.vpid });
  } else invalidateTlb(vcpu, { operation: "INVVPID type 2" });
}

/** vmx_flush_tlb_gva (vpid_sync_vcpu_addr). */
export function flushTlbGva(vmx: Vmx, address: number): void {
  const { vcpu, vmcs, setup } = vmx;
  if (vmcs.vpid === 0) return;
  if ((setup.capabilities.vpid & VMX_VPID_EXTENT_INDIVIDUAL_ADDR_BIT) === 0) flushTlbGuest(vmx);
  else invalidateTlb(vcpu, { operation: "INVVPID type 0", vpid: vmcs.vpid, address });
}
