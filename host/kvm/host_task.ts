/**
 * A thread of the host that is no vCPU's: QEMU's that migrates a guest, kswapd. What it does may have to wait for vCPUs to
 * leave guest mode, or for anything else that takes steps.
 *
 * @module
 */

import { type Engine, type Steps, Thread } from "../core/mod.ts";

/** Does something once, and ends. */
export class HostTask<T = void> extends Thread {
  /** What it came to; undefined while it has not ended. */
  result: T | undefined = undefined;
  /** It has ended. */
  done = false;
  readonly #steps: Steps<T>;

  /** Begins at clock `at`, and does what `steps` do, a step each. */
  constructor(engine: Engine, name: string, steps: Steps<T>, at: number = 0) {
    super(engine, name);
    this.#steps = steps;
    engine.wake(this, at);
  }

  /** Up to the next `yield`. */
  override step(): void {
    const { done, value } = this.#steps.next();
    if (done !== true) return;
    this.done = true;
    this.result = value;
    this.engine.park(this);
  }
}
