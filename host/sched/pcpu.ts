/**
 * A physical CPU of the host: what runs on it, and the interrupts that are on their way to it.
 *
 * @module
 */

import * as core from "../core/mod.ts";
import { type Engine, type Rebased, rebased, Timer } from "../core/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { CpuTlb } from "../mmu/mod.ts";
import * as tracing from "../trace/mod.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { FAR } = core;
const { TP } = tracing;

/** Who sleeps, and is to be woken when something was posted. */
export interface Sleeper {
  /** The CPU's wake-up interrupt has come: looks, and wakes. */
  wakeIfPosted(): void;
}

/** A physical CPU. */
export class Pcpu implements Rebased {
  /** The vCPU whose thread it runs; undefined while it is idle. */
  current: Vcpu | undefined = undefined;
  /** When the next physical interrupt arrives, counted from the epoch; FAR for none. */
  interruptAt: number = FAR;
  /**
   * When the next notification arrives, likewise: of a posted interrupt, or a doorbell. In guest mode hardware looks at
   * it; in the host it means nothing.
   */
  notifiedAt: number = FAR;
  /** The wake-up interrupt has arrived in guest mode, and waits for the exit that it causes. */
  #wakeupWaits = false;

  /** Its number. */
  declare readonly id: number;
  /** The host's scheduler wants to run somebody else. */
  needResched = false;
  /** Those that sleep and that a posted interrupt wakes (wakeup_vcpus_on_cpu). */
  readonly sleepers: Set<Sleeper> = new Set();
  /** Fires at the end of a time slice. */
  declare readonly slice: Timer;
  readonly #engine: Engine;
  /** How often the vCPU had entered guest mode when it began to run here. */
  #entries = 0;
  /** Its TLB, as soon as somebody translates. */
  #tlb: CpuTlb | undefined = undefined;
  /** Fires when the wake-up interrupt arrives; undefined before the first one. */
  #wakeups: Timer | undefined = undefined;

  /** An idle CPU. */
  constructor(engine: Engine, id: number) {
    this.#engine = engine;
    this.id = id;
    engine.tellEpoch(this);
    this.slice = new Timer(engine, `pcpu ${id} slice`, () => this.#sliceEnded());
  }

  /** The epoch has moved on. */
  rebase(by: number): void {
    if (this.interruptAt !== FAR) this.interruptAt = rebased(this.interruptAt, by);
    if (this.notifiedAt !== FAR) this.notifiedAt = rebased(this.notifiedAt, by);
  }

  /** A vCPU begins to run here: what has arrived the host has served, and what is on its way will meet the vCPU. */
  run(vcpu: Vcpu): void {
    this.current = vcpu;
    this.#entries = entries(vcpu);
    vcpu.pcpu = this;
    vcpu.processor.mmu?.moved();
    if (this.interruptAt <= vcpu.time) this.interruptAt = FAR;
    if (this.notifiedAt <= vcpu.time) this.notifiedAt = FAR;
    vcpu.asynchronousEvent();
  }

  /** Its TLB; undefined while nobody has translated an address here. */
  get tlbInUse(): CpuTlb | undefined {
    return this.#tlb;
  }

  /** Its TLB, which the vCPUs that run here share. Throws where they are not all of one vendor's. */
  tlb(vcpu: Vcpu): CpuTlb {
    const vendor = vcpu.vm.backend;
    const oracle = vcpu.machine.staleness;
    const own = this.#tlb ??= new CpuTlb({ vendor, cpu: this.id, oracle });
    if (own.tlb.vendor === vendor) return own;
    throw new Error(
      `Cannot translate for ${vcpu.name} on pcpu ${this.id}: that is a processor with ${own.tlb.vendor}`,
    );
  }

  /** A physical interrupt arrives at `time`, counted from the epoch: in guest mode it is a VM exit. */
  interrupt(time: number): void {
    if (time >= this.interruptAt) return;
    this.interruptAt = time;
    this.current?.interruptDue(time);
  }

  /** A notification arrives at `time`. */
  notify(time: number): void {
    this.current?.postedTo();
    if (time >= this.notifiedAt) return;
    this.notifiedAt = time;
    this.current?.interruptDue(time);
  }

  /** Hardware, or the host, has seen the notification. */
  notified(): void {
    this.notifiedAt = FAR;
    this.current?.notificationTaken();
  }

  /** The wake-up interrupt arrives at `time`, counted from the epoch: those who sleep here are to be looked after. */
  wakeup(time: number): void {
    this.#wakeups ??= new Timer(this.#engine, `pcpu ${this.id} wake-up`, () => this.#wakeupArrived());
    const clock = this.#engine.epoch + time;
    if (!this.#wakeups.queued || clock < this.#wakeups.clock) this.#wakeups.arm(clock);
  }

  /** In guest mode it is a VM exit like any other interrupt's; the host takes it at once. */
  #wakeupArrived(): void {
    this.current?.settle(); // It may have exited by now.
    if (this.current?.processor.guestMode) {
      this.#wakeupWaits = true;
      this.interrupt(this.#engine.running!.time);
    } else {
      this.#wakeSleepers();
    }
  }

  #wakeSleepers(): void {
    this.#wakeupWaits = false;
    for (const sleeper of this.sleepers) sleeper.wakeIfPosted();
  }

  /** The host has taken every interrupt that has arrived. */
  served(): void {
    this.interruptAt = FAR;
    if (this.#wakeupWaits) this.#wakeSleepers();
  }

  /** The scheduler wants to run somebody else here, or not any more. */
  reschedule(wanted: boolean): void {
    this.needResched = wanted;
    this.current?.resched(wanted);
  }

  #sliceEnded(): void {
    if (this.current === undefined) return;
    if (this.#engine.explores && entries(this.current) === this.#entries) {
      // Drawn before the vCPU has got anywhere: no slice is that short, and with such slices nobody ever would.
      this.slice.arm(this.slice.clock + 1);
      return;
    }
    this.reschedule(true);
    this.interrupt(this.#engine.running!.time);
  }
}

/** How often a vCPU has entered guest mode. */
function entries({ tracer, index }: Vcpu): number {
  return tracer.count(TP.kvm_entry, index);
}
