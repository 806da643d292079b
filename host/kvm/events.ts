/**
 * Events on their way into the guest (arch/x86/kvm/x86.c, kvm_check_and_inject_events): exceptions, NMIs, interrupts,
 * and INIT and start-up IPIs.
 *
 * @module
 */

import { PENDING_INIT, PENDING_SIPI } from "../lapic/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as requests from "./requests.ts";
import * as modes from "./modes.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { TP } = tracing;
const { REQ_EVENT, REQ_NMI } = requests;
const { MpState } = modes;

/** Counts NMIs that arrived: one waits while NMIs are blocked, two otherwise. */
export function processNmi(vcpu: Vcpu): void {
  const limit = vcpu.backend.nmiMasked() || vcpu.nmiInjected ? 1 : 2;
  vcpu.nmiPending = Math.min(vcpu.nmiPending + vcpu.nmiQueued, limit);
  vcpu.nmiQueued = 0;
  if (vcpu.nmiPending > 0) vcpu.request(REQ_EVENT);
}

/**
 * INIT and start-up IPIs (kvm_apic_accept_events). INIT resets the vCPU; a start-up IPI starts one that waits for it
 * and is dropped by any other.
 */
export function acceptApicEvents(vcpu: Vcpu): void {
  const { lapic } = vcpu;
  if (lapic.pendingEvents === 0) return;
  if ((lapic.pendingEvents & PENDING_INIT) !== 0) {
    lapic.pendingEvents &= ~PENDING_INIT;
    vcpu.reset(true);
    vcpu.setMpState(vcpu.bootstrap ? MpState.Runnable : MpState.InitReceived);
  }
  if ((lapic.pendingEvents & PENDING_SIPI) !== 0) {
    lapic.pendingEvents &= ~PENDING_SIPI;
    if (vcpu.mpState === MpState.InitReceived) {
      startAt(vcpu, lapic.sipiVector);
      vcpu.setMpState(MpState.Runnable);
    }
  }
}

/** A start-up IPI: real mode, CS:IP = vector << 8 : 0 (SDM 3A 9.4.4). */
function startAt(vcpu: Vcpu, vector: number): void {
  const { processor } = vcpu;
  processor.setCodeSegment(vector << 8);
  processor.setRip(vector << 12);
}

/**
 * Puts what is pending into the entry, most urgent first. What must wait for the guest gets a window; what must wait
 * because the entry already delivers something else gets an immediate exit.
 */
export function injectEvents(vcpu: Vcpu): void {
  const { backend, exception, lapic } = vcpu;
  vcpu.immediateExit = false;
  let canInject = !redeliver(vcpu);
  if (exception.pending) {
    inject(vcpu, false);
    exception.pending = false;
    exception.injected = true;
    canInject = false;
  }
  if (vcpu.nmiPending > 0) {
    if (!canInject) {
      vcpu.immediateExit = true;
      return;
    }
    if (backend.nmiAllowed()) {
      vcpu.nmiPending--;
      vcpu.nmiInjected = true;
      writeNmi(vcpu);
      canInject = false;
    }
    if (vcpu.nmiPending > 0) backend.enableNmiWindow();
  }
  let vector = lapic.injectable();
  if (vector === -1) return;
  if (!canInject) {
    vcpu.immediateExit = true;
    return;
  }
  if (backend.interruptAllowed()) {
    lapic.acknowledge(vector);
    vcpu.injectedInterrupt = vector;
    writeInterrupt(vcpu, vector, false);
    vector = lapic.injectable();
  }
  if (vector !== -1) backend.enableInterruptWindow();
}

/** Writes what an earlier entry was to deliver and did not. Whether there was any. */
function redeliver(vcpu: Vcpu): boolean {
  if (vcpu.exception.injected) {
    inject(vcpu, true);
    return true;
  }
  if (vcpu.exception.pending) return false;
  if (vcpu.nmiInjected) {
    writeNmi(vcpu);
    return true;
  }
  if (vcpu.injectedInterrupt === -1) return false;
  writeInterrupt(vcpu, vcpu.injectedInterrupt, true);
  return true;
}

function inject(vcpu: Vcpu, reinjected: boolean): void {
  const { vector, errorCode } = vcpu.exception;
  vcpu.charge(vcpu.cost.inject);
  vcpu.trace(TP.kvm_inj_exception, vector, errorCode < 0 ? 0 : errorCode, reinjected ? 1 : 0);
  vcpu.backend.injectException(vector, errorCode);
}

function writeNmi(vcpu: Vcpu): void {
  vcpu.charge(vcpu.cost.inject);
  vcpu.stats.nmi_injections++;
  vcpu.backend.injectNmi();
}

function writeInterrupt(vcpu: Vcpu, vector: number, reinjected: boolean): void {
  vcpu.charge(vcpu.cost.inject);
  vcpu.stats.irq_injections++;
  vcpu.trace(TP.kvm_inj_virq, vector, reinjected ? 1 : 0);
  vcpu.backend.injectInterrupt(vector, reinjected);
}

/** Asks for an exit when the guest lowers its task priority below what is requested (update_cr8_intercept). */
export function updateCr8Intercept(vcpu: Vcpu): void {
  const { lapic } = vcpu;
  const vector = lapic.highestIrr();
  vcpu.backend.updateCr8Intercept(lapic.cr8, vector === -1 ? -1 : vector >>> 4);
}

/** Whether something waits that would end a halt (kvm_vcpu_has_events). */
export function hasEvents(vcpu: Vcpu): boolean {
  const { lapic, backend } = vcpu;
  if (lapic.pendingEvents !== 0) return true;
  if (vcpu.exception.pending) return true;
  if ((vcpu.requests & REQ_NMI) !== 0 || (vcpu.nmiPending > 0 && backend.nmiAllowed())) return true;
  return backend.interruptAllowed() && lapic.injectable() !== -1;
}
