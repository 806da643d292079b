/**
 * State that hardware and other CPUs share with a vCPU: posted-interrupt descriptors, AVIC's tables. Where a vCPU's own
 * thread gets at it through the vendor module, and how: a step an access in explored runs, all at once otherwise.
 *
 * @module
 */

import { type Steps, straight } from "../core/mod.ts";
import type { Backend } from "./backend.ts";
import type { Vcpu } from "./vcpu.ts";

/** In the run loop, where other threads may come between. */
export function* shared(vcpu: Vcpu, what: (backend: Backend) => Steps<unknown> | undefined): Steps {
  if (!vcpu.vm.enableApicv) return;
  const steps = what(vcpu.backend);
  if (steps === undefined) return;
  if (vcpu.engine.explores) yield* steps;
  else straight(steps);
}

/** In plain functions: moves what was posted to the IRR, at once. Answers with the highest request, -1 for none. */
export function syncPosted(vcpu: Vcpu): number {
  const steps = vcpu.backend.syncPirToIrr();
  return steps === undefined ? vcpu.lapic.highestIrr() : straight(steps);
}
