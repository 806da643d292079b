/**
 * The slot of a TLB array that answered last for a page: a place to look at first. It answers again if it still matches,
 * as a search would, which prefers the smallest page: so a larger one is remembered only until the tags change, or one
 * is cached that may be in its place.
 *
 * @module
 */

/** Places for slots. */
const PLACES = 512;
/** Log2 of the smallest page's bytes. */
const SMALL_SHIFT = 12;

/** Remembered slots, by the page's number and the tags. One that was never told is slot 0: it must be looked at. */
export class SlotHints {
  readonly #slots = new Int32Array(PLACES);
  #salt = 0;
  #large = false;

  /** Accesses have these tags from now on. */
  retag(vpid: number, pcid: number): void {
    this.#salt = (vpid + pcid) << 5;
    this.forgetLarge();
  }

  /** The slot to look at first for an address, given by its low half. */
  at(low: number): number {
    return this.#slots[((low >>> SMALL_SHIFT) ^ this.#salt) & (PLACES - 1)];
  }

  /** A slot answers for an address: is its page one of the smallest? */
  remember(low: number, slot: number, smallest: boolean): void {
    this.#slots[((low >>> SMALL_SHIFT) ^ this.#salt) & (PLACES - 1)] = slot;
    if (!smallest) this.#large = true;
  }

  /** Forgets the slots of larger pages, and with them all. */
  forgetLarge(): void {
    if (!this.#large) return;
    this.#slots.fill(0);
    this.#large = false;
  }
}
