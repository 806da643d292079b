/**
 * Somebody who watches what the kernel does to translations, and whom it owes: a test or a laboratory that knows what
 * the hardware still remembers. It costs the kernel nothing.
 *
 * @module
 */

/** Linear addresses of user space. */
export interface AddressRange {
  /** The first. */
  readonly address: number;
  /** How many. */
  readonly bytes: number;
}

/** Watches. */
export interface TranslationWitness {
  /** The kernel is about to change the tables' entries of a range; accessed and dirty flags aside. */
  changed(range: AddressRange): void;
  /** The kernel relies on it that nobody uses the old translations of a range any more: its shootdown is complete. */
  gone(range: AddressRange, reason: string): void;
}

/** Nobody watches. */
export const NO_WITNESS: TranslationWitness = {
  changed(): void {},
  gone(): void {},
};
