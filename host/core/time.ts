/**
 * Time. A clock is a whole number of cycles, as a double. Where speed matters, time is counted from the engine's epoch
 * instead, in small integers; the epoch moves on every now and then, and everybody who keeps such a time is told.
 *
 * @module
 */

/** A time further away than small integers are used for: whoever has it keeps the clock beside it. */
export const FAR = 0x3fff_ffff;
/** A time further back than anybody looks. */
export const LONG_AGO: number = -FAR;

/** Whoever keeps times that are counted from the epoch. */
export interface Rebased {
  /** The epoch has moved on by `by` cycles: takes them off every time that is not {@linkcode FAR}. */
  rebase(by: number): void;
}

/** A time, counted from an epoch that is `by` cycles later. Not for {@linkcode FAR}. */
export function rebased(time: number, by: number): number {
  return Math.max(time - by, LONG_AGO) | 0;
}
