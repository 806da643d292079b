/**
 * HLT, blocking, and halt polling (arch/x86/kvm/x86.c vcpu_block; virt/kvm/kvm_main.c kvm_vcpu_halt).
 *
 * @module
 */

import * as tracing from "../trace/mod.ts";
import { acceptApicEvents, hasEvents } from "./events.ts";
import * as requests from "./requests.ts";
import { cyclesToNs, nsToCycles } from "./time.ts";
import * as modes from "./modes.ts";
import { shared } from "./shared.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { TP } = tracing;
const { REQ_UNBLOCK } = requests;
const { MpState } = modes;

/** halt_poll_ns: the longest poll, x86's default. */
export const HALT_POLL_NS_MAX = 200_000;
/** halt_poll_ns_grow: the window doubles. */
const GROW = 2;
/** halt_poll_ns_grow_start: where growing begins. */
const GROW_START = 10_000;
/** vcpu_valid_wakeup: only s390 knows wake-ups that do not count. */
const VALID_WAKEUP = 1;
/**
 * Whether the vCPU can leave a blocked state (kvm_arch_vcpu_runnable). Only INIT and start-up IPIs get one out of its
 * wait for a start-up; while it has other events KVM goes round in circles, where this host sleeps.
 */
export function runnable(vcpu: Vcpu): boolean {
  switch (vcpu.mpState) {
    case MpState.Runnable:
      return true;
    case MpState.Halted:
      return vcpu.pvUnhalted || hasEvents(vcpu);
    default:
      return vcpu.lapic.pendingEvents !== 0;
  }
}

/** HLT was executed (__kvm_emulate_halt): the vCPU halts, unless something waits for it. */
export function emulateHalt(vcpu: Vcpu): void {
  vcpu.charge(vcpu.cost.halt);
  vcpu.backend.skipInstruction();
  vcpu.stats.halt_exits++;
  vcpu.setMpState(hasEvents(vcpu) || vcpu.pvUnhalted ? MpState.Runnable : MpState.Halted);
}

/** The window within which a vCPU that halts is polled for. */
export class HaltPolling {
  /** The present window, in nanoseconds. */
  windowNs = 0;
  readonly #vcpu: Vcpu;

  /** Polling that has not begun: the window grows from 0. */
  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
  }

  /** Whether the host may poll: MSR_KVM_POLL_CONTROL, and a host that knows polling. */
  get allowed(): boolean {
    const { vm, msrs } = this.#vcpu;
    return vm.behaviour.haltPolling && vm.haltPollNs > 0 && msrs.pollControl;
  }

  /** A halt took `ns`: adapts the window. */
  adapt(ns: number): void {
    const max = this.#vcpu.vm.haltPollNs;
    if (ns <= this.windowNs) return;
    if (this.windowNs > 0 && ns > max) this.#shrink();
    else if (this.windowNs < max && ns < max) this.#grow();
  }

  #grow(): void {
    this.#set(Math.max(this.windowNs * GROW, GROW_START), true);
  }

  #shrink(): void {
    const { haltPollShrink } = this.#vcpu.vm.behaviour;
    const shrunk = haltPollShrink === 0 ? 0 : Math.floor(this.windowNs / haltPollShrink);
    this.#set(shrunk < GROW_START ? 0 : shrunk, false);
  }

  #set(windowNs: number, grew: boolean): void {
    const old = this.windowNs;
    this.windowNs = windowNs;
    this.#vcpu.trace(TP.kvm_halt_poll_ns, grew ? 1 : 0, windowNs, old);
  }
}

/** Waits until the vCPU is runnable, and then makes it so (vcpu_block). */
export function* block(vcpu: Vcpu): Generator<void, void, void> {
  const { timer } = vcpu.lapic;
  if (!runnable(vcpu)) {
    const hv = timer.switchToSoft();
    if (vcpu.mpState === MpState.Halted) yield* halt(vcpu);
    else yield* sleep(vcpu);
    if (hv) timer.switchToHv();
    if (!runnable(vcpu)) return;
  }
  acceptApicEvents(vcpu);
  if (vcpu.mpState === MpState.Halted) vcpu.setMpState(MpState.Runnable);
}

/** Polls for as long as the window says, then sleeps (kvm_vcpu_halt). */
function* halt(vcpu: Vcpu): Generator<void, void, void> {
  const { haltPolling, vm, stats } = vcpu;
  const start = vcpu.clock;
  haltPolling.windowNs = Math.min(haltPolling.windowNs, vm.haltPollNs);
  const poll = haltPolling.allowed && haltPolling.windowNs > 0;
  let seen = false;
  if (poll) {
    stats.halt_attempted_poll++;
    seen = yield* pollUntil(vcpu, start + nsToCycles(haltPolling.windowNs, vm.tscKhz));
  }
  const waited = !seen && (yield* sleep(vcpu));
  if (poll && !waited) stats.halt_successful_poll++;
  const ns = cyclesToNs(vcpu.clock - start, vm.tscKhz);
  if (haltPolling.allowed) haltPolling.adapt(ns);
  vcpu.trace(TP.kvm_vcpu_wakeup, ns, waited ? 1 : 0, VALID_WAKEUP);
}

/** Whether a waiting vCPU has reason to stop waiting (kvm_vcpu_check_block). */
function wakeable(vcpu: Vcpu): boolean {
  return runnable(vcpu) || vcpu.lapic.timer.hasPending() || (vcpu.requests & REQ_UNBLOCK) !== 0;
}

/** Spins until there is an event, the time is over, or somebody else could run. Whether there was an event. */
function* pollUntil(vcpu: Vcpu, end: number): Generator<void, boolean, void> {
  const { scheduler } = vcpu.vm;
  vcpu.blocked = true;
  vcpu.polling = true;
  for (;;) {
    vcpu.woken = false;
    // kvm_vcpu_can_poll
    if (wakeable(vcpu) || vcpu.clock >= end || vcpu.pcpu!.needResched || !scheduler.single()) break;
    const { clock } = vcpu;
    vcpu.engine.wake(vcpu, end);
    yield;
    // Whoever woke it may have been a little behind: time does not run backwards.
    if (vcpu.clock < clock) vcpu.setClock(clock);
  }
  vcpu.blocked = false;
  vcpu.polling = false;
  return wakeable(vcpu);
}

/** Gives the CPU up until there is an event (kvm_vcpu_block). Whether the vCPU was off its CPU. */
function* sleep(vcpu: Vcpu): Generator<void, boolean, void> {
  let waited = false;
  vcpu.blocked = true;
  yield* shared(vcpu, (backend) => backend.blocking());
  for (;;) {
    vcpu.woken = false;
    if (vcpu.engine.explores) yield; // Between announcing the sleep and looking, others may come.
    if (wakeable(vcpu)) break;
    if (vcpu.woken) continue;
    waited = true;
    vcpu.charge(vcpu.cost.block);
    yield* shared(vcpu, (backend) => backend.put());
    if (!vcpu.woken) {
      vcpu.asleep = true;
      vcpu.vm.scheduler.release(vcpu);
      yield;
    }
    yield* shared(vcpu, (backend) => backend.load());
  }
  vcpu.blocked = false;
  yield* shared(vcpu, (backend) => backend.unblocking());
  return waited;
}
