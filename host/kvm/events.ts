/**
 * Events on their way into the guest (arch/x86/kvm/x86.c, kvm_check_and_inject_events): exceptions, NMIs, interrupts,
 * and INIT and start-up IPIs.
 *
 * @module
 */

import { APICBASE_BSP, exceptionOf } from "../../abi/mod.ts";
import { VECTORED_INTERRUPT, VECTORED_NMI, VECTORED_NOTHING } from "../cpu/events.ts";
import { PENDING_INIT, PENDING_SIPI } from "../lapic/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as requests from "./requests.ts";
import * as modes from "./modes.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { TP } = tracing;
const {
  EVENT_EXCEPTION_INJECTED,
  EVENT_EXCEPTION_PENDING,
  EVENT_INTERRUPT_INJECTED,
  EVENT_NMI_INJECTED,
  REQ_EVENT,
  REQ_NMI,
} = requests;
const { MpState } = modes;

/** Counts NMIs that arrived: one waits while NMIs are blocked, two otherwise. */
export function processNmi(vcpu: Vcpu): void {
  const limit = vcpu.backend.nmiMasked() || (vcpu.events & EVENT_NMI_INJECTED) !== 0 ? 1 : 2;
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
    const bsp = (lapic.base & APICBASE_BSP) !== 0; // The guest may write that (kvm_vcpu_is_bsp).
    vcpu.setMpState(bsp ? MpState.Runnable : MpState.InitReceived);
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
  vcpu.immediateExit = false;
  // Mostly nothing waits but a new interrupt.
  const taken = (vcpu.events | vcpu.nmiPending) !== 0 && injectOthers(vcpu);
  if (vcpu.immediateExit) return;
  const { backend, lapic } = vcpu;
  if (lapic.apicvActive) return; // Hardware does it (kvm_cpu_has_injectable_intr).
  const vector = lapic.injectable();
  if (vector === -1) return;
  if (taken) {
    vcpu.immediateExit = true;
  } else if (backend.interruptAllowed()) {
    injectInterrupt(vcpu, vector);
  } else {
    backend.enableInterruptWindow();
  }
}

/** Injects the interrupt that {@linkcode Lapic.injectable} names. */
export function injectInterrupt(vcpu: Vcpu, vector: number): void {
  vcpu.lapic.acknowledge(vector);
  vcpu.events |= EVENT_INTERRUPT_INJECTED;
  vcpu.injectedInterrupt = vector;
  // It was the highest: what still waits is not above the priority that it gives the processor. No window is needed.
  writeInterrupt(vcpu, vector, false);
}

/** Exceptions, NMIs, and what an earlier entry did not deliver. Whether the entry delivers one of them. */
function injectOthers(vcpu: Vcpu): boolean {
  const { backend } = vcpu;
  let taken = redeliver(vcpu);
  if ((vcpu.events & EVENT_EXCEPTION_PENDING) !== 0) {
    inject(vcpu, false);
    vcpu.events = (vcpu.events & ~EVENT_EXCEPTION_PENDING) | EVENT_EXCEPTION_INJECTED;
    taken = true;
  }
  if (vcpu.nmiPending === 0) return taken;
  if (taken) {
    vcpu.immediateExit = true;
    return taken;
  }
  if (backend.nmiAllowed()) {
    vcpu.nmiPending--;
    vcpu.events |= EVENT_NMI_INJECTED;
    writeNmi(vcpu);
    taken = true;
  }
  if (vcpu.nmiPending > 0) backend.enableNmiWindow();
  return taken;
}

/**
 * The exit came in the middle of an event's delivery, whose gate could not be read: the next entry delivers it again
 * (__vmx_complete_interrupts, svm_complete_interrupts).
 */
export function requeueVectored(vcpu: Vcpu): void {
  const { processor } = vcpu;
  const { vectored, vectoredVector, vectoredErrorCode } = processor;
  processor.vectored = VECTORED_NOTHING;
  switch (vectored) {
    case VECTORED_INTERRUPT:
      vcpu.injectedInterrupt = vectoredVector;
      vcpu.events |= EVENT_INTERRUPT_INJECTED;
      break;
    case VECTORED_NMI:
      vcpu.events |= EVENT_NMI_INJECTED;
      break;
    default:
      vcpu.exception.vector = vectoredVector;
      vcpu.exception.errorCode = exceptionOf(vectoredVector)?.errorCode === true ? vectoredErrorCode : -1;
      vcpu.events |= EVENT_EXCEPTION_INJECTED;
  }
  vcpu.request(REQ_EVENT);
}

/** Writes what an earlier entry was to deliver and did not. Whether there was any. */
function redeliver(vcpu: Vcpu): boolean {
  const { events } = vcpu;
  if ((events & EVENT_EXCEPTION_INJECTED) !== 0) {
    inject(vcpu, true);
    return true;
  }
  if ((events & EVENT_EXCEPTION_PENDING) !== 0) return false;
  if ((events & EVENT_NMI_INJECTED) !== 0) {
    writeNmi(vcpu);
    return true;
  }
  if ((events & EVENT_INTERRUPT_INJECTED) === 0) return false;
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
  vcpu.time += vcpu.cost.inject;
  vcpu.stats.irq_injections++;
  if (vcpu.hit(TP.kvm_inj_virq)) vcpu.record(TP.kvm_inj_virq, vector, reinjected ? 1 : 0);
  vcpu.backend.injectInterrupt(vector, reinjected);
}

/** Asks for an exit when the guest lowers its task priority below what is requested (update_cr8_intercept). */
export function updateCr8Intercept(vcpu: Vcpu): void {
  const { lapic } = vcpu;
  if (lapic.apicvActive) return;
  if (lapic.irrRegisters === 0) vcpu.backend.updateCr8Intercept(0, -1);
  else vcpu.backend.updateCr8Intercept(lapic.cr8, lapic.highestIrr() >>> 4);
}

/** Whether something waits that would end a halt (kvm_vcpu_has_events). */
export function hasEvents(vcpu: Vcpu): boolean {
  const { lapic, backend } = vcpu;
  if (lapic.pendingEvents !== 0) return true;
  if ((vcpu.events & EVENT_EXCEPTION_PENDING) !== 0) return true;
  if ((vcpu.requests & REQ_NMI) !== 0 || (vcpu.nmiPending > 0 && backend.nmiAllowed())) return true;
  return backend.interruptAllowed() && lapic.injectable() !== -1;
}
