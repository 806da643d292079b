/**
 * The status flags that additions and comparisons leave in RFLAGS (SDM 1 3.4.3.1).
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { FLAG_AF, FLAG_CF, FLAG_OF, FLAG_PF, FLAG_SF, FLAG_ZF } = abi;

/** The flags that an arithmetic instruction gives a value. */
export const STATUS_FLAGS: number = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF;

/** Of `a + b`, 32 bits each. */
export function additionFlags(a: number, b: number): number {
  const result = (a + b) >>> 0;
  return flags(result < (a >>> 0), (a ^ result) & (b ^ result), result, result) | auxiliary(a, b, result);
}

/** Of comparing `a` with `b`, 32 bits each: of `a - b`. */
export function comparisonFlags(a: number, b: number): number {
  const result = (a - b) >>> 0;
  return flags((a >>> 0) < (b >>> 0), (a ^ b) & (a ^ result), result, result) | auxiliary(a, b, result);
}

/** Of comparing 64-bit numbers, each given by its low and its high half. */
export function comparisonFlags64(aLow: number, aHigh: number, bLow: number, bHigh: number): number {
  const borrow = (aLow >>> 0) < (bLow >>> 0) ? 1 : 0;
  const low = (aLow - bLow) >>> 0;
  const high = (aHigh - bHigh - borrow) >>> 0;
  const below = (aHigh >>> 0) < (bHigh >>> 0) || (aHigh >>> 0 === bHigh >>> 0 && borrow === 1);
  return flags(below, (aHigh ^ bHigh) & (aHigh ^ high), low, high) | auxiliary(aLow, bLow, low);
}

/** From the carry, a word whose sign is the overflow, and the result's lowest and highest word. */
function flags(carry: boolean, overflow: number, low: number, high: number): number {
  const folded = (low ^ (low >>> 4)) & 0xf;
  return (carry ? FLAG_CF : 0) |
    ((0x6996 >>> folded) & 1 ? 0 : FLAG_PF) |
    ((low | high) === 0 ? FLAG_ZF : 0) |
    (high >>> 31 ? FLAG_SF : 0) |
    (overflow < 0 ? FLAG_OF : 0);
}

/** The carry between the lowest two nibbles. */
function auxiliary(a: number, b: number, result: number): number {
  return (a ^ b ^ result) & FLAG_AF;
}
