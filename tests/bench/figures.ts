/**
 * Measures one vendor's figures, those of interrupts together or one that is named, in a process of their own, where V8
 * has seen nothing else, and prints them as JSON.
 *
 * @module
 */

import { ACCELERATIONS, type BackendName } from "../../host/mod.ts";
import { broadcast, clusters, ipi, vmcall } from "./guests.ts";
import { contextSwitch, demandFault, flatLoad, tlbHit, tlbMiss } from "./paging.ts";
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

/** What translation costs: each in a process of its own, as one's kinds of access would be another's. */
const TRANSLATION = new Map([
  ["flatLoad", flatLoad],
  ["tlbHit", tlbHit],
  ["tlbMiss", tlbMiss],
  ["contextSwitch", contextSwitch],
  ["demandFault", demandFault],
]);

function ofInterrupts(backend: BackendName): Figure[] {
  return [
    figure("vmcall", vmcall(backend)),
    figure("ipi", ipi(backend)),
    figure("accelerated", ipi(backend, ACCELERATIONS[backend].at(-1))),
    figure("broadcast80", broadcast(backend, 80)),
    figure("clusters80", clusters(backend, 80)),
    figure("broadcast512", broadcast(backend, 512)),
  ];
}

if (import.meta.main) {
  const [backend, name] = Deno.args as [BackendName, string?];
  const translation = name === undefined ? undefined : TRANSLATION.get(name);
  const figures = name === undefined || translation === undefined
    ? ofInterrupts(backend)
    : [figure(name, translation(backend))];
  console.log(JSON.stringify(figures));
}
