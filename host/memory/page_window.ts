/**
 * A page of the host's physical memory, as a walk looks at it: words in an array, without an address for each.
 *
 * @module
 */

import type { GuestMemory } from "./guest_memory.ts";
import type { PhysicalSpace } from "./physical_space.ts";
import { PAGE_SIZE } from "./slot.ts";

const NOTHING = new Uint32Array(0);

/** The page that was opened last. */
export class PageWindow {
  /** The array that holds the page. */
  words: Uint32Array = NOTHING;
  /** The page's first word in it. */
  first = 0;
  /** Whose memory it is; undefined for the host's own. */
  memory: GuestMemory | undefined = undefined;
  /** The guest-physical address of the array's first word. */
  base = 0;
  /** The page's host-physical address: bits 63:32. */
  high = 0;
  /** And bits 31:0, signed. */
  low = 0;
  readonly #space: PhysicalSpace;
  #generation = -1;

  /** A window that looks at nothing yet. */
  constructor(space: PhysicalSpace) {
    this.#space = space;
  }

  /** Looks at the page of an address, given by its halves, signed. false where there is no such page. */
  open(high: number, low: number): boolean {
    const page = low & -PAGE_SIZE;
    const { generation } = this.#space;
    if (page === this.low && high === this.high && generation === this.#generation) return true;
    this.high = high;
    this.low = page;
    const found = this.#space.find(this, high, page);
    this.#generation = found ? generation : -1;
    return found;
  }

  /** A word of the page, signed. */
  word(index: number): number {
    return this.words[this.first + index] | 0;
  }

  /** Sets bits of a word in one locked read-modify-write. */
  or(index: number, bits: number): void {
    this.words[this.first + index] |= bits;
    this.stored(index, 4);
  }

  /** Sets a word. The watchers are not told. */
  store(index: number, value: number): void {
    this.words[this.first + index] = value;
  }

  /** Tells watchers of a store of `bytes` bytes to a word and those behind it. */
  stored(index: number, bytes: number): void {
    const { memory } = this;
    if (memory !== undefined && memory.watched !== 0) {
      memory.stored(this.base + 4 * (this.first + index), bytes);
    }
  }
}
