/**
 * The one source of nondeterminism: whatever is chosen or drawn in a run comes from here, so that a seed, or a record
 * of what was drawn, repeats it.
 *
 * @module
 */

/** Where choices and random data come from. */
export interface Entropy {
  /** A whole number from 0 to `count - 1`. */
  choose(count: number): number;
  /** 32 random bits. */
  bits(): number;
}

/** The largest seed. */
export const SEED_LIMIT: number = Number.MAX_SAFE_INTEGER;

/** Vouches for a seed. Throws `RangeError` for anything but a whole number from 0 to 2^53 - 1. */
export function checkSeed(seed: number): number {
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new RangeError(`Cannot use seed ${seed}: allowed are whole numbers from 0 to ${SEED_LIMIT}`);
  }
  return seed;
}

/** Pseudo-random numbers from a seed: the sfc32 generator (PractRand 0.95), 128 bits of state, integers alone. */
export class SeededEntropy implements Entropy {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  /** A generator that gives the same numbers for the same seed, and others in each stream of it. */
  constructor(seed: number, stream: number = 0) {
    checkSeed(seed);
    this.#a = stream;
    this.#b = (seed / 2 ** 32) | 0;
    this.#c = seed | 0;
    for (let i = 0; i < 15; i++) this.bits();
  }

  /** 32 random bits. */
  bits(): number {
    const result = (this.#a + this.#b + this.#counter++) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + result) | 0;
    return result >>> 0;
  }

  /** A whole number from 0 to `count - 1`, each equally likely. Throws `RangeError` unless 1 <= `count` <= 2^32. */
  choose(count: number): number {
    if (!Number.isInteger(count) || count < 1 || count > 2 ** 32) {
      throw new RangeError(`Cannot choose among ${count}: allowed are 1 to 2^32`);
    }
    const fair = 2 ** 32 - (2 ** 32 % count);
    for (;;) {
      const drawn = this.bits();
      if (drawn < fair) return drawn % count;
    }
  }
}
