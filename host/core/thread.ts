/**
 * A thread of the simulated host: something that the stepping core can run one step at a time. A vCPU, an armed timer
 * and a device are threads.
 *
 * @module
 */

import type { Engine } from "./engine.ts";
import { later } from "./time.ts";

/** Something that runs in steps and has a clock of its own. */
export abstract class Thread {
  /** Its number: the order in which threads were added, and what breaks ties between equal clocks. */
  readonly id: number;
  /** Its name, for traces and errors. */
  readonly name: string;
  /** The core that steps it. */
  readonly engine: Engine;

  /**
   * Cycles that its steps have taken since its clock was settled: a small integer. Adding to it and comparing it is much
   * cheaper than doing either with the clock, so the core settles the two only when it looks at another thread.
   */
  spent = 0;

  /** Adds a parked thread to `engine`. */
  constructor(engine: Engine, name: string) {
    this.engine = engine;
    this.name = name;
    this.id = engine.add(this);
  }

  /** Runs one step: everything that happens up to the next point at which another thread may come between. */
  abstract step(): void;

  /** Local time up to which its steps are settled, in cycles. */
  get clock(): number {
    return this.engine.clocks[this.id];
  }

  /**
   * Runs steps until it has spent `slack` cycles, or the heap has changed: until another thread may be first. Threads
   * that can do better than one call a step override this; the order of events must be the same.
   */
  burst(slack: number): void {
    const { engine } = this;
    const { changes } = engine.queue;
    do {
      engine.countStep();
      this.step();
    } while (this.spent < slack && engine.queue.changes === changes);
  }

  /** Lets local time pass. */
  charge(cycles: number): void {
    this.spent += cycles;
  }

  /** Local time, in cycles. */
  get now(): number {
    return later(this.engine.clocks[this.id], this.spent);
  }

  /** Sets local time. */
  setClock(time: number): void {
    this.engine.clocks[this.id] = time;
    this.spent = 0;
    this.settled();
  }

  /** {@linkcode clock} has changed, and {@linkcode spent} is 0: what is kept relative to the clock must follow. */
  settled(): void {}

  /** Whether the core may choose it. */
  get queued(): boolean {
    return this.engine.isQueued(this.id);
  }
}
