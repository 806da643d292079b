/**
 * Tables of tracepoints: each architecture's KVM has its own.
 *
 * @module
 */

import type { TracepointSpec } from "../trace/mod.ts";

/** Tracepoints and their numbers. */
export interface TracepointTable<Name extends string> {
  /** Every tracepoint, by number. */
  readonly specs: readonly TracepointSpec[];
  /** The numbers. */
  readonly numbers: Readonly<Record<Name, number>>;
}

/** A table from what each event records, and when it fires. */
export function tracepointTable<Name extends string>(
  events: Readonly<Record<Name, Pick<TracepointSpec, "args" | "fires">>>,
): TracepointTable<Name> {
  const names = Object.keys(events) as Name[];
  return {
    specs: names.map((name) => ({ name, in2012: false, ...events[name] })),
    numbers: Object.fromEntries(names.map((name, number) => [name, number])) as Record<Name, number>,
  };
}
