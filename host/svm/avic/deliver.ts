/**
 * Software hands an interrupt to a vCPU whose hardware takes it from the backing page (svm_deliver_interrupt,
 * svm_complete_interrupt_delivery): the request first, then whoever can be told that it is there.
 *
 * @module
 */

import type { Steps } from "../../core/mod.ts";
import * as modes from "../../kvm/modes.ts";
import * as requests from "../../kvm/requests.ts";
import type { Vcpu } from "../../kvm/vcpu.ts";
import type { Lapic } from "../../lapic/mod.ts";
import * as tracing from "../../trace/mod.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { VcpuMode } = modes;
const { REQ_EVENT } = requests;
const { TP } = tracing;

/** What is delivered, as the parts of an ICR say it. */
export interface Delivery {
  /** The delivery mode, in place. */
  readonly deliveryMode: number;
  /** The vector. */
  readonly vector: number;
  /** Level-triggered. */
  readonly levelTriggered: boolean;
}

/** Requests a vector, and completes its delivery. */
export function* deliverInterrupt(target: Lapic, what: Delivery): Steps {
  const { vm } = target.vcpu;
  vm.chargeRunning(vm.cost.post);
  if (vm.quirk("avic-inhibit-race")) return yield* deliverByOldState(target, what);
  target.setIrr(what.vector);
  yield;
  yield* completeDelivery(target, what);
}

/**
 * Tells the target of a request that is in its page. Where it is comes before whether it uses AVIC: a vCPU that was seen
 * in guest mode has given AVIC up before it got there, if it has, and that is seen.
 */
export function* completeDelivery(target: Lapic, what: Delivery): Steps {
  const { vcpu } = target;
  const inGuest = vcpu.mode === VcpuMode.InGuest;
  yield;
  if (target.apicvActive) {
    traceAccepted(vcpu, what);
    yield* tell(vcpu, inGuest);
  } else {
    vcpu.request(REQ_EVENT);
    vcpu.kick();
  }
}

/** With the quirk avic-inhibit-race: whether the target uses AVIC is read first, and not again. */
function* deliverByOldState(target: Lapic, what: Delivery): Steps {
  const { vcpu } = target;
  const active = target.apicvActive;
  yield;
  target.setIrr(what.vector);
  yield;
  if (active) {
    traceAccepted(vcpu, what);
    yield* tell(vcpu, vcpu.mode === VcpuMode.InGuest);
  } else {
    vcpu.request(REQ_EVENT);
    vcpu.kick();
  }
}

/** The same in one piece: timed runs, in which nobody comes between two accesses, need no generator. */
export function deliverAtOnce(
  target: Lapic,
  deliveryMode: number,
  vector: number,
  levelTriggered: boolean,
): void {
  const { vcpu } = target;
  const { vm } = vcpu;
  vm.chargeRunning(vm.cost.post);
  target.setIrr(vector);
  if (!target.apicvActive) {
    vcpu.request(REQ_EVENT);
    vcpu.kick();
    return;
  }
  vm.traceRunning(TP.kvm_apicv_accept_irq, vcpu.vcpuId, deliveryMode, levelTriggered ? 1 : 0, vector);
  if (vcpu.mode === VcpuMode.InGuest) ringDoorbell(vcpu);
  else if (vcpu.blocked) vcpu.wakeUp();
}

function traceAccepted({ vm, vcpuId }: Vcpu, { deliveryMode, levelTriggered, vector }: Delivery): void {
  vm.traceRunning(TP.kvm_apicv_accept_irq, vcpuId, deliveryMode, levelTriggered ? 1 : 0, vector);
}

function* tell(vcpu: Vcpu, inGuest: boolean): Steps {
  yield;
  if (inGuest) ringDoorbell(vcpu);
  else if (vcpu.blocked) vcpu.wakeUp();
}

/** avic_ring_doorbell. To its own CPU a vCPU's thread need not ring: VMRUN looks. */
function ringDoorbell(vcpu: Vcpu): void {
  const { vm, engine } = vcpu;
  const running = engine.running!;
  if (running === vcpu) return;
  // It may have left its CPU by now: then the doorbell means nothing, and VMRUN looks.
  const pcpu = vcpu.pcpu ?? vcpu.lastPcpu!;
  vm.chargeRunning(vm.cost.doorbell);
  pcpu.notify(running.time + vm.cost.ipiLatency);
  vm.traceRunning(TP.kvm_avic_doorbell, vcpu.vcpuId, pcpu.id);
}
