/**
 * Getting at the host's page behind a guest's (arch/x86/kvm/mmu/mmu.c, __kvm_mmu_faultin_pfn; virt/kvm/kvm_main.c,
 * hva_to_pfn). A page that is not in memory has to be read, and the vCPU's thread sleeps until it is there.
 *
 * @module
 */

import type { Steps } from "../../core/mod.ts";
import { shared } from "../shared.ts";
import type { Vcpu } from "../vcpu.ts";
import type { Vm } from "../vm.ts";
import type { TdpFault } from "./page_fault.ts";

/**
 * Whether the page is there: `false` where it could not be read (KVM_PFN_ERR_FAULT). Without I/O first; where that does not
 * do, an asynchronous page fault would let the guest go on meanwhile.
 */
export function* faultInPage(vcpu: Vcpu, fault: TdpFault): Steps<boolean> {
  const { vm } = vcpu;
  if (!isAway(vm, fault.address)) return true;
  // KVM_PFN_ERR_NEEDS_IO. Here asynchronous page faults belong: kvm_can_do_async_pf, kvm_find_async_pf_gfn and
  // kvm_arch_setup_async_pf. None of them is modelled, so that the vCPU itself waits, as where they are not possible.
  const read = yield* waitForPage(vcpu, fault.address);
  // Where the slot is gone the fault is stale, whatever became of the page.
  return read || !vm.memory.slots.includes(fault.slot);
}

/** Whether the page of an address that a slot backs has to be read first. */
export function isAway({ residency }: Vm, address: number): boolean {
  return residency !== undefined && residency.away > 0 && residency.firstAway(address, 1) >= 0;
}

/**
 * Brings a page in and sleeps until it is there, off the CPU, as a thread does in the host's own page fault. Kicks and
 * requests wait meanwhile. Whether it could be read.
 */
function* waitForPage(vcpu: Vcpu, address: number): Steps<boolean> {
  const { scheduler } = vcpu.vm;
  const residency = vcpu.vm.residency!;
  for (;;) {
    let arrived: boolean | undefined;
    let asleep = false;
    const state = residency.bringIn(address, (ok) => {
      arrived = ok;
      if (!asleep) return;
      asleep = false;
      vcpu.ready = true;
      scheduler.ready(vcpu, vcpu.engine.running!.time + vcpu.cost.wake);
    });
    if (state === "present") return true;
    vcpu.stats.pf_waits++;
    vcpu.charge(vcpu.cost.block);
    yield* shared(vcpu, (backend) => backend.put());
    if (arrived === undefined) {
      asleep = true;
      scheduler.release(vcpu);
      yield;
    }
    yield* shared(vcpu, (backend) => backend.load());
    if (arrived !== true) return false;
    // Somebody may have evicted it again before this thread had a CPU.
  }
}
