/**
 * 64-bit values as two unsigned 32-bit halves: what hot paths use in place of bigint.
 *
 * @module
 */

/** 2^32, the weight of a high half. */
export const HIGH: number = 0x1_0000_0000;

/** The low 32 bits of a whole number below 2^53. */
export function low(value: number): number {
  return value >>> 0;
}

/** Bits 63:32 of a whole number below 2^53. */
export function high(value: number): number {
  return (value / HIGH) >>> 0;
}

/** The number that two halves make; exact below 2^53. */
export function join(lo: number, hi: number): number {
  return (hi >>> 0) * HIGH + (lo >>> 0);
}

/** The unsigned 64-bit integer that two halves make. */
export function u64(lo: number, hi: number): bigint {
  return (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
}

/** The low half of an integer, modulo 2^64. */
export function lowOf(value: bigint): number {
  return Number(BigInt.asUintN(32, value));
}

/** The high half of an integer, modulo 2^64. */
export function highOf(value: bigint): number {
  return Number(BigInt.asUintN(32, value >> 32n));
}

/** The number of bits set in a 32-bit word. */
export function popcount(word: number): number {
  let w = word >>> 0;
  w -= (w >>> 1) & 0x5555_5555;
  w = (w & 0x3333_3333) + ((w >>> 2) & 0x3333_3333);
  return Math.imul((w + (w >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}

/** The position of the highest bit set in a 32-bit word, -1 for none. */
export function highestBit(word: number): number {
  return 31 - Math.clz32(word);
}

/** The position of the lowest bit set in a 32-bit word, -1 for none. */
export function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word);
}

/** A number in hexadecimal with its `0x`. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
