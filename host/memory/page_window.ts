/**
 * A page of the host's physical memory, as a walk looks at it: words in an array, without an address for each.
 *
 * @module
 */

import type { GuestMemory } from "./guest_memory.ts";

const NOTHING = new Uint32Array(0);

/** What {@linkcode PhysicalSpace.open} has found. */
export class PageWindow {
  /** The array that holds the page. */
  words: Uint32Array = NOTHING;
  /** The page's first word in it. */
  first = 0;
  /** Whose memory it is; undefined for the host's own. */
  memory: GuestMemory | undefined = undefined;
  /** The guest-physical address of the array's first word. */
  base = 0;

  /** A word of the page, signed. */
  word(index: number): number {
    return this.words[this.first + index] | 0;
  }

  /** Sets bits of a word in one locked read-modify-write. */
  or(index: number, bits: number): void {
    const at = this.first + index;
    this.words[at] |= bits;
    const { memory } = this;
    if (memory !== undefined && memory.watched !== 0) memory.stored(this.base + 4 * at, 4);
  }
}
