/**
 * Threads without processors, for tests of the stepping core.
 *
 * @module
 */

import { DEFAULT_LIMITS, Engine, type Limits, type PolicySpec, Thread } from "../../host/mod.ts";

/** What a script does: each `yield` ends a step and lets so many cycles pass. */
export type Story = (thread: Script) => Generator<number, void, void>;

/** A thread that runs a generator to its end. */
export class Script extends Thread {
  readonly #story: Generator<number, void, void>;

  /** A script that can run from clock `at` on. */
  constructor(engine: Engine, name: string, story: Story, at: number = 0) {
    super(engine, name);
    this.#story = story(this);
    engine.wake(this, at);
  }

  /** Up to the next `yield`. */
  override step(): void {
    const { value, done } = this.#story.next();
    if (done) this.engine.park(this);
    else this.charge(value);
  }
}

/** A core under a policy, with the default limits unless others are given. */
export function engineUnder(policy: PolicySpec = "timed", limits: Partial<Limits> = {}): Engine {
  return new Engine(policy, { ...DEFAULT_LIMITS, ...limits });
}
