/**
 * What each vendor's processors do for interrupts by themselves, level by level: what a guest sees must not depend on it.
 *
 * @module
 */

import { type Acceleration, ACCELERATIONS, type BackendName, BACKENDS } from "../../host/mod.ts";

/** A vendor and what its processor has. */
export interface Level {
  /** The vendor's virtualization. */
  readonly backend: BackendName;
  /** What its processor does for interrupts by itself. */
  readonly acceleration: Acceleration;
}

/** Every level of every vendor. */
export const LEVELS: readonly Level[] = BACKENDS.flatMap((backend) =>
  ACCELERATIONS[backend].map((acceleration) => ({ backend, acceleration }))
);

/** A level in words. */
export function nameOf({ backend, acceleration }: Level): string {
  return `${backend} with ${acceleration === "none" ? "none" : acceleration}`;
}
