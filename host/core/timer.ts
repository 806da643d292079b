/**
 * A one-shot timer of the host: a thread that runs once, at the time it is armed for.
 *
 * @module
 */

import type { Engine } from "./engine.ts";
import { Thread } from "./thread.ts";

/** Calls back at a point in time; can be armed again and cancelled. */
export class Timer extends Thread {
  readonly #expired: () => void;

  /** A timer that is not armed. */
  constructor(engine: Engine, name: string, expired: () => void) {
    super(engine, name);
    this.#expired = expired;
  }

  /** Arms it for time `at`, in cycles, whatever it was armed for before. */
  arm(at: number): void {
    this.engine.wake(this, at);
  }

  /** Disarms it. */
  cancel(): void {
    this.engine.park(this);
  }

  /** Expires: disarms itself and calls back. */
  override step(): void {
    this.engine.park(this);
    this.#expired();
  }
}
