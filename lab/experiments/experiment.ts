/**
 * What an experiment is, what it can be told, and what it answers: the object that `--json` prints.
 *
 * @module
 */

import type { GuestSemantics } from "../../guest/mod.ts";
import type { BackendName, HostSemantics, MipsVm, PpcVm, S390Vm, Vm } from "../../host/mod.ts";
import type { Counts } from "../measure.ts";

/** What every experiment can be told. */
export interface ExperimentOptions {
  /** Which vendor's virtualization; without meaning in an experiment that has no backends. */
  readonly backend: BackendName;
  /** vCPUs. */
  readonly vcpus: number;
  /** What random data is drawn from. */
  readonly seed: number;
  /** The experiment's own options, by name. */
  readonly [name: string]: number | string;
}

/** A number that an experiment can be told. */
export interface NumberSpec {
  /** What it is. */
  readonly meaning: string;
  /** What it is when nothing is said. */
  readonly default: number;
  /** The smallest. */
  readonly min: number;
  /** The largest. */
  readonly max: number;
}

/** A name that an experiment can be told. */
export interface ChoiceSpec {
  /** What it is. */
  readonly meaning: string;
  /** What it is when nothing is said. */
  readonly default: string;
  /** The names. */
  readonly choices: readonly string[];
}

/** What an experiment can be told. */
export type OptionSpec = NumberSpec | ChoiceSpec;

/** What an option may be, for people. */
export function allowed(spec: OptionSpec): string {
  if ("choices" in spec) return spec.choices.join(", ");
  return spec.min === spec.max ? String(spec.min) : `${spec.min} to ${spec.max}`;
}

/** One run of an experiment. */
export interface ExperimentRun extends Counts {
  /** The run's name. */
  readonly name: string;
  /** Whose guest, where it is another than the experiment's. */
  readonly guestSemantics?: GuestSemantics;
  /** Whose host, where it is another than the experiment's. */
  readonly hostSemantics?: HostSemantics;
  /** Simulated cycles. */
  readonly cycles: number;
  /** How often what is measured was done. */
  readonly operations: number;
  /** Cycles by operations. */
  readonly cyclesPerOperation: number;
  /** Exits by operations, of all vCPUs together. */
  readonly exitsPerOperation: number;
  /** What only this experiment has. */
  readonly figures: Readonly<Record<string, number>>;
}

/** What an experiment found. */
export interface ExperimentResult {
  /** Its name. */
  readonly experiment: string;
  /** What it was told; null where its architecture has no such thing. */
  readonly options: Readonly<Record<string, number | string | null>>;
  /** Whose guest; null for architectures whose guests are not told apart. */
  readonly guestSemantics: GuestSemantics | null;
  /** Whose host; null for those whose hosts are told apart by other things. */
  readonly hostSemantics: HostSemantics | null;
  /** The runs. */
  readonly runs: readonly ExperimentRun[];
  /** The published figures that it stands beside; null where there are none. */
  readonly published: unknown;
}

/** A virtual machine of any architecture. */
export type AnyVm = Vm | S390Vm | PpcVm | MipsVm;

/** Somebody who wants to see more than counts. */
export interface Watcher {
  /** Trace records to keep of each boot of a guest. */
  readonly records: number;
  /** A virtual machine has done its part; `name` says which one it was. */
  readonly done: (name: string, vm: AnyVm) => void;
}

/** An experiment. */
export interface Experiment {
  /** Its name, as the command line has it. */
  readonly name: string;
  /** One line: what it shows. */
  readonly summary: string;
  /** The vendors on which it can be run; the first is the usual one. None where its architecture has no vendors. */
  readonly backends: readonly BackendName[];
  /** What it can be told, by name; `vcpus` and `seed` are among them. */
  readonly options: Readonly<Record<string, OptionSpec>>;
  /**
   * Itself with some options chosen, where the others depend on them; undefined where the choice is none. Experiments whose
   * options are always the same do not have this.
   */
  narrowed?(given: Readonly<Record<string, unknown>>): Experiment | undefined;
  /** Runs it. Throws `RangeError` for options that cannot be. */
  run(options: ExperimentOptions, watcher?: Watcher): ExperimentResult;
  /** The result as text, at most `columns` wide where it can be. */
  report(result: ExperimentResult, columns: number): string;
}

/** What a run has found to be wrong with the guest or the host that it watched: it says so and ends. */
export class ExperimentFailed extends Error {
  /** The error's name. */
  override readonly name = "ExperimentFailed";
}

/** The option that every experiment has. */
export const SEED: NumberSpec = {
  meaning: "what random data is drawn from",
  default: 0,
  min: 0,
  max: Number.MAX_SAFE_INTEGER,
};

/**
 * Fills in what was not said and checks what was; without `backend` it is the usual one. Throws `RangeError` for a name or a
 * value that is not allowed, naming those that are.
 */
export function experimentOptions(
  experiment: Experiment,
  backend: string | undefined,
  given: Readonly<Record<string, number | string>>,
): ExperimentOptions {
  const { name, backends, options } = experiment.narrowed?.(given) ?? experiment;
  const vendor = backend === undefined ? backends[0] : backends.find((one) => one === backend);
  if (backend !== vendor && backend !== undefined) {
    throw new RangeError(
      `Cannot run ${name} on backend ${backend}: allowed are ${backends.join(", ") || "none"}`,
    );
  }
  for (const option of Object.keys(given)) {
    if (!Object.hasOwn(options, option)) {
      throw new RangeError(
        `Cannot tell ${name} ${option}: allowed are ${Object.keys(options).join(", ")}`,
      );
    }
  }
  const checked = checkedOptions(`run ${name}`, options, given);
  return { vcpus: 1, seed: 0, ...checked, backend: vendor ?? "vmx" };
}

/**
 * Fills in what was not said and checks what was; `doing` is what it is for. Throws `RangeError` for a value that is not
 * allowed.
 */
export function checkedOptions(
  doing: string,
  specs: Readonly<Record<string, OptionSpec>>,
  given: Readonly<Record<string, number | string>>,
): Record<string, number | string> {
  const options: Record<string, number | string> = {};
  for (const [name, spec] of Object.entries(specs)) {
    const value = given[name] ?? spec.default;
    if (!fits(spec, value)) {
      throw new RangeError(`Cannot ${doing} with ${name} ${value}: allowed are ${allowed(spec)}`);
    }
    options[name] = value;
  }
  return options;
}

function fits(spec: OptionSpec, value: number | string): boolean {
  if ("choices" in spec) return spec.choices.some((name) => name === value);
  return Number.isSafeInteger(value) && Number(value) >= spec.min && Number(value) <= spec.max;
}

/** A run's counts with its averages. */
export function experimentRun(
  name: string,
  counts: Counts & { readonly cycles: number },
  operations: number,
  figures: Readonly<Record<string, number>> = {},
): ExperimentRun {
  const { counters, exits, cycles } = counts;
  return {
    name,
    counters,
    exits,
    cycles,
    operations,
    cyclesPerOperation: cycles / operations,
    // Not by the tracepoint: s390 calls it otherwise, and VZ on MIPS fires it twice an exit.
    exitsPerOperation: Object.values(exits).reduce((sum, count) => sum + count, 0) / operations,
    figures,
  };
}
