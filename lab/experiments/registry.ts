/**
 * The experiments. A new one is a file and a line here.
 *
 * @module
 */

import type { Experiment } from "./experiment.ts";
import { avicKickExperiment } from "./avic_kick.ts";
import { demandPagingExperiment } from "./demand_paging.ts";
import { hypercallsExperiment } from "./hypercalls.ts";
import { ipivExperiment } from "./ipiv.ts";
import { pvEoiExperiment } from "./pv_eoi.ts";
import { pvIpiExperiment } from "./pv_ipi.ts";
import { tlbShootdownExperiment } from "./tlb_shootdown.ts";

/** Every experiment. */
export const EXPERIMENTS: readonly Experiment[] = [
  pvEoiExperiment,
  pvIpiExperiment,
  ipivExperiment,
  avicKickExperiment,
  demandPagingExperiment,
  tlbShootdownExperiment,
  hypercallsExperiment,
];

/** The experiment of a name. Throws `RangeError` naming those that there are. */
export function experimentNamed(name: string): Experiment {
  const found = EXPERIMENTS.find((experiment) => experiment.name === name);
  if (found === undefined) {
    throw new RangeError(
      `Cannot run experiment ${name}: allowed are ${
        EXPERIMENTS.map((experiment) => experiment.name).join(", ")
      }`,
    );
  }
  return found;
}
