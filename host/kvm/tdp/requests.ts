/**
 * Requests that concern translations, as KVM makes and serves them: flushes of a vCPU's own, and those that it owes all
 * vCPUs of a virtual machine (arch/x86/kvm/x86.c; virt/kvm/kvm_main.c, kvm_flush_remote_tlbs).
 *
 * @module
 */

import type { Steps } from "../../core/mod.ts";
import * as modes from "../modes.ts";
import * as requests from "../requests.ts";
import type { Vcpu } from "../vcpu.ts";
import type { Vm } from "../vm.ts";
import { spinWhile } from "./locks.ts";
import { unloadObsoleteRoot } from "./root.ts";

const { VcpuMode } = modes;
const { REQ_MMU_FREE_OBSOLETE_ROOTS, REQ_TLB_FLUSH, REQ_TLB_FLUSH_CURRENT, REQ_TLB_FLUSH_GUEST } = requests;

/** Serves what vcpu_enter_guest serves of this between KVM_REQ_VM_DEAD and KVM_REQ_TRIPLE_FAULT, in its order. */
export function serveMmuRequests(vcpu: Vcpu): void {
  if (vcpu.take(REQ_MMU_FREE_OBSOLETE_ROOTS)) unloadObsoleteRoot(vcpu);
  if (vcpu.take(REQ_TLB_FLUSH)) {
    vcpu.stats.tlb_flush++;
    vcpu.backend.flushTlbAll();
    vcpu.requests &= ~REQ_TLB_FLUSH_CURRENT; // All is more than that (kvm_vcpu_flush_tlb_all).
  }
  if (vcpu.take(REQ_TLB_FLUSH_CURRENT)) {
    vcpu.stats.tlb_flush++;
    vcpu.backend.flushTlbCurrent();
  }
  if (vcpu.take(REQ_TLB_FLUSH_GUEST)) {
    vcpu.stats.tlb_flush++;
    vcpu.backend.flushTlbGuest();
  }
}

/**
 * kvm_make_all_cpus_request with KVM_REQUEST_WAIT and KVM_REQUEST_NO_WAKEUP: asks every vCPU, gets those in guest mode out
 * of it, and spins until they are. Whether anybody was. What follows finds no vCPU that runs on what was before.
 */
export function* requestAllAndWait(vm: Vm, request: number): Steps<boolean> {
  const awaited: Vcpu[] = [];
  for (const vcpu of vm.vcpus) {
    vcpu.request(request);
    if (vcpu.mode === VcpuMode.Outside) continue;
    vcpu.kickOut();
    awaited.push(vcpu);
  }
  for (const vcpu of awaited) {
    // It may have gone back there, with its requests served.
    yield* spinWhile(vm, () => vcpu.mode === VcpuMode.Exiting, `vCPU ${vcpu.vcpuId} to leave guest mode`);
  }
  return awaited.length > 0;
}

/** kvm_flush_remote_tlbs. */
export function* flushRemoteTlbs(vm: Vm): Steps {
  vm.mmu.remoteTlbFlushRequests++;
  if (yield* requestAllAndWait(vm, REQ_TLB_FLUSH)) vm.mmu.remoteTlbFlush++;
}
