/**
 * A sleeping lock of the host: a thread that finds it taken cannot run until it is free.
 *
 * @module
 */

import type { Engine } from "./engine.ts";
import type { Thread } from "./thread.ts";

/** Mutual exclusion among the threads of one core. */
export class Mutex {
  readonly #engine: Engine;
  readonly #waiting: Thread[] = [];
  #held = false;

  /** A lock that is free. */
  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Takes the lock for the running thread. Ends a step as often as somebody else has it. */
  *lock(): Generator<void, void, void> {
    while (this.#held) {
      const thread = this.#engine.running!;
      this.#waiting.push(thread);
      this.#engine.park(thread);
      yield;
    }
    this.#held = true;
  }

  /** Frees the lock: those who wait try again, and not earlier than now. */
  unlock(): void {
    this.#held = false;
    const { now } = this.#engine;
    for (const thread of this.#waiting.splice(0)) this.#engine.wake(thread, Math.max(thread.clock, now));
  }
}
