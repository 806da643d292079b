/**
 * Measures one figure of one vendor, in a process of its own, where V8 has seen nothing else: what one guest does would
 * be another's detour. Prints it as JSON.
 *
 * @module
 */

import { ACCELERATIONS, type BackendName } from "../../host/mod.ts";
import { broadcast, clusters, ipi, vmcall } from "./guests.ts";
import { contextSwitch, demandFault, flatLoad, tlbHit, tlbMiss } from "./paging.ts";
import type { Stopwatch } from "./stopwatch.ts";

/** The figures that are measured of each vendor, by name. */
export const FIGURES: Record<string, (backend: BackendName) => Stopwatch> = {
  vmcall,
  ipi: (backend) => ipi(backend),
  accelerated: (backend) => ipi(backend, ACCELERATIONS[backend].at(-1)),
  broadcast80: (backend) => broadcast(backend, 80),
  clusters80: (backend) => clusters(backend, 80),
  broadcast512: (backend) => broadcast(backend, 512),
  flatLoad,
  tlbHit,
  tlbMiss,
  contextSwitch,
  demandFault,
};

if (import.meta.main) {
  const [backend, name] = Deno.args as [BackendName, string];
  if (!Object.hasOwn(FIGURES, name)) {
    throw new Error(`Cannot measure ${name}: allowed are ${Object.keys(FIGURES).join(", ")}`);
  }
  console.log(JSON.stringify(FIGURES[name](backend).figure));
}
