/**
 * Faults on the host's side: a guest's access to memory that is not there, or that has to be brought in. Then the guest is
 * told where it wants to be, and goes on with something else; else its vCPU waits (vcpu_dat_fault_handler and
 * kvm_arch_setup_async_pf in arch/s390/kvm).
 *
 * @module
 */

import { highOf, KVM_S390_INTERRUPTS, lowOf, PGM_ADDRESSING, S390_SYS_CR0 } from "../../abi/mod.ts";
import { deliverable } from "./interrupts.ts";
import type { StorageFault } from "./storage.ts";
import { S390_TP } from "./tracepoints.ts";
import type { S390Vcpu } from "./vcpu.ts";

/** The most pages that are on their way for one vCPU (ASYNC_PF_PER_VCPU). */
export const ASYNC_PF_PER_VCPU = 64;

/** Handles a fault. The instruction has done nothing: the PSW is at it, and it is executed again. */
export function handleFault(vcpu: S390Vcpu, fault: StorageFault): void {
  if (fault.kind === "addressing") {
    // Addressing exceptions leave the PSW behind the instruction (vcpu_post_run_addressing_exception).
    const length = vcpu.fetchLength();
    vcpu.trace(S390_TP.kvm_s390_sie_fault, vcpu.context.pc);
    vcpu.context.pc += length;
    vcpu.injectProgram(PGM_ADDRESSING, length);
    return;
  }
  vcpu.trace(S390_TP.kvm_s390_major_guest_pfault, vcpu.context.pc);
  vcpu.charge(vcpu.vm.cost.tdpFault);
  const token = vcpu.asyncPages.size < ASYNC_PF_PER_VCPU ? pfaultToken(vcpu) : undefined;
  if (token === undefined) waitFor(vcpu, fault.page);
  else tell(vcpu, fault.page, token);
}

function pfaultToken(vcpu: S390Vcpu): bigint | undefined {
  return vcpu.pfault.tokenFor({
    pswMask: vcpu.pswMask,
    cr0: vcpu.context.system(S390_SYS_CR0),
    interruptPending: deliverable(vcpu),
    enabled: vcpu.vm.pfaultEnabled,
  }, vcpu);
}

/**
 * The guest is told that the page is missing, and will be told when it has come, whatever it has cancelled meanwhile; only a
 * reset ends that.
 */
function tell(vcpu: S390Vcpu, page: number, token: bigint): void {
  const { vm } = vcpu;
  const told = {};
  vcpu.asyncPages.add(told);
  vm.residency!.bringIn(page, () => {
    if (!vcpu.asyncPages.delete(told)) return;
    vcpu.trace(S390_TP.kvm_s390_pfault_done, lowOf(token), highOf(token));
    vm.injectPfaultDone(token);
  });
  vcpu.trace(S390_TP.kvm_s390_pfault_init, lowOf(token), highOf(token));
  vcpu.interrupts.pfaultInit = token;
  const { KVM_S390_INT_PFAULT_INIT } = KVM_S390_INTERRUPTS;
  vcpu.traceInterruption(S390_TP.kvm_s390_inject_vcpu, KVM_S390_INT_PFAULT_INIT, 0, token);
}

/** The vCPU sleeps in the host until the page has come. */
function waitFor(vcpu: S390Vcpu, page: number): void {
  if (vcpu.vm.behaviour.kvm) vcpu.stats.pfault_sync++;
  vcpu.block();
  vcpu.vm.residency!.bringIn(page, (ok) => {
    if (ok) vcpu.wake();
    else vcpu.vm.panic(`KVM_RUN failed with EFAULT: the host cannot read the page at 0x${page.toString(16)}`);
  });
}
