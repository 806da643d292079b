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
import { updateApicv } from "./apicv.ts";
import * as events from "./events.ts";
import * as fast from "./fast_path.ts";
import { block } from "./halt.ts";
import * as requests from "./requests.ts";
import * as modes from "./modes.ts";
import * as straightExits from "./straight_exits.ts";
import { shared, syncPosted } from "./shared.ts";
import { serveMmuRequests } from "./tdp/requests.ts";
import { loadRoot } from "./tdp/root.ts";
import { shutdown } from "./userspace.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { TP } = tracing;
const { acceptApicEvents, injectEvents, processNmi, updateCr8Intercept } = events;
const { FastPath } = vendor;
const {
  ATTENTION_APIC_MAP,
  ATTENTION_INTERLEAVE,
  ATTENTION_PV_EOI,
  ATTENTION_RESCHED,
  ATTENTION_STEPS,
  REQ_APICV_UPDATE,
  REQ_BEFORE_RUN,
  REQ_EVENT,
  REQ_LOAD_EOI_EXITMAP,
  REQ_MMU,
  REQ_MMU_RELOAD,
  REQ_NEW_ASID,
  REQ_NMI,
  REQ_OUTSIDE_GUEST_MODE,
  REQ_SCAN_IOAPIC,
  REQ_TRIPLE_FAULT,
  REQ_UNBLOCK,
  REQ_VM_DEAD,
} = requests;
const { MpState, Phase, Straight, Turn, VcpuMode } = modes;
const { straightWays } = straightExits;
const { afterFastPath } = fast;
type Turn = modes.Turn;

/** Runs a vCPU until its virtual machine is dead. While it is in guest mode its thread takes the turns itself. */
export function* runLoop(vcpu: Vcpu): Generator<void, void, void> {
  vcpu.trace(TP.kvm_fpu, 1);
  yield* shared(vcpu, (backend) => backend.load());
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
        yield* preempted(vcpu);
        break;
      case Turn.Sync:
        yield* shared(vcpu, (backend) => backend.syncPirToIrr());
        yield;
        break;
      case Turn.Steps:
        for (const steps of vcpu.deferred.splice(0)) yield* steps;
        break;
      case Turn.Interleave:
        yield;
        break;
      case Turn.Dead:
        return;
    }
    came = takeTurn(vcpu);
  }
}

/** The host's scheduler wants the CPU for somebody else. */
function* preempted(vcpu: Vcpu): Generator<void, void, void> {
  yield* shared(vcpu, (backend) => backend.put());
  vcpu.vm.scheduler.preempt(vcpu);
  yield;
  yield* shared(vcpu, (backend) => backend.load());
}

/**
 * From wherever the loop is to guest mode, or to where a plain function cannot go on.
 *
 * Mostly it is at an exit, and nothing comes between that and the next entry. That way stands here in one piece, as
 * most of its lines cost less than a call would; what few exits need is in functions of its own.
 */
export function takeTurn(vcpu: Vcpu): Turn {
  let price: number;
  vcpu.straight = Straight.None;
  toEntry: {
    if (vcpu.phase === Phase.Exited) {
      vcpu.backend.completeExit();
      vcpu.machine.countExit();
      if (vcpu.hitExit(vcpu.processor.exitReason)) recordExit(vcpu);
      const fastPath = vcpu.backend.fastPath();
      if (fastPath === FastPath.Reenter && vcpu.mode === VcpuMode.InGuest) {
        if (vcpu.vm.enableApicv && vcpu.lapic.enabled) syncPosted(vcpu); // May ask for REQ_EVENT.
        if (!outsideWanted(vcpu)) {
          price = vcpu.cost.reentry;
          break toEntry;
        }
      }
      afterFastPath(vcpu, fastPath);
      vcpu.phase = Phase.Done;
    } else if (vcpu.phase === Phase.Served) {
      vcpu.phase = Phase.Done;
    }
    for (;;) {
      if (vcpu.attention === 0 && vcpu.mpState === MpState.Runnable && vcpu.phase === Phase.Done) {
        vcpu.requests &= ~REQ_UNBLOCK;
      } else {
        const came = lookAround(vcpu);
        if (came !== Turn.Guest) return came;
      }
      if (vcpu.phase !== Phase.Prepared && vcpu.phase !== Phase.Synced) {
        if (vcpu.requests !== 0 && !prepare(vcpu)) {
          vcpu.phase = Phase.Done;
          if (vcpu.vm.dead) return Turn.Dead;
          continue;
        }
        if ((vcpu.attention & ATTENTION_INTERLEAVE) !== 0) {
          vcpu.phase = Phase.Prepared;
          return Turn.Interleave;
        }
      }
      if (vcpu.phase !== Phase.Synced) {
        if (vcpu.time >= vcpu.processor.asyncAt) vcpu.serveInterrupts(); // Up to here the host takes interrupts by itself.
        vcpu.mode = VcpuMode.InGuest;
        if (vcpu.vm.enableApicv && vcpu.lapic.enabled && synchronizes(vcpu)) return Turn.Sync;
      }
      if (!outsideWanted(vcpu)) break;
      cancelEntry(vcpu);
    }
    if (vcpu.immediateExit) exitAtOnce(vcpu);
    vcpu.phase = Phase.Exited;
    price = vcpu.cost.vmentry;
  }
  if (vcpu.hit(TP.kvm_entry)) recordEntry(vcpu);
  vcpu.backend.prepareEntry();
  vcpu.time += price;
  vcpu.straight = straightWays(vcpu);
  vcpu.processor.enter();
  return Turn.Guest;
}

/** What few turns have to look at before they prepare an entry. Turn.Guest: go on. */
function lookAround(vcpu: Vcpu): Turn {
  if (hasSteps(vcpu)) return Turn.Steps;
  if (vcpu.phase === Phase.Prepared || vcpu.phase === Phase.Synced) return Turn.Guest;
  if (vcpu.phase === Phase.Done) {
    if ((vcpu.attention & ATTENTION_APIC_MAP) !== 0) {
      vcpu.attention &= ~ATTENTION_APIC_MAP;
      return Turn.ApicMap;
    }
    vcpu.requests &= ~REQ_UNBLOCK;
    vcpu.phase = Phase.Top;
    if (vcpu.attention !== 0 && betweenTurns(vcpu)) return Turn.Preempted;
    if (hasSteps(vcpu)) return Turn.Steps;
  }
  if (vcpu.mpState === MpState.Runnable) return Turn.Guest;
  vcpu.phase = Phase.Done;
  return Turn.Block;
}

/** Whether the turn has begun accesses to shared state, which come before anything else. */
function hasSteps(vcpu: Vcpu): boolean {
  if ((vcpu.attention & ATTENTION_STEPS) === 0) return false;
  vcpu.attention &= ~ATTENTION_STEPS;
  return true;
}

/** What may have come up during a turn: an expired timer, somebody who waits for the CPU. Whether that gets the CPU. */
function betweenTurns(vcpu: Vcpu): boolean {
  const { timer } = vcpu.lapic;
  if (timer.hasPending()) timer.injectPending();
  return vcpu.pcpu!.needResched && vcpu.vm.scheduler.yields(vcpu);
}

/** Synchronizes posted interrupts on the way in. Whether that takes steps of its own: then the entry goes on behind them. */
function synchronizes(vcpu: Vcpu): boolean {
  if ((vcpu.attention & ATTENTION_INTERLEAVE) !== 0) {
    vcpu.phase = Phase.Synced;
    return true;
  }
  syncPosted(vcpu);
  return false;
}

/** Whether the vCPU must not enter guest mode. */
function outsideWanted(vcpu: Vcpu): boolean {
  return (vcpu.requests | (vcpu.attention & (ATTENTION_RESCHED | ATTENTION_STEPS))) !== 0;
}

/** Something came up: what was to be injected is taken back. */
function cancelEntry(vcpu: Vcpu): void {
  vcpu.phase = Phase.Done;
  vcpu.mode = VcpuMode.Outside;
  vcpu.backend.cancelInjection();
  if ((vcpu.attention & ATTENTION_PV_EOI) !== 0) vcpu.pvEoi.harvest();
}

function exitAtOnce(vcpu: Vcpu): void {
  vcpu.request(REQ_EVENT);
  vcpu.backend.requestImmediateExit();
}

function recordEntry(vcpu: Vcpu): void {
  const { rip } = vcpu.processor;
  vcpu.record(TP.kvm_entry, rip, high(rip));
}

function recordExit(vcpu: Vcpu): void {
  const { exitReason, rip, exitInfo1 } = vcpu.processor;
  vcpu.record(TP.kvm_exit, exitReason, rip, exitInfo1, vcpu.backend.exitInfo1High);
}

/** Requests and events before an entry. Whether to enter. */
function prepare(vcpu: Vcpu): boolean {
  // Mostly EVENT is the only one.
  if (vcpu.requests !== REQ_EVENT) {
    if (!serviceRequests(vcpu)) return false;
    if ((vcpu.requests & REQ_EVENT) === 0) {
      if (vcpu.requests !== 0) beforeRun(vcpu);
      return true;
    }
  }
  vcpu.requests &= ~REQ_EVENT;
  vcpu.stats.req_event++;
  if (vcpu.lapic.pendingEvents !== 0) {
    acceptApicEvents(vcpu);
    if (vcpu.mpState === MpState.InitReceived) return false;
  }
  injectEvents(vcpu);
  if (vcpu.lapic.enabled) {
    updateCr8Intercept(vcpu);
    if (vcpu.pvEoiEnabled) vcpu.pvEoi.arm();
  }
  if ((vcpu.requests & REQ_BEFORE_RUN) !== 0) beforeRun(vcpu);
  return true;
}

/** What VM entry needs and few entries lack: a root (kvm_mmu_reload), and on SVM an ASID. */
function beforeRun(vcpu: Vcpu): void {
  if (vcpu.take(REQ_MMU_RELOAD)) loadRoot(vcpu);
  if (vcpu.take(REQ_NEW_ASID)) vcpu.backend.renewAsid();
}

/** The requests other than EVENT, in their order. Whether to go on. */
function serviceRequests(vcpu: Vcpu): boolean {
  const { vm } = vcpu;
  if (vcpu.take(REQ_VM_DEAD)) return false;
  if ((vcpu.requests & REQ_MMU) !== 0) serveMmuRequests(vcpu);
  if (vcpu.take(REQ_TRIPLE_FAULT)) {
    shutdown(vcpu);
    return false;
  }
  if (vcpu.take(REQ_NMI)) processNmi(vcpu);
  if (vcpu.take(REQ_SCAN_IOAPIC)) vm.ioapic.scan(vcpu);
  if (vcpu.take(REQ_LOAD_EOI_EXITMAP)) vcpu.backend.loadEoiExitmap();
  if (vcpu.take(REQ_APICV_UPDATE)) updateApicv(vcpu);
  vcpu.take(REQ_OUTSIDE_GUEST_MODE);
  return true;
}
