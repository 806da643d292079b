/**
 * Where a vCPU is: in its run loop, on its way into the guest, asleep or waiting for a CPU; what it was asked to do, and
 * which events it has to deliver.
 *
 * @module
 */

import * as core from "../core/mod.ts";
import { type Steps, Thread } from "../core/mod.ts";
import type { Pcpu } from "../sched/mod.ts";
import * as requests from "./requests.ts";
import * as modes from "./modes.ts";
import type { TdpTables } from "./tdp/tables.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  ATTENTION_RESCHED,
  ATTENTION_STEPS,
  EVENT_EXCEPTION_INJECTED,
  EVENT_EXCEPTION_PENDING,
  REQ_EVENT,
  REQ_NMI,
} = requests;
const { FAR, LONG_AGO } = core;
const { Phase, Straight, Turn, VcpuMode } = modes;

/** An exception that KVM injects. */
export interface QueuedException {
  /** The vector. */
  vector: number;
  /** The error code, -1 for none. */
  errorCode: number;
}

/** A vCPU's state. */
export abstract class VcpuState extends Thread {
  // What every interrupt touches stands together, as fields lie in memory in the order in which they are set: among
  // hundreds, each cache line less counts.
  /** Requests, as bits. */
  requests = 0;
  /** What the run loop has to look at, as bits. */
  attention = 0;
  /** Where it is, as others see it. */
  mode: modes.VcpuMode = VcpuMode.Outside;
  /** Where in the run loop it is. */
  phase: modes.Phase = Phase.Top;
  /** What its last turn came to. */
  turn: modes.Turn = Turn.Guest;
  /** The events on their way into the guest, as bits. */
  events = 0;
  /** The interrupt that is written for injection. */
  injectedInterrupt = 0;
  /** NMIs that wait for injection: at most two. */
  nmiPending = 0;
  /** More events wait than one entry can deliver: the next one must exit as soon as it has delivered its event. */
  immediateExit = false;
  /** The last entry was to deliver an event. */
  injected = false;
  /** Which ways are open to the next exit, as nothing was going on at the last entry but interrupts. */
  straight: modes.Straight = Straight.None;
  /** When the turn is due that was taken early last, counted from the epoch. */
  earlyTurnAt: number = LONG_AGO;
  /** The vector that it took out of service, and whether the entry before had delivered an event. */
  earlyVector = 0;
  /** Interrupts that were injected the straight way, and are not in the counts yet: see {@linkcode addUp}. */
  straightInjections = 0;
  /** Those that were ended so. */
  straightEnds = 0;
  /** Whether there are {@linkcode ioapicHandledVectors}. */
  ioapicHandlesSome = false;
  /** Whether the guest has enabled paravirtual EOI. */
  pvEoiEnabled = false;
  /** It waits for an event: it polls, or sleeps. */
  blocked = false;
  /** The physical CPU that it runs on; undefined while it has none. */
  pcpu: Pcpu | undefined = undefined;
  /** When the VMX-preemption timer expires, counted from the epoch. */
  preemptionAt: number = FAR;
  // And what few touch stands behind it: see rest().
  /** A kick by KVM_HC_KICK_CPU that no halt has used up. */
  declare pvUnhalted: boolean;
  /** The physical CPU that it ran on last. */
  declare lastPcpu: Pcpu | undefined;
  /** Since when it waits for a CPU. */
  declare readySince: number;
  /** It was woken or preempted, and does not run yet. */
  declare ready: boolean;
  /** While it waits: it polls, on its CPU. */
  declare polling: boolean;
  /** While it waits: asleep, without a CPU. */
  declare asleep: boolean;
  /** While it waits: somebody woke it. */
  declare woken: boolean;
  /** NMIs that arrived and were not looked at. */
  declare nmiQueued: number;
  /** The exception that waits for injection. */
  declare exception: QueuedException;
  /** Vectors whose EOI the I/O APIC must see: 256 bits. */
  declare ioapicHandledVectors: Uint32Array;
  /** The vector of a route that is gone and whose EOI is still awaited; -1 for none. */
  declare highestStaleEoi: number;
  /** In explored runs: accesses to shared state that a turn has begun. In all: a page fault that waits. */
  declare deferred: Steps[];
  /** The root of the second dimension's tables that it uses; undefined where it has to load one. */
  declare root: TdpTables | undefined;

  /** Sets what few interrupts touch, behind all that they do. */
  protected rest(): void {
    this.pvUnhalted = false;
    this.lastPcpu = undefined;
    this.readySince = 0;
    this.ready = false;
    this.polling = false;
    this.asleep = false;
    this.woken = false;
    this.nmiQueued = 0;
    this.exception = { vector: 0, errorCode: -1 };
    this.ioapicHandledVectors = new Uint32Array(8);
    this.highestStaleEoi = -1;
    this.deferred = [];
    this.root = undefined;
  }

  /** Takes back the turn that was taken early. */
  protected abstract takeTurnBack(): void;

  /** Somebody is about to look at it, or to change something: nothing may be early. */
  touch(): void {
    const { earlyTurnAt, engine } = this;
    if (earlyTurnAt >= engine.at && engine.isAhead(this, earlyTurnAt)) this.takeTurnBack();
  }

  /** Asks for something before the next entry. */
  request(request: number): void {
    this.touch();
    this.requests |= request;
  }

  /** Whether something was asked for; from now on it is not (kvm_check_request). */
  take(request: number): boolean {
    if ((this.requests & request) === 0) return false;
    this.requests &= ~request;
    return true;
  }

  /** Begins what this vCPU's own thread does in several steps: they come before the turn ends. */
  defer(steps: Steps): void {
    this.deferred.push(steps);
    this.attention |= ATTENTION_STEPS;
  }

  /** The scheduler wants the vCPU's CPU, or not any more. */
  resched(wanted: boolean): void {
    this.touch();
    if (wanted) this.attention |= ATTENTION_RESCHED;
    else this.attention &= ~ATTENTION_RESCHED;
  }

  /** An NMI arrives (kvm_inject_nmi). */
  queueNmi(): void {
    this.nmiQueued++;
    this.request(REQ_NMI);
  }

  /** Queues an exception for injection; `errorCode` is -1 where there is none. */
  queueException(vector: number, errorCode: number): void {
    this.request(REQ_EVENT);
    this.events = (this.events & ~EVENT_EXCEPTION_INJECTED) | EVENT_EXCEPTION_PENDING;
    this.exception.vector = vector;
    this.exception.errorCode = errorCode;
  }

  /** The event that the last entry was to deliver has been delivered. */
  eventDelivered(): void {
    this.injected = false;
    this.events &= EVENT_EXCEPTION_PENDING;
  }

  /** Whether the EOI of a vector must reach the I/O APIC. */
  ioapicHandles(vector: number): boolean {
    return this.ioapicHandlesSome && ((this.ioapicHandledVectors[vector >>> 5] >>> (vector & 31)) & 1) !== 0;
  }
}
