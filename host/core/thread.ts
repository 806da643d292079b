/**
 * A thread of the simulated host: something that the stepping core can run one step at a time. A vCPU, an armed timer
 * and a device are threads.
 *
 * @module
 */

import type { Engine } from "./engine.ts";
import * as time from "./time.ts";
import { type Rebased, rebased } from "./time.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { FAR } = time;

/**
 * Something that runs in steps and has a clock of its own.
 *
 * Here as in other classes that bursts go through, fields that a constructor sets are declared and not defined: one
 * that is defined without a value is undefined first, and V8 would never again rely on its type.
 */
export abstract class Thread implements Rebased {
  /** Its number: the order in which threads were added, and what breaks ties between equal clocks. */
  declare readonly id: number;
  /** Its name, for traces and errors. */
  declare readonly name: string;
  /** The core that steps it. */
  declare readonly engine: Engine;
  /** Its time, counted from the engine's epoch: a small integer. */
  time = 0;
  /** Its clock, while {@linkcode time} is {@linkcode FAR}. */
  #far = 0;

  /** Adds a parked thread to `engine`. */
  constructor(engine: Engine, name: string) {
    this.engine = engine;
    this.name = name;
    this.id = engine.add(this);
  }

  /** Runs one step: everything that happens up to the next point at which another thread may come between. */
  abstract step(): void;

  /**
   * Runs steps until another thread may be first: until its time reaches the engine's horizon. Threads that can do
   * better than one call a step override this; the order of events must be the same.
   */
  burst(): void {
    const { engine } = this;
    do {
      engine.countStep();
      engine.at = this.time;
      this.step();
    } while (this.time < engine.horizon);
  }

  /** Lets local time pass. */
  charge(cycles: number): void {
    this.time += cycles;
  }

  /** Local time: its clock, in cycles. */
  get clock(): number {
    return this.time === FAR ? this.#far : this.engine.epoch + this.time;
  }

  /**
   * Until when it will do nothing that others could notice, counted from the epoch, as long as they leave it alone: whoever
   * only computes up to there may be passed over. Mostly that is its time.
   */
  get quietUntil(): number {
    return this.time;
  }

  /** The run has stopped, or somebody looks: whatever the thread does late, and should have done by now, is done. */
  settle(): void {}

  /** Sets its clock. */
  setClock(clock: number): void {
    this.time = this.engine.timeOf(clock);
    if (this.time === FAR) this.#far = clock;
  }

  /** The epoch has moved on. */
  rebase(by: number): void {
    if (this.time === FAR) this.setClock(this.#far);
    else this.time = rebased(this.time, by);
  }

  /** Whether the core may choose it. */
  get queued(): boolean {
    return this.engine.isQueued(this.id);
  }
}
