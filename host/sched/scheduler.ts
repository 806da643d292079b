/**
 * The host's scheduler: V vCPU threads on P physical CPUs, round robin with time slices. Where there are no more vCPUs
 * than CPUs each vCPU has one to itself.
 *
 * @module
 */

import type { Engine } from "../core/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { Pcpu } from "./pcpu.ts";

/** How a scheduler is made. */
export interface SchedulerOptions {
  /** Physical CPUs. */
  readonly pcpus: number;
  /** A time slice, in cycles. */
  readonly slice: number;
}

/** The most physical CPUs. */
export const PCPU_LIMIT = 4096;

/** Places vCPU threads on CPUs. */
export class HostScheduler {
  /** The CPUs. */
  declare readonly pcpus: readonly Pcpu[];
  readonly #engine: Engine;
  readonly #slice: number;
  readonly #waiting: Vcpu[] = [];

  /** A scheduler over idle CPUs. Throws `RangeError` for a number of CPUs or a slice that cannot be. */
  constructor(engine: Engine, options: SchedulerOptions) {
    const { pcpus, slice } = options;
    if (!Number.isInteger(pcpus) || pcpus < 1 || pcpus > PCPU_LIMIT) {
      throw new RangeError(
        `Cannot build a machine of ${pcpus} physical CPUs: allowed are 1 to ${PCPU_LIMIT}`,
      );
    }
    if (!Number.isSafeInteger(slice) || slice < 1) {
      throw new RangeError(`Cannot use a time slice of ${slice} cycles: allowed are positive whole numbers`);
    }
    this.#engine = engine;
    this.#slice = slice;
    this.pcpus = Array.from({ length: pcpus }, (_, id) => new Pcpu(engine, id));
  }

  /** vCPUs that could run and have no CPU. */
  get waiting(): readonly Vcpu[] {
    return this.#waiting;
  }

  /** A vCPU can run from time `at` on, counted from the epoch: it gets an idle CPU, or waits its turn. */
  ready(vcpu: Vcpu, at: number): void {
    const last = vcpu.lastPcpu;
    const pcpu = last !== undefined && last.current === undefined
      ? last
      : this.pcpus.find((p) => p.current === undefined);
    if (pcpu !== undefined) {
      this.#run(vcpu, pcpu, at);
      return;
    }
    vcpu.readySince = this.#engine.epoch + at;
    this.#waiting.push(vcpu);
    this.#limitSlices(vcpu.readySince);
  }

  /** A vCPU that runs gives its CPU up: it sleeps, or has ended. */
  release(vcpu: Vcpu): void {
    const { pcpu } = vcpu;
    if (pcpu === undefined) return;
    const { clock } = vcpu;
    pcpu.reschedule(false);
    pcpu.current = undefined;
    pcpu.slice.cancel();
    vcpu.pcpu = undefined;
    vcpu.lastPcpu = pcpu;
    this.#engine.park(vcpu);
    const next = this.#waiting.shift();
    if (next === undefined) return;
    this.#run(next, pcpu, this.#engine.timeOf(Math.max(clock, next.readySince) + next.vm.switchCost));
  }

  /** Whether a vCPU that runs must make room for somebody who waits. */
  yields(vcpu: Vcpu): boolean {
    if (this.#waiting.length > 0) return true;
    vcpu.pcpu!.reschedule(false);
    return false;
  }

  /** A vCPU that runs goes behind those that wait. */
  preempt(vcpu: Vcpu): void {
    vcpu.ready = true;
    vcpu.readySince = vcpu.clock;
    this.#waiting.push(vcpu);
    this.release(vcpu);
  }

  /** Puts a vCPU that waits first in line (yield_to): whoever yields next makes room for it. Whether it waited. */
  yieldTo(to: Vcpu): boolean {
    const place = this.#waiting.indexOf(to);
    if (place < 0) return false;
    this.#waiting.splice(place, 1);
    this.#waiting.unshift(to);
    return true;
  }

  /** Whether a CPU has nobody else to run. */
  single(): boolean {
    return this.#waiting.length === 0;
  }

  #run(vcpu: Vcpu, pcpu: Pcpu, at: number): void {
    this.#engine.wakeAt(vcpu, Math.max(at, vcpu.time));
    pcpu.run(vcpu);
    vcpu.loaded();
    if (this.#waiting.length > 0) pcpu.slice.arm(vcpu.clock + this.#slice);
  }

  /** Somebody waits now: whoever runs has until the end of a slice, and whoever polls looks at once. */
  #limitSlices(clock: number): void {
    for (const { current, slice } of this.pcpus) {
      if (current === undefined) continue;
      if (current.blocked) current.wakeUp();
      if (!slice.queued) slice.arm(clock + this.#slice);
    }
  }
}
