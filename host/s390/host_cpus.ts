/**
 * The CPUs of an s390 host, which is as a rule itself a guest of a hypervisor below: that one can take a CPU away, and the
 * vCPU on it stops until it comes back or somebody asks for it. Where there are more vCPUs than CPUs they take turns.
 *
 * @module
 */

import type { Engine, Thread } from "../core/mod.ts";

/** A vCPU as its host schedules it. */
export interface S390HostThread extends Thread {
  /** The CPU that it runs on; undefined while it waits, or sleeps. */
  hostCpu: HostCpu | undefined;
  /** When its turn ends, in cycles. */
  turnEnd: number;
}

/** A CPU. */
export class HostCpu {
  /** Its number. */
  readonly id: number;
  /** Who runs on it. */
  current: S390HostThread | undefined = undefined;
  /** The hypervisor below has taken it away. */
  preempted = false;
  readonly #engine: Engine;

  /** An idle CPU. */
  constructor(engine: Engine, id: number) {
    this.#engine = engine;
    this.id = id;
  }

  /** The hypervisor below takes it away: whoever runs on it stops where it is. */
  takeAway(): void {
    this.preempted = true;
    if (this.current !== undefined) this.#engine.park(this.current);
  }

  /** It comes back. */
  giveBack(clock: number): void {
    if (!this.preempted) return;
    this.preempted = false;
    const { current } = this;
    if (current !== undefined) this.#engine.wake(current, Math.max(clock, current.clock));
  }

  /** Lets somebody run from `clock` on. */
  run(thread: S390HostThread, clock: number): void {
    this.current = thread;
    thread.hostCpu = this;
    if (!this.preempted) this.#engine.wake(thread, Math.max(clock, thread.clock));
    else thread.setClock(Math.max(clock, thread.clock));
  }
}

/** Places vCPUs on CPUs. */
export class HostCpus {
  /** The CPUs. */
  readonly cpus: readonly HostCpu[];
  readonly #engine: Engine;
  readonly #turn: number;
  /** Who can run and has no CPU, and since when. */
  readonly #waiting: { readonly thread: S390HostThread; readonly since: number }[] = [];

  /** Idle CPUs, on which a turn is so many cycles where somebody waits. Throws `RangeError` for a number that cannot be. */
  constructor(engine: Engine, cpus: number, turn: number) {
    if (!Number.isInteger(cpus) || cpus < 1) {
      throw new RangeError(`Cannot build an s390 host of ${cpus} CPUs: allowed are whole numbers from 1`);
    }
    this.#engine = engine;
    this.#turn = turn;
    this.cpus = Array.from({ length: cpus }, (_, id) => new HostCpu(engine, id));
  }

  /** Whether somebody waits for a CPU. */
  get contended(): boolean {
    return this.#waiting.length > 0;
  }

  /** A vCPU can run from `clock` on. */
  ready(thread: S390HostThread, clock: number): void {
    const idle = this.cpus.find(({ current }) => current === undefined);
    if (idle === undefined) this.#waiting.push({ thread, since: clock });
    else this.#run(idle, thread, clock);
  }

  /** A vCPU gives up its CPU, or its place in the line. */
  release(thread: S390HostThread): void {
    const place = this.#waiting.findIndex((waiting) => waiting.thread === thread);
    if (place >= 0) this.#waiting.splice(place, 1);
    const cpu = thread.hostCpu;
    if (cpu === undefined) return;
    thread.hostCpu = undefined;
    cpu.current = undefined;
    const next = this.#waiting.shift();
    if (next !== undefined) this.#run(cpu, next.thread, Math.max(next.since, thread.clock));
  }

  /** A vCPU's turn is over, or it gives up the rest: it waits behind the others. Nothing where nobody waits. */
  yield(thread: S390HostThread): void {
    if (!this.contended) {
      thread.turnEnd = thread.clock + this.#turn;
      return;
    }
    this.#engine.park(thread);
    this.#waiting.push({ thread, since: thread.clock });
    const cpu = thread.hostCpu!;
    thread.hostCpu = undefined;
    const next = this.#waiting.shift()!;
    this.#run(cpu, next.thread, Math.max(next.since, thread.clock));
  }

  /** A vCPU gives the rest of its turn to one that waits. Whether that one did. */
  yieldTo(from: S390HostThread, to: S390HostThread): boolean {
    const place = this.#waiting.findIndex(({ thread }) => thread === to);
    if (place < 0) return false;
    this.#waiting.unshift(...this.#waiting.splice(place, 1));
    this.yield(from);
    return true;
  }

  #run(cpu: HostCpu, thread: S390HostThread, clock: number): void {
    thread.turnEnd = clock + this.#turn;
    cpu.run(thread, clock);
  }
}
