/**
 * KVM_HC_KICK_CPU: wakes a halted vCPU, for paravirtual spinlocks (arch/x86/kvm/x86.c, kvm_pv_kick_cpu_op).
 *
 * @module
 */

import { APIC_DM_REMRD } from "../../abi/mod.ts";
import { A1, argumentHigh, argumentLow } from "../kvm/hypercall_arguments.ts";
import type { HypercallHandler } from "../kvm/hypercall.ts";
import { deliver } from "../lapic/mod.ts";
import { schedYield } from "./sched_yield.ts";

/**
 * KVM_HC_KICK_CPU. The kick travels as an interrupt message of its own delivery mode, without a source: so an ID of
 * 0xff means everybody under KVM's broadcast quirk. The flags are ignored, and an ID that nobody has is no error.
 */
export const KICK_CPU: HypercallHandler = {
  name: "KVM_HC_KICK_CPU",
  call(vcpu) {
    const { vm } = vcpu;
    const message = vm.kick;
    message.deliveryMode = APIC_DM_REMRD;
    message.destination = argumentLow(vcpu, A1); // Truncated to 32 bits; the yield below looks at all 64.
    deliver(vm, undefined, message);
    // The yield came with KVM_HC_SCHED_YIELD.
    if (vm.knows("PV_SCHED_YIELD")) schedYield(vcpu, argumentLow(vcpu, A1), argumentHigh(vcpu, A1));
    return 0;
  },
};
