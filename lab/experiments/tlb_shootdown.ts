/**
 * TLB shootdowns: what a munmap costs that has to reach more and more processors, and whether all of them have forgotten.
 *
 * @module
 */

import { tlbShootdown } from "../../guest/examples/tlb_shootdown.ts";
import { CALL_FUNCTION_SINGLE_VECTOR, CALL_FUNCTION_VECTOR, type Kernel, tlbOf } from "../../guest/mod.ts";
import {
  type Acceleration,
  ACCELERATIONS,
  BACKENDS,
  Machine,
  StaleTranslation,
  type Vm,
} from "../../host/mod.ts";
import { Stopwatch } from "../measure.ts";
import { grouped, table, wrapped } from "../report/table.ts";
import {
  type Experiment,
  ExperimentFailed,
  type ExperimentOptions,
  type ExperimentResult,
  type ExperimentRun,
  experimentRun,
  SEED,
  type Watcher,
} from "./experiment.ts";

const TODAY = "v6.19";
const NONE = "none";
const SKIP = "skip-one-cpu";

/** The experiment. */
export const tlbShootdownExperiment: Experiment = {
  name: "tlb-shootdown",
  summary: "IPIs and cycles of a munmap on more and more processors, each use of a translation judged",
  backends: BACKENDS,
  options: {
    vcpus: { meaning: "vCPUs of the largest", default: 8, min: 1, max: 64 },
    seed: { ...SEED, meaning: "without effect: nothing is drawn" },
    times: { meaning: "munmaps", default: 20, min: 1, max: 10_000 },
    pages: { meaning: "pages of each", default: 1, min: 1, max: 1024 },
    acceleration: {
      meaning: "of the processor",
      default: NONE,
      choices: [...new Set(Object.values(ACCELERATIONS).flat())],
    },
    quirk: { meaning: "a deviation of the kernel", default: NONE, choices: [NONE, SKIP] },
  },
  run(options: ExperimentOptions, watcher?: Watcher): ExperimentResult {
    const { backend, vcpus, acceleration, quirk } = options;
    const there = ACCELERATIONS[backend];
    if (!there.includes(acceleration as Acceleration)) {
      throw new RangeError(
        `Cannot run tlb-shootdown with acceleration ${acceleration} on ${backend}: allowed are ${
          there.join(", ")
        }`,
      );
    }
    if (quirk === SKIP && vcpus < 2) {
      throw new RangeError("Cannot forget a vCPU where there is one alone: allowed are 2 and more");
    }
    return {
      experiment: this.name,
      options,
      guestSemantics: TODAY,
      hostSemantics: TODAY,
      runs: sizes(vcpus).map((size) => measure(size, options, watcher)),
      published: null,
    };
  },
  report,
};

/** Powers of two, and the largest. */
function sizes(largest: number): number[] {
  const found: number[] = [];
  for (let size = 1; size < largest; size *= 2) found.push(size);
  return [...found, largest];
}

/** One boot of the guest. Throws {@linkcode ExperimentFailed} where a stale translation is used. */
function measure(vcpus: number, options: ExperimentOptions, watcher?: Watcher): ExperimentRun {
  const times = Number(options.times);
  const machine = new Machine({ seed: options.seed, staleness: true });
  const vm = machine.createVm({
    backend: options.backend,
    vcpus,
    acceleration: options.acceleration as Acceleration,
    trace: watcher?.records ?? 0,
  });
  const oracle = machine.staleness!;
  const stopwatch = new Stopwatch(vm);
  const total: Total = { counters: {}, exits: {}, cycles: 0, ipis: 0, flushes: 0, wrong: 0 };
  let before = { ipis: 0, flushes: 0 };
  const kernel = tlbShootdown({
    cpus: vcpus,
    times,
    pages: Number(options.pages),
    paging: {
      ...options.quirk === SKIP && vcpus > 1 ? { shootdownForgets: vcpus - 1 } : {},
      witness: {
        changed: (range) => oracle.changed({ space: "linear", ...range }),
        gone: (range, reason) => oracle.gone({ space: "linear", ...range, reason }),
      },
    },
    begin: () => {
      before = countsOf(vm, kernel);
      stopwatch.restart();
    },
    end: (cycles) => {
      const { counters, exits } = stopwatch.lap();
      const { ipis, flushes } = countsOf(vm, kernel);
      addCounts(total.counters, counters);
      addCounts(total.exits, exits);
      total.cycles += cycles;
      total.ipis += ipis - before.ipis;
      total.flushes += flushes - before.flushes;
    },
    over: (wrong) => total.wrong = wrong,
  });
  vm.load(kernel.text);
  vm.start(kernel.entry);
  try {
    machine.run();
  } catch (failure) {
    if (!(failure instanceof StaleTranslation)) throw failure;
    throw new ExperimentFailed(`tlb-shootdown on ${vcpus} vCPUs: ${failure.message}`, { cause: failure });
  }
  watcher?.done(String(vcpus), vm);
  return experimentRun(String(vcpus), total, times, {
    ipisPerOperation: total.ipis / times,
    flushesPerOperation: total.flushes / times,
    judgedUses: oracle.fresh + oracle.legallyStale,
    staleUses: oracle.legallyStale,
    wrongReads: total.wrong,
  });
}

/** What all munmaps together came to. */
interface Total {
  readonly counters: Record<string, number>;
  readonly exits: Record<string, number>;
  cycles: number;
  ipis: number;
  flushes: number;
  wrong: number;
}

function addCounts(total: Record<string, number>, more: Readonly<Record<string, number>>): void {
  for (const [name, count] of Object.entries(more)) total[name] = (total[name] ?? 0) + count;
}

/** What the guest's processors have counted: call-function interrupts that they took, and flushes. */
function countsOf(vm: Vm, kernel: Kernel): { readonly ipis: number; readonly flushes: number } {
  let ipis = 0;
  let flushes = 0;
  for (let cpu = 0; cpu < kernel.cpus; cpu++) {
    for (const vector of [CALL_FUNCTION_VECTOR, CALL_FUNCTION_SINGLE_VECTOR]) {
      ipis += vm.memory.word(kernel.irqCounter(cpu, vector));
    }
    for (const name of ["fullFlushes", "pageFlushes"] as const) flushes += vm.memory.word(tlbOf(cpu, name));
  }
  return { ipis, flushes };
}

function report(result: ExperimentResult, columns: number): string {
  const { backend, pages, acceleration } = result.options;
  const what = pages === 1 ? "a page" : `${grouped(Number(pages))} pages`;
  const width = Math.min(columns, 100);
  const rows = result.runs.map((run) => [
    run.name,
    grouped(run.figures.ipisPerOperation, 2),
    grouped(run.figures.flushesPerOperation, 2),
    grouped(run.exitsPerOperation, 2),
    grouped(run.cyclesPerOperation),
    grouped(run.figures.judgedUses),
    grouped(run.figures.wrongReads),
  ]);
  const helped = acceleration === NONE ? "" : `, ${acceleration}`;
  return [
    wrapped(
      `A thread on each vCPU reads ${what}, one of them unmaps ${
        pages === 1 ? "it" : "them"
      }, ${backend}${helped}. ` +
        "For one munmap; and what the oracle says of all uses of cached translations",
      width,
    ),
    "",
    table(["vCPUs", "IPIs", "flushes", "exits", "cycles", "uses judged", "failures"], rows, columns),
    "",
    wrapped(WHY, width),
  ].join("\n");
}

const WHY =
  "Why: the kernel interrupts the processors that have the address space loaded, and waits until all have flushed, " +
  "before it uses a page again. A use of what they knew is allowed until then; after that it would be a failure, and " +
  "would have ended the run (--quirk skip-one-cpu shows one). Counts come from executing; cycles come from a first cost " +
  "profile that is not calibrated.";
