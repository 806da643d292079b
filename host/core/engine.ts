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
import { later } from "./time.ts";

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

/** Runs threads one step at a time. */
export class Engine {
  /** Steps taken. */
  steps = 0;
  /** The thread that takes the present step; undefined before the first. */
  running: Thread | undefined = undefined;
  /** The threads that can run. */
  readonly queue: ThreadQueue = new ThreadQueue();
  /** Whether the policy explores: time is ticks then, and work takes none. */
  readonly explores: boolean;
  /** Random data for the run. */
  readonly entropy: Entropy;

  readonly #threads: Thread[] = [];

  readonly #explorer: Explorer | undefined;
  readonly #limits: Limits;
  readonly #recorded: number[] = [];
  #tick = 0;
  #stopping = false;

  /** A core under `policy`. Data is drawn from `seed` where the policy has no source of its own. */
  constructor(policy: PolicySpec, limits: Limits, seed: number = 0) {
    this.#explorer = explorerOf(policy);
    this.explores = this.#explorer !== undefined;
    this.entropy = this.#explorer?.entropy ?? new SeededEntropy(seed);
    this.#limits = limits;
  }

  /** The steps of an explored run so far; empty under the timed policy. */
  get schedule(): Schedule {
    return this.#recorded;
  }

  /** Clocks by thread number, in cycles; see {@linkcode Thread.clock}. */
  get clocks(): Float64Array {
    return this.queue.clocks;
  }

  /** Every thread, by number. */
  get threads(): readonly Thread[] {
    return this.#threads;
  }

  /** The clock of the thread that takes the present step: what "now" means to whatever the step does. */
  get runningClock(): number {
    return this.running === undefined ? 0 : this.running.now;
  }

  /** Takes a new thread in, parked, and gives it its number. */
  add(thread: Thread): number {
    const id = this.#threads.push(thread) - 1;
    this.queue.reserve(id + 1);
    return id;
  }

  /** Lets a thread run from time `at` on; its clock becomes `at`. */
  wake(thread: Thread, at: number): void {
    thread.setClock(this.explores && at < this.#tick ? this.#tick : at);
    this.queue.put(thread.id);
  }

  /** Keeps a thread from being chosen until it is woken. */
  park(thread: Thread): void {
    this.queue.remove(thread.id);
  }

  /** Whether a thread can be chosen. */
  isQueued(id: number): boolean {
    return this.queue.places[id] >= 0;
  }

  /** Ends the run after the present step. */
  stop(): void {
    this.#stopping = true;
    this.queue.changes++;
  }

  /** The running thread's clock has been set to another time: the core must look again who is first. */
  clockMoved(): void {
    this.queue.changes++;
  }

  /** One more step. */
  countStep(): void {
    if (++this.steps > this.#limits.steps) throw new LimitExceeded("steps", this.#limits.steps);
  }

  /** Runs until nothing can run, somebody stops it, or every thread is past `deadline`. */
  run(deadline: number = Infinity): RunEnd {
    this.#stopping = false;
    return this.#explorer === undefined ? this.#timed(deadline) : this.#explore(this.#explorer);
  }

  #timed(deadline: number): RunEnd {
    const queue = this.queue;
    const threads = this.#threads;
    const end = Math.min(deadline, this.#limits.cycles);
    while (queue.size > 0) {
      const id = queue.ids[0];
      const slack = queue.slack(end);
      if (slack <= 0) {
        if (end < deadline) throw new LimitExceeded("cycles", end);
        return "deadline";
      }
      const thread = threads[id];
      this.running = thread;
      // Only when it may not be first any more is the clock looked at.
      thread.burst(slack);
      if (thread.spent !== 0) {
        queue.clocks[id] = later(queue.clocks[id], thread.spent);
        thread.spent = 0;
        thread.settled();
      }
      if (queue.places[id] >= 0) queue.put(id);
      if (this.#stopping) return "stopped";
    }
    return "idle";
  }

  #explore(explorer: Explorer): RunEnd {
    const queue = this.queue;
    const candidates: number[] = [];
    while (queue.size > 0) {
      candidates.length = 0;
      for (let place = 0; place < queue.size; place++) candidates.push(queue.ids[place]);
      candidates.sort((a, b) => a - b);
      const pick = explorer.pick(candidates, this.#recorded.length);
      if (pick < 0) return "schedule-end";
      const thread = this.#threads[candidates[pick]];
      this.#recorded.push(thread.id);
      this.countStep();
      this.running = thread;
      // A timer that is drawn early has expired all the same: time jumps to it.
      this.#tick = Math.max(this.#tick + 1, thread.clock);
      thread.setClock(this.#tick);
      thread.step();
      thread.spent = 0; // Ticks alone count.
      if (this.#stopping) return "stopped";
    }
    return "idle";
  }
}
