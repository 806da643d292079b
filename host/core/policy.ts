/**
 * Who runs next.
 *
 * - *timed*: the thread with the smallest local clock, ties by number: a discrete-event simulation.
 * - *random*: any thread that can run, drawn from a seed. Time is one tick a step, and armed timers are threads that
 *   may be drawn.
 * - *replay*: as a recorded schedule says; a schedule that asks for a thread that cannot run is an error.
 *
 * @module
 */

import { type Entropy, SeededEntropy } from "./entropy.ts";
import { parseSchedule, type Schedule } from "./schedule.ts";

/** How a machine is told its policy. */
export type PolicySpec =
  /** Smallest clock next. */
  | "timed"
  /** Drawn from a seed. */
  | { readonly random: number }
  /** As recorded: a schedule, or the line that it prints as. Data is drawn from `seed`: give the random run's. */
  | { readonly replay: Schedule | string; readonly seed?: number };

/** The choice of the next thread in an explored run. */
export interface Explorer {
  /** Random data for the run. */
  readonly entropy: Entropy;
  /** The place in `candidates` (thread numbers, ascending) of the thread that takes step `step`; -1 ends the run. */
  pick(candidates: readonly number[], step: number): number;
}

/** A replay asked for a thread that cannot run. */
export class ReplayDiverged extends Error {
  /** The error's name. */
  override readonly name = "ReplayDiverged";
  /** The step, counted from 0. */
  readonly step: number;

  /** A divergence at `step`, where `wanted` was recorded and `candidates` can run. */
  constructor(step: number, wanted: number, candidates: readonly number[]) {
    super(`Cannot replay step ${step}: thread ${wanted} cannot run, only ${candidates.join(", ")} can`);
    this.step = step;
  }
}

/** Choices have a stream of their own, so that a replay draws the data that the random run drew. */
const CHOICES = 1;

class RandomExplorer implements Explorer {
  readonly entropy: Entropy;
  readonly #choices: Entropy;
  constructor(seed: number) {
    this.entropy = new SeededEntropy(seed);
    this.#choices = new SeededEntropy(seed, CHOICES);
  }
  pick(candidates: readonly number[]): number {
    return this.#choices.choose(candidates.length);
  }
}

class ReplayExplorer implements Explorer {
  readonly entropy: Entropy;
  readonly #schedule: Schedule;
  constructor(schedule: Schedule, seed: number) {
    this.#schedule = schedule;
    this.entropy = new SeededEntropy(seed);
  }
  pick(candidates: readonly number[], step: number): number {
    if (step >= this.#schedule.length) return -1;
    const wanted = this.#schedule[step];
    const place = candidates.indexOf(wanted);
    if (place < 0) throw new ReplayDiverged(step, wanted, candidates);
    return place;
  }
}

/** The explorer that a policy asks for; undefined for the timed policy. */
export function explorerOf(policy: PolicySpec): Explorer | undefined {
  if (policy === "timed") return undefined;
  if ("random" in policy) return new RandomExplorer(policy.random);
  const { replay, seed = 0 } = policy;
  return new ReplayExplorer(typeof replay === "string" ? parseSchedule(replay) : replay, seed);
}
