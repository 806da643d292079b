/**
 * What a run may use up. A limit that is hit is an error that names it and how to raise it.
 *
 * @module
 */

/** The limits of a machine. */
export interface Limits {
  /** Steps of the stepping core. */
  readonly steps: number;
  /** VM exits, of all vCPUs together. */
  readonly exits: number;
  /** Simulated time, in cycles; in explored runs, in ticks. */
  readonly cycles: number;
  /** Steps of an explored run: each is recorded. */
  readonly schedule: number;
}

/** What a machine has unless its options say otherwise. */
export const DEFAULT_LIMITS: Limits = { steps: 1e10, exits: 1e9, cycles: 1e15, schedule: 1e7 };

/** A limit was hit. */
export class LimitExceeded extends Error {
  /** The error's name. */
  override readonly name = "LimitExceeded";
  /** Which limit. */
  readonly limit: string;
  /** Its value. */
  readonly value: number;

  /** `limit`, whose value is `value`, was hit. */
  constructor(limit: string, value: number) {
    const what = limit === "schedule" ? "scheduled steps" : limit;
    super(`Cannot go on: the limit of ${value} ${what} is reached; raise limits.${limit} to allow more`);
    this.limit = limit;
    this.value = value;
  }
}

/** Completes limits with the defaults. Throws `RangeError` for a value that is not a positive number. */
export function limitsFrom(limits: Partial<Limits>): Limits {
  for (const [name, value] of Object.entries(limits)) {
    if (!(name in DEFAULT_LIMITS)) {
      throw new RangeError(`Cannot set limit ${name}: allowed are ${Object.keys(DEFAULT_LIMITS).join(", ")}`);
    }
    if (typeof value !== "number" || !(value > 0)) {
      throw new RangeError(`Cannot set limit ${name} to ${value}: allowed are positive numbers`);
    }
  }
  return { ...DEFAULT_LIMITS, ...limits };
}
