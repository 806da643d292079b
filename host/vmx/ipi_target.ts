/**
 * Where a processor's IPIs went last: mostly the next one goes there too, and need not find the way again.
 *
 * @module
 */

import type { PiDescriptor } from "./posted_descriptor.ts";

/** An entry of the PID-pointer table that was followed, and the descriptor to which it led. */
export class IpiTarget {
  #low = 0;
  #high = 0;
  #freed = 0;
  #descriptor: PiDescriptor | undefined = undefined;

  /**
   * The descriptor to which an entry leads, if it is this one. `freed` is how many blocks of the host's memory were freed
   * by now: it may have been one of those.
   */
  find(low: number, high: number, freed: number): PiDescriptor | undefined {
    return low === this.#low && high === this.#high && freed === this.#freed ? this.#descriptor : undefined;
  }

  /** An entry was followed, and led to a descriptor or to nowhere. Answers with that. */
  keep(
    low: number,
    high: number,
    freed: number,
    descriptor: PiDescriptor | undefined,
  ): PiDescriptor | undefined {
    this.#low = low;
    this.#high = high;
    this.#freed = freed;
    return this.#descriptor = descriptor;
  }
}
