/**
 * Measures one vendor's figures in a process of their own, where V8 has seen nothing else, and prints them as JSON.
 *
 * @module
 */

import { ACCELERATIONS, type BackendName } from "../../host/mod.ts";
import { broadcast, clusters, ipi, vmcall } from "./guests.ts";
import type { Stopwatch } from "./stopwatch.ts";

/** A figure: nanoseconds of an operation and of the yardstick beside it. */
export interface Figure {
  /** What was measured. */
  readonly name: string;
  /** Nanoseconds of one operation. */
  readonly operation: number;
  /** Nanoseconds of the yardstick, measured in turn with it. */
  readonly yardstick: number;
}

function figure(name: string, { operation, yardstick }: Stopwatch): Figure {
  return { name, operation, yardstick };
}

if (import.meta.main) {
  const backend = Deno.args[0] as BackendName;
  const figures = [
    figure("vmcall", vmcall(backend)),
    figure("ipi", ipi(backend)),
    figure("accelerated", ipi(backend, ACCELERATIONS[backend].at(-1))),
    figure("broadcast80", broadcast(backend, 80)),
    figure("clusters80", clusters(backend, 80)),
    figure("broadcast512", broadcast(backend, 512)),
  ];
  console.log(JSON.stringify(figures));
}
