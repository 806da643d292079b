/**
 * Cycles of the constant-rate time-stamp counter, and nanoseconds, in whole numbers.
 *
 * @module
 */

const NS_PER_MS = 1_000_000;

/** The whole nanoseconds in `cycles` cycles of a counter at `khz` kHz. */
export function cyclesToNs(cycles: number, khz: number): number {
  const ms = Math.floor(cycles / khz);
  return ms * NS_PER_MS + Math.floor((cycles - ms * khz) * NS_PER_MS / khz);
}

/** The first cycle at which `ns` nanoseconds are over. */
export function nsToCycles(ns: number, khz: number): number {
  const ms = Math.floor(ns / NS_PER_MS);
  return ms * khz + Math.ceil((ns - ms * NS_PER_MS) * khz / NS_PER_MS);
}
