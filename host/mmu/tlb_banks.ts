/**
 * How an array of cached translations is divided: a bank for each page size, sets in a bank, ways in a set.
 *
 * @module
 */

import type { PageShift } from "../../abi/mod.ts";

/** The size of a bank. */
export interface BankGeometry {
  /** Sets, a power of two. */
  readonly sets: number;
  /** Entries of a set. */
  readonly ways: number;
}

/** The banks of an array. */
export interface ArrayGeometry {
  /** For pages of 4 KiB. */
  readonly small: BankGeometry;
  /** For pages of 2 MiB. */
  readonly large: BankGeometry;
  /** For pages of 1 GiB. */
  readonly huge: BankGeometry;
}

/** A bank: slots `first` to `first + ways * (setMask + 1)`. */
export interface Bank {
  /** Its first slot. */
  readonly first: number;
  /** One less than its sets. */
  readonly setMask: number;
  /** Entries of a set. */
  readonly ways: number;
  /** Log2 of its pages' bytes. */
  readonly shift: PageShift;
  /** The bits of an address's low half that number a page. */
  readonly pageMask: number;
}

/** The banks of a geometry, the smallest pages first. Throws `RangeError` for a geometry that cannot be. */
export function banksOf(geometry: ArrayGeometry): readonly Bank[] {
  const banks: Bank[] = [];
  let first = 0;
  for (const [name, shift] of [["small", 12], ["large", 21], ["huge", 30]] as const) {
    const { sets, ways } = geometry[name];
    if (!Number.isInteger(sets) || sets < 1 || (sets & (sets - 1)) !== 0) {
      throw new RangeError(
        `Cannot build a TLB with ${sets} sets of ${name} pages: allowed are powers of two`,
      );
    }
    if (!Number.isInteger(ways) || ways < 1) {
      throw new RangeError(`Cannot build a TLB with ${ways} ways for ${name} pages: allowed are 1 and more`);
    }
    banks.push({ first, setMask: sets - 1, ways, shift, pageMask: -(1 << shift) });
    first += sets * ways;
  }
  return banks;
}

/** The first slot of the set that an address belongs to, given by its halves. */
export function setOf(bank: Bank, high: number, low: number): number {
  const page = low >>> bank.shift | high << (32 - bank.shift);
  return bank.first + (page & bank.setMask) * bank.ways;
}
