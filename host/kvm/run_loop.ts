/**
 * KVM's run loop (arch/x86/kvm/x86.c, vcpu_run and vcpu_enter_guest): requests, events, entry, fast path, harvest,
 * slow path, in that order. Order is semantics here.
 *
 * A turn goes from an exit to the next entry as one step, in plain functions. What must let other threads come between
 * (blocking, giving up the CPU, rebuilding the APIC map) a turn hands to the loop's generator, of which each vCPU has
 * one for its life: there a bare `yield` ends a step.
 *
 * @module
 */

import { high } from "../../abi/mod.ts";
import { recalculateApicMap } from "../lapic/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as vendor from "./backend.ts";
import { acceptApicEvents, injectEvents, processNmi, updateCr8Intercept } from "./events.ts";
import { block } from "./halt.ts";
import * as requests from "./requests.ts";
import * as modes from "./modes.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { TP } = tracing;
const { FastPath } = vendor;
const {
  ATTENTION_APIC_MAP,
  ATTENTION_INTERLEAVE,
  ATTENTION_PV_EOI,
  REQ_EVENT,
  REQ_LOAD_EOI_EXITMAP,
  REQ_NMI,
  REQ_OUTSIDE_GUEST_MODE,
  REQ_SCAN_IOAPIC,
  REQ_TRIPLE_FAULT,
  REQ_UNBLOCK,
  REQ_VM_DEAD,
} = requests;
const { MpState, Phase, Turn, VcpuMode } = modes;
type Turn = modes.Turn;

/** Runs a vCPU until its virtual machine is dead. While it is in guest mode its thread takes the turns itself. */
export function* runLoop(vcpu: Vcpu): Generator<void, void, void> {
  vcpu.trace(TP.kvm_fpu, 1);
  let came = takeTurn(vcpu);
  for (;;) {
    switch (came) {
      case Turn.Guest:
        yield;
        came = vcpu.turn;
        continue;
      case Turn.Block:
        yield* block(vcpu);
        break;
      case Turn.ApicMap:
        yield* recalculateApicMap(vcpu.vm);
        break;
      case Turn.Preempted:
      case Turn.Interleave:
        yield;
        break;
      case Turn.Dead:
        return;
    }
    came = takeTurn(vcpu);
  }
}

/** From wherever the loop is to guest mode, or to where a plain function cannot go on. */
export function takeTurn(vcpu: Vcpu): Turn {
  if (vcpu.phase === Phase.Exited) {
    if (reentered(vcpu)) return Turn.Guest;
    handleExit(vcpu);
    // Mostly nothing else is to be looked at: straight back, on the way that the phases below take.
    if (vcpu.attention === 0 && vcpu.mpState === MpState.Runnable) {
      vcpu.requests &= ~REQ_UNBLOCK;
      if (vcpu.requests !== 0 && !prepare(vcpu)) {
        if (vcpu.vm.dead) return Turn.Dead;
      } else if (enterGuest(vcpu)) {
        return Turn.Guest;
      }
    }
    vcpu.phase = Phase.Done;
  }
  for (;;) {
    if (vcpu.phase === Phase.Done) {
      if ((vcpu.attention & ATTENTION_APIC_MAP) !== 0) {
        vcpu.attention &= ~ATTENTION_APIC_MAP;
        return Turn.ApicMap;
      }
      vcpu.requests &= ~REQ_UNBLOCK;
      vcpu.phase = Phase.Top;
      if (vcpu.attention !== 0 && betweenTurns(vcpu)) return Turn.Preempted;
    }
    if (vcpu.phase === Phase.Top) {
      if (vcpu.mpState !== MpState.Runnable) {
        vcpu.phase = Phase.Done;
        return Turn.Block;
      }
      vcpu.phase = Phase.Prepared;
      if (vcpu.requests !== 0 && !prepare(vcpu)) {
        if (vcpu.vm.dead) return Turn.Dead;
        vcpu.phase = Phase.Done;
        continue;
      }
      if ((vcpu.attention & ATTENTION_INTERLEAVE) !== 0) return Turn.Interleave;
    }
    vcpu.phase = enterGuest(vcpu) ? Phase.Exited : Phase.Done;
    if (vcpu.phase === Phase.Exited) return Turn.Guest;
  }
}

/** What may have come up during a turn: an expired timer, somebody who waits for the CPU. Whether that got the CPU. */
function betweenTurns(vcpu: Vcpu): boolean {
  const { timer } = vcpu.lapic;
  if (timer.hasPending()) timer.injectPending();
  return vcpu.pcpu!.needResched && vcpu.vm.scheduler.preempt(vcpu);
}

/** From the last check to guest mode. false where something came up: what was to be injected is taken back. */
function enterGuest(vcpu: Vcpu): boolean {
  if (vcpu.processor.asyncDue) serveInterrupts(vcpu); // Up to here the host takes interrupts by itself.
  vcpu.mode = VcpuMode.InGuest;
  if (vcpu.exitRequested()) {
    vcpu.mode = VcpuMode.Outside;
    vcpu.backend.cancelInjection();
    if ((vcpu.attention & ATTENTION_PV_EOI) !== 0) vcpu.pvEoi.harvest();
    return false;
  }
  if (vcpu.immediateExit) {
    vcpu.request(REQ_EVENT);
    vcpu.backend.requestImmediateExit();
  }
  enter(vcpu, vcpu.cost.vmentry);
  return true;
}

function enter(vcpu: Vcpu, cost: number): void {
  if (vcpu.hit(TP.kvm_entry)) recordEntry(vcpu);
  vcpu.backend.prepareEntry();
  vcpu.charge(cost);
  vcpu.processor.enter();
}

/** What follows an exit at once, and its fast path. Whether that has entered the guest again. */
function reentered(vcpu: Vcpu): boolean {
  const { backend, processor } = vcpu;
  backend.completeExit();
  vcpu.countExit(processor.exitReason);
  if (vcpu.hit(TP.kvm_exit)) recordExit(vcpu);
  vcpu.fastPath = backend.fastPath();
  if (vcpu.fastPath !== FastPath.Reenter || vcpu.exitRequested()) return false;
  enter(vcpu, vcpu.cost.reentry);
  return true;
}

/** The rest of an exit: the host's interrupts, the PV EOI harvest, the slow path. */
function handleExit(vcpu: Vcpu): void {
  vcpu.mode = VcpuMode.Outside;
  if (vcpu.processor.asyncDue) serveInterrupts(vcpu);
  if ((vcpu.attention & ATTENTION_PV_EOI) !== 0) vcpu.pvEoi.harvest();
  if (vcpu.fastPath === FastPath.None) vcpu.backend.handleExit();
}

function recordEntry(vcpu: Vcpu): void {
  const { rip } = vcpu.processor;
  vcpu.record(TP.kvm_entry, rip, high(rip));
}

function recordExit(vcpu: Vcpu): void {
  const { exitReason, rip, exitInfo1 } = vcpu.processor;
  vcpu.record(TP.kvm_exit, exitReason, rip, exitInfo1, high(exitInfo1));
}

/** The host takes the physical interrupts that have arrived. */
function serveInterrupts(vcpu: Vcpu): void {
  if (vcpu.pcpu!.interruptAt > vcpu.time) return;
  vcpu.charge(vcpu.cost.hostInterrupt);
  vcpu.pcpu!.interruptsServed();
}

/** Requests and events before an entry. Whether to enter. */
function prepare(vcpu: Vcpu): boolean {
  if ((vcpu.requests & ~REQ_EVENT) !== 0 && !serviceRequests(vcpu)) return false;
  if (!take(vcpu, REQ_EVENT)) return true;
  vcpu.stats.req_event++;
  if (vcpu.lapic.pendingEvents !== 0) acceptApicEvents(vcpu);
  if (vcpu.mpState === MpState.InitReceived) return false;
  injectEvents(vcpu);
  if (vcpu.lapic.enabled) {
    updateCr8Intercept(vcpu);
    vcpu.pvEoi.arm();
  }
  return true;
}

function take(vcpu: Vcpu, request: number): boolean {
  if ((vcpu.requests & request) === 0) return false;
  vcpu.requests &= ~request;
  return true;
}

/** The requests other than EVENT, in their order. Whether to go on. */
function serviceRequests(vcpu: Vcpu): boolean {
  const { vm } = vcpu;
  if (take(vcpu, REQ_VM_DEAD)) return false;
  if (take(vcpu, REQ_TRIPLE_FAULT)) {
    vm.shutdown(vcpu);
    return false;
  }
  if (take(vcpu, REQ_NMI)) processNmi(vcpu);
  if (take(vcpu, REQ_SCAN_IOAPIC)) vm.ioapic.scan(vcpu);
  take(vcpu, REQ_LOAD_EOI_EXITMAP); // Only virtual-interrupt delivery has an EOI-exit bitmap.
  take(vcpu, REQ_OUTSIDE_GUEST_MODE);
  return true;
}
