/**
 * Waits of the host's that spin: for a lock, for another CPU.
 *
 * @module
 */

import type { Steps } from "../../core/mod.ts";
import type { Vm } from "../vm.ts";

/** Turns after which nobody moves, or all others do nothing else: it would never end. */
const SPIN_LIMIT = 1_000_000;

/** A lock of the host's. */
export interface HostLock {
  /** Somebody has it. */
  held: boolean;
}

/** Spins while something holds. `what` is it, for the error that says so where it never ends. */
export function* spinWhile({ engine, cost }: Vm, holds: () => boolean, what: string): Steps {
  for (let turns = 0; holds(); turns++) {
    if (turns === SPIN_LIMIT) {
      throw new Error(`Cannot wait for ${what}: nothing else runs; allowed is that in a HostTask`);
    }
    engine.running!.charge(cost.pollTurn);
    yield;
  }
}

/** Does something with a lock, which it waits for first. */
export function* locked<T>(vm: Vm, lock: HostLock, steps: Steps<T>): Steps<T> {
  yield* spinWhile(vm, () => lock.held, "a lock");
  lock.held = true;
  try {
    return yield* steps;
  } finally {
    lock.held = false;
  }
}
