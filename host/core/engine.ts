/**
 * The stepping core. It knows threads, their clocks and a policy, and nothing of what a step does.
 *
 * @module
 */

import type { Entropy } from "./entropy.ts";
import { SeededEntropy } from "./entropy.ts";
import { LimitExceeded, type Limits } from "./limits.ts";
import { type Explorer, explorerOf, type PolicySpec } from "./policy.ts";
import { ThreadQueue } from "./queue.ts";
import type { Schedule } from "./schedule.ts";
import type { Thread } from "./thread.ts";
import * as time from "./time.ts";
import type { Rebased } from "./time.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { FAR, LONG_AGO } = time;

/** Why {@linkcode Engine.run} came back. */
export type RunEnd =
  /** No thread can run, and none ever will by itself. */
  | "idle"
  /** Somebody asked the core to stop. */
  | "stopped"
  /** The given point in time is reached. */
  | "deadline"
  /** The replayed schedule is at its end. */
  | "schedule-end";

/** How far times may be from the epoch before it moves on. */
const NEAR: number = 1 << 29;

/** How many steps are granted at a time. */
const GRANT: number = 1 << 30;

/** Runs threads one step at a time. */
export class Engine {
  /** The thread that takes the present step; undefined before the first. */
  running: Thread | undefined = undefined;
  /** While the running thread's time is below this, no other thread comes before it; later, one may. */
  horizon: number = LONG_AGO;
  /** When the present step began; between runs, where the last one ended. */
  at = 0;
  /** Whether the policy explores: time is ticks then, and work takes none. */
  declare readonly explores: boolean;
  /** Random data for the run. */
  declare readonly entropy: Entropy;

  readonly #queue = new ThreadQueue();
  readonly #threads: Thread[] = [];
  readonly #rebased: Rebased[] = [];
  readonly #explorer: Explorer | undefined;
  readonly #cycleLimit: number;
  readonly #stepLimit: number;
  readonly #scheduleLimit: number;
  readonly #recorded: number[] = [];
  /** Steps that may be taken before somebody looks at the limit: a small integer, where the limit is none. */
  #left = 0;
  #granted = 0;
  /** The epoch: a double in a place for doubles, as a field that becomes one makes V8 forget what it knows of engines. */
  readonly #epoch = new Float64Array(1);
  #tick = 0;
  /** Where a timed run ends, or its epoch: nobody runs beyond. */
  #bound = NEAR;
  #stopping = false;

  /** A core under `policy`. Data is drawn from `seed` where the policy has no source of its own. */
  constructor(policy: PolicySpec, limits: Limits, seed: number = 0) {
    this.#explorer = explorerOf(policy);
    this.explores = this.#explorer !== undefined;
    this.entropy = this.#explorer?.entropy ?? new SeededEntropy(seed);
    this.#cycleLimit = limits.cycles;
    this.#stepLimit = limits.steps;
    this.#scheduleLimit = limits.schedule;
  }

  /** The clock that times are counted from, in cycles. */
  get epoch(): number {
    return this.#epoch[0];
  }

  /** Steps taken. */
  get steps(): number {
    return this.#granted - this.#left;
  }

  /** The steps of an explored run so far; empty under the timed policy. */
  get schedule(): Schedule {
    return this.#recorded;
  }

  /** Every thread, by number. */
  get threads(): readonly Thread[] {
    return this.#threads;
  }

  /** The clock of the thread that takes the present step: what "now" means to whatever the step does. */
  get now(): number {
    return this.running === undefined ? 0 : this.running.clock;
  }

  /** A clock as a time counted from the epoch; {@linkcode FAR} where it is too far away. */
  timeOf(clock: number): number {
    const time = clock - this.epoch;
    return time >= FAR ? FAR : Math.max(time, LONG_AGO) | 0;
  }

  /** Takes a new thread in, parked, and gives it its number. */
  add(thread: Thread): number {
    const id = this.#threads.push(thread) - 1;
    this.#queue.reserve(id + 1);
    return id;
  }

  /** Tells somebody, from now on, when the epoch moves. Threads are told anyway, after everybody else. */
  tellEpoch(to: Rebased): void {
    this.#rebased.push(to);
  }

  /** Lets a thread run from `clock` on. */
  wake(thread: Thread, clock: number): void {
    thread.setClock(clock);
    this.#put(thread);
  }

  /** Lets a thread run from a time on that is counted from the epoch, and not {@linkcode FAR}. */
  wakeAt(thread: Thread, time: number): void {
    thread.time = time;
    this.#put(thread);
  }

  #put(thread: Thread): void {
    const { time, id } = thread;
    if (thread === this.running) {
      // It goes on, as far as that depends on it.
      this.#queue.remove(id);
      this.#queue.running = id;
      this.horizon = LONG_AGO;
      return;
    }
    this.#queue.put(id, time);
    if (time < this.horizon) this.horizon = time;
  }

  /** Keeps a thread from being chosen until it is woken. */
  park(thread: Thread): void {
    this.#queue.remove(thread.id);
    if (thread === this.running) this.horizon = LONG_AGO;
  }

  /** The running thread's time has been set: it may not be first any more. */
  look(): void {
    this.horizon = LONG_AGO;
  }

  /** Whether the run goes on up to a time, as far as one knows before. */
  reaches(time: number): boolean {
    return this.horizon !== LONG_AGO && time < this.#bound;
  }

  /** Until when the running thread has the machine to itself, if the others are left alone. */
  quiet(): number {
    let until = this.#bound;
    for (const id of this.#queue.all()) {
      const thread = this.#threads[id];
      if (thread !== this.running) until = Math.min(until, thread.quietUntil);
    }
    return until;
  }

  /** Whether a thread can be chosen. */
  isQueued(id: number): boolean {
    return this.#queue.has(id);
  }

  /** Ends the run after the present step. */
  stop(): void {
    this.#stopping = true;
    this.look();
  }

  /** One more step. */
  countStep(): void {
    if (--this.#left < 0) this.#grant();
  }

  /** A step has been taken back: it will be taken again. */
  takeStepBack(): void {
    this.#left++;
  }

  /** Whether a thread comes at `time` only after the present step. */
  isAhead(thread: Thread, time: number): boolean {
    return time > this.at || (time === this.at && thread.id > this.running!.id);
  }

  /** Grants more steps, of which the present one is the first. */
  #grant(): void {
    this.#left = 0;
    const more = Math.min(Math.floor(this.#stepLimit) - this.#granted, GRANT);
    if (more <= 0) throw new LimitExceeded("steps", this.#stepLimit);
    this.#granted += more;
    this.#left = more - 1;
  }

  /** Runs until nothing can run, somebody stops it, or every thread is past `deadline` (in explored runs, a tick). */
  run(deadline: number = Infinity): RunEnd {
    this.#stopping = false;
    return this.#explorer === undefined ? this.#timed(deadline) : this.#explore(this.#explorer, deadline);
  }

  #timed(deadline: number): RunEnd {
    const queue = this.#queue;
    const last = Math.min(deadline, this.#cycleLimit);
    let bound = this.#bound = Math.min(this.timeOf(last) + 1, NEAR);
    for (;;) {
      if (queue.firstTime < bound) {
        const id = queue.running >= 0 ? queue.exchange(this.running!.time) : queue.runFirst();
        this.running = this.#threads[id];
      } else if (queue.running < 0 || this.running!.time >= bound) {
        const earliest = this.#earliest();
        if (earliest === Infinity) return "idle";
        if (earliest > last) {
          this.at = bound; // Whoever comes before the next run comes then.
          return this.#late(deadline);
        }
        this.#rebase(earliest);
        bound = this.#bound = Math.min(this.timeOf(last) + 1, NEAR);
        continue;
      }
      this.horizon = queue.firstTime < bound ? queue.firstTime : bound;
      this.running!.burst();
      if (this.#stopping) return this.#stopped();
    }
  }

  #stopped(): RunEnd {
    for (const thread of this.#threads) thread.settle();
    return "stopped";
  }

  #late(deadline: number): RunEnd {
    if (this.#cycleLimit < deadline) throw new LimitExceeded("cycles", this.#cycleLimit);
    return "deadline";
  }

  #explore(explorer: Explorer, deadline: number): RunEnd {
    const queue = this.#queue;
    const last = Math.min(deadline, this.#cycleLimit);
    for (;;) {
      // Whoever ran can be chosen like the others.
      if (queue.running >= 0) queue.goBack(this.running!.time);
      const candidates = queue.all();
      if (candidates.length === 0) return "idle";
      if (this.#tick >= last) return this.#late(deadline);
      candidates.sort((a, b) => a - b);
      const pick = explorer.pick(candidates, this.#recorded.length);
      if (pick < 0) return "schedule-end";
      const thread = this.#threads[candidates[pick]];
      this.countStep();
      if (this.#recorded.length >= this.#scheduleLimit) {
        throw new LimitExceeded("schedule", this.#scheduleLimit);
      }
      this.#recorded.push(thread.id);
      this.running = thread;
      // A timer that is drawn early has expired all the same: time jumps to it.
      this.#tick = Math.max(this.#tick + 1, thread.clock);
      if (this.#tick - this.epoch >= NEAR) this.#rebase(this.#tick);
      thread.setClock(this.#tick);
      thread.step();
      if (this.#stopping) return "stopped";
    }
  }

  /** The earliest clock of a thread that can run; Infinity where there is none. */
  #earliest(): number {
    let earliest = Infinity;
    for (const id of this.#queue.all()) earliest = Math.min(earliest, this.#threads[id].clock);
    return earliest;
  }

  #rebase(epoch: number): void {
    const by = epoch - this.epoch;
    this.#epoch[0] = epoch;
    for (const other of this.#rebased) other.rebase(by);
    for (const thread of this.#threads) thread.rebase(by);
    const queue = this.#queue;
    for (const id of queue.all()) queue.put(id, this.#threads[id].time);
  }
}
