/**
 * Posted interrupts: KVM posts to a vCPU's descriptor and tells its CPU (arch/x86/kvm/vmx/common.h), KVM moves what was
 * posted to the IRR before the guest is entered (vmx_sync_pir_to_irr), and in guest mode hardware does so itself (SDM 3C
 * 30.6).
 *
 * No update is lost: senders set PIR before ON, receivers clear ON before they harvest PIR, and only a clear ON makes a
 * sender notify.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { Steps } from "../core/mod.ts";
import type { Processor } from "../cpu/mod.ts";
import * as modes from "../kvm/modes.ts";
import * as requests from "../kvm/requests.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import type { Lapic } from "../lapic/mod.ts";
import * as vectors from "../lapic/vectors.ts";
import type { HostBlock } from "../memory/mod.ts";
import * as tracing from "../trace/mod.ts";
import type { VmxHardware } from "./hardware.ts";
import * as descriptors from "./posted_descriptor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_IRR } = abi;
const { VcpuMode } = modes;
const { REQ_EVENT } = requests;
const { highestVector } = vectors;
const { TP } = tracing;
const { PI_DESCRIPTOR_BYTES, PiDescriptor, PIR_QUADWORDS } = descriptors;
type PiDescriptor = descriptors.PiDescriptor;

/** IRR registers: of 32 vectors each. */
const REGISTERS = 8;

/** What KVM knows of a vCPU's descriptor. */
export class PostedInterrupts {
  /** The descriptor. */
  declare readonly descriptor: PiDescriptor;
  readonly #vcpu: Vcpu;
  readonly #block: HostBlock;
  readonly #harvest = new Uint32Array(REGISTERS);

  /** A descriptor for a vCPU that is being created. */
  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
    this.#block = vcpu.machine.hostMemory.allocate(PI_DESCRIPTOR_BYTES, PI_DESCRIPTOR_BYTES);
    this.descriptor = new PiDescriptor(this.#block.words);
    this.descriptor.init();
  }

  /** Where hardware finds the descriptor. */
  get address(): number {
    return this.#block.address;
  }

  /** RESET, INIT, and a new APIC state: what was posted is gone (vmx_apicv_pre_state_restore). */
  discard(): void {
    this.descriptor.clearOn();
    for (let quadword = 0; quadword < PIR_QUADWORDS; quadword++) {
      this.descriptor.takePir(quadword, this.#harvest);
    }
  }

  /** Posts an interrupt from software. Software does not look at SN (vmx_deliver_interrupt). */
  *post(deliveryMode: number, vector: number, levelTriggered: boolean): Steps {
    const { vm, vcpuId } = this.#vcpu;
    vm.chargeRunning(vm.cost.post);
    yield* this.#postAndTrigger(vector);
    vm.traceRunning(TP.kvm_apicv_accept_irq, vcpuId, deliveryMode, levelTriggered ? 1 : 0, vector);
  }

  /** The same in one piece, as {@linkcode processAtOnce}. */
  postAtOnce(deliveryMode: number, vector: number, levelTriggered: boolean): void {
    const { vm, vcpuId } = this.#vcpu;
    const { descriptor } = this;
    vm.chargeRunning(vm.cost.post);
    if (!descriptor.testAndSetPir(vector) && !descriptor.testAndSetOn()) this.#triggerAtOnce();
    vm.traceRunning(TP.kvm_apicv_accept_irq, vcpuId, deliveryMode, levelTriggered ? 1 : 0, vector);
  }

  /** Whoever posted before has seen to it that the target looks: then nothing more is to be done. */
  *#postAndTrigger(vector: number): Steps {
    const { descriptor } = this;
    if (descriptor.testAndSetPir(vector)) return;
    yield;
    if (descriptor.testAndSetOn()) return;
    yield;
    yield* this.#trigger();
  }

  /** Notifies the vCPU's CPU in guest mode, and wakes the vCPU elsewhere (kvm_vcpu_trigger_posted_interrupt). */
  *#trigger(): Steps {
    const vcpu = this.#vcpu;
    if (vcpu.mode !== VcpuMode.InGuest) {
      if (vcpu.blocked) vcpu.wakeUp();
      return;
    }
    if (vcpu.engine.running === vcpu) return; // Between exit and entry: it synchronizes before the latter.
    yield;
    this.#notify();
  }

  #triggerAtOnce(): void {
    const vcpu = this.#vcpu;
    if (vcpu.mode !== VcpuMode.InGuest) {
      if (vcpu.blocked) vcpu.wakeUp();
    } else if (vcpu.engine.running !== vcpu) {
      this.#notify();
    }
  }

  #notify(): void {
    const vcpu = this.#vcpu;
    const running = vcpu.engine.running!;
    // It may have left its CPU meanwhile: then it looks before it sleeps or enters, and the notification means nothing.
    const pcpu = vcpu.pcpu ?? vcpu.lastPcpu!;
    running.time += vcpu.cost.kick;
    pcpu.notify(running.time + vcpu.cost.ipiLatency);
  }

  /**
   * Moves what was posted to the IRR. Answers with the highest vector that is requested, -1 for none: hardware is to
   * deliver that next, or, where APICv is not in use, KVM.
   */
  *synchronize(): Steps<number> {
    const { vm, lapic, cost } = this.#vcpu;
    if (!this.descriptor.on) return this.settle(lapic.highestIrr(), false);
    yield;
    this.descriptor.clearOn();
    vm.chargeRunning(cost.syncPosted);
    yield;
    if (yield* this.#harvestPir()) return this.#merge();
    const forgets = vm.quirk("posted-sync-forgets-irr");
    return this.settle(forgets ? -1 : highestVector(lapic.page, APIC_IRR), false);
  }

  /** Hands the highest requested vector, -1 for none, to whoever delivers it; `fresh` where it has not been there before. */
  settle(highest: number, fresh: boolean): number {
    const { lapic, backend } = this.#vcpu;
    if (lapic.apicvActive) (backend.hardware as VmxHardware).virtualInterrupts.setRvi(Math.max(highest, 0));
    else if (fresh) this.#vcpu.request(REQ_EVENT);
    return highest;
  }

  /** pi_harvest_pir: quadwords that were seen empty are left alone, whoever fills one will set ON. Whether one was not. */
  *#harvestPir(): Steps<boolean> {
    const { descriptor } = this;
    this.#harvest.fill(0);
    const filled: number[] = [];
    for (let quadword = 0; quadword < PIR_QUADWORDS; quadword++) {
      if (!descriptor.pirIsEmpty(quadword)) filled.push(quadword);
      yield;
    }
    for (const quadword of filled) {
      descriptor.takePir(quadword, this.#harvest);
      yield;
    }
    return filled.length > 0;
  }

  /** __kvm_apic_update_irr. The IRR is its processor's own, and this is its thread. */
  #merge(): number {
    const { lapic } = this.#vcpu;
    let fresh = -1;
    for (let register = 0; register < REGISTERS; register++) {
      fresh = Math.max(fresh, highestIn(register, lapic.requestAll(register, this.#harvest[register])));
    }
    const highest = highestVector(lapic.page, APIC_IRR);
    return this.settle(highest, fresh !== -1 && fresh === highest);
  }
}

/** The highest of the vectors whose bits are set in one register, -1 for none. */
function highestIn(register: number, bits: number): number {
  return bits === 0 ? -1 : 32 * register + 31 - Math.clz32(bits);
}

/**
 * Posted-interrupt processing: a notification has arrived in guest mode, and was acknowledged. Uninterruptible, and
 * indifferent to RFLAGS.IF. It harvests whether or not ON was set.
 */
export function* processPostedInterrupts(p: Processor, hardware: VmxHardware): Steps {
  const { vcpu } = hardware;
  const descriptor = hardware.descriptor();
  p.charge(p.cost.postedProcessing);
  descriptor.clearOn();
  let highest = -1;
  for (let quadword = 0; quadword < PIR_QUADWORDS; quadword++) {
    yield;
    highest = Math.max(highest, takeOver(vcpu.lapic, descriptor, quadword));
  }
  hardware.virtualInterrupts.posted(highest);
}

/** The same in one piece: timed runs, in which nobody comes between two accesses, need no generator. */
export function processAtOnce(p: Processor, hardware: VmxHardware): void {
  const { vcpu } = hardware;
  const descriptor = hardware.descriptor();
  p.charge(p.cost.postedProcessing);
  descriptor.clearOn();
  let highest = -1;
  for (let register = 0; register < REGISTERS; register++) {
    const posted = descriptor.takeWord(register);
    if (posted === 0) continue;
    vcpu.lapic.requestAll(register, posted);
    highest = highestIn(register, posted);
  }
  hardware.virtualInterrupts.posted(highest);
}

/**
 * That, and the delivery of the one vector that was posted, which mostly is the next step: where nobody comes between
 * and nothing else is requested, nobody sees the request. Whether that is so; elsewhere nothing has happened.
 */
export function deliverPosted(p: Processor, hardware: VmxHardware): boolean {
  const { virtualInterrupts } = hardware;
  const processed = p.thread.time + p.cost.postedProcessing;
  if (processed >= p.engine.horizon || processed >= p.asyncAt) return false;
  const descriptor = hardware.descriptor();
  const vector = descriptor.onlyPosted();
  if (!virtualInterrupts.wouldDeliver(p, vector)) return false;
  descriptor.clearOn();
  descriptor.takeWord(vector >>> 5);
  p.thread.time = processed;
  p.engine.countStep();
  virtualInterrupts.serve(p, vector);
  return true;
}

const taken = new Uint32Array(REGISTERS);

/** Moves one quadword to the VIRR. Answers with its highest vector, -1 for none. */
function takeOver(lapic: Lapic, descriptor: PiDescriptor, quadword: number): number {
  const low = 2 * quadword;
  descriptor.takePir(quadword, taken);
  lapic.requestAll(low, taken[low]);
  lapic.requestAll(low + 1, taken[low + 1]);
  return Math.max(highestIn(low, taken[low]), highestIn(low + 1, taken[low + 1]));
}
