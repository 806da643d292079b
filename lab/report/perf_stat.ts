/**
 * `perf stat -e 'kvm:*'`: how often each tracepoint fired, under today's names or in the rows of 2012.
 *
 * @module
 */

import { TRACEPOINTS } from "../../host/mod.ts";
import { grouped, table } from "./table.ts";

/** A column of counts, by today's names. */
export interface PerfStatColumn {
  /** Its title. */
  readonly title: string;
  /** The counts. */
  readonly counters: Readonly<Record<string, number>>;
}

/**
 * The row of 2012 that a tracepoint of today is counted in, by today's name; tracepoints that came later have none.
 */
export const ROWS_OF_2012: Readonly<Record<string, string>> = Object.fromEntries(
  TRACEPOINTS.flatMap(({ name, in2012 }) => in2012 ? [[name, name]] : []),
);

/**
 * A table of counts, one row a tracepoint. Rows in which every column is 0 are left out.
 *
 * @example What a run did
 * ```ts
 * import { perfStat } from "@exitless/exitless/lab";
 * import { assertStringIncludes } from "@std/assert";
 *
 * const text = perfStat([{ title: "count", counters: { kvm_exit: 3, kvm_entry: 3 } }], 80);
 * assertStringIncludes(text, "kvm:kvm_exit");
 * ```
 */
export function perfStat(columns: readonly PerfStatColumn[], width: number): string {
  const rows = TRACEPOINTS.map(({ name }) => [name, ...columns.map((c) => c.counters[name] ?? 0)] as const)
    .filter(([, ...counts]) => counts.some((count) => count !== 0))
    .map(([name, ...counts]) => [`kvm:${name}`, ...counts.map((count) => grouped(count))]);
  return table(["", ...columns.map(({ title }) => title)], rows, width);
}

/** A published row: the name of 2012, and its counts. */
export type PublishedRow = readonly [event: string, ...counts: number[]];

/**
 * Measured counts beside published ones, in the published rows and under their names. A dash stands for a tracepoint
 * that this host does not have. Rows in which everything is 0 are left out.
 */
export function perfStatBeside(
  measured: readonly PerfStatColumn[],
  published: { readonly titles: readonly string[]; readonly rows: readonly PublishedRow[] },
  width: number,
): string {
  const today = new Map(Object.entries(ROWS_OF_2012).map(([name, row]) => [row, name]));
  const rows: string[][] = [];
  for (const [event, ...counts] of published.rows) {
    const name = today.get(event);
    const cells = measured.map(({ counters }) => name === undefined ? undefined : counters[name] ?? 0);
    if ([...cells, ...counts].every((count) => count === 0 || count === undefined)) continue;
    rows.push([
      `kvm:${event}`,
      ...cells.map((count) => count === undefined ? "-" : grouped(count)),
      ...counts.map((count) => grouped(count)),
    ]);
  }
  return table(["", ...measured.map(({ title }) => title), ...published.titles], rows, width);
}
