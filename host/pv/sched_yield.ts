/**
 * KVM_HC_SCHED_YIELD, and the directed yield that KVM_HC_KICK_CPU ends with: the vCPU gives its physical CPU to one that
 * was woken or preempted and waits for a CPU.
 *
 * @module
 */

import { A0, argumentHigh, argumentLow } from "../kvm/hypercall_arguments.ts";
import type { HypercallHandler } from "../kvm/hypercall.ts";
import type { Vcpu } from "../kvm/vcpu.ts";

/** KVM_HC_SCHED_YIELD. It answers 0 whatever came of it. */
export const SCHED_YIELD: HypercallHandler = {
  name: "KVM_HC_SCHED_YIELD",
  call(vcpu) {
    schedYield(vcpu, argumentLow(vcpu, A0), argumentHigh(vcpu, A0));
    return 0;
  },
};

/** Yields to the vCPU with an APIC ID, if there is one and it waits (kvm_sched_yield). */
export function schedYield(vcpu: Vcpu, id: number, idHigh: number): void {
  const { vm, stats } = vcpu;
  stats.directed_yield_attempted++;
  if (vm.scheduler.single()) return;
  const map = vm.apicMap;
  if (map === undefined || idHigh !== 0 || id > map.maxApicId) return;
  const target = map.phys[id]?.vcpu;
  if (target === undefined || !target.ready || target === vcpu) return;
  if (vm.scheduler.yieldTo(target)) {
    vcpu.pcpu!.reschedule(true);
    stats.directed_yield_successful++;
  }
}
