/**
 * Demand paging: what a page costs that comes when it is touched, and what it costs from then on.
 *
 * @module
 */

import { demandPaging, type Phase, PHASES } from "../../guest/examples/demand_paging.ts";
import { BACKENDS, Machine, type Vm } from "../../host/mod.ts";
import { Stopwatch } from "../measure.ts";
import { grouped, table, wrapped } from "../report/table.ts";
import {
  type Experiment,
  type ExperimentOptions,
  type ExperimentResult,
  type ExperimentRun,
  experimentRun,
  SEED,
  type Watcher,
} from "./experiment.ts";

const TODAY = "v6.19";
/** What fits into the default memory of a virtual machine beside the kernel. */
const PAGES = 8192;

/** The experiment. */
export const demandPagingExperiment: Experiment = {
  name: "demand-paging",
  summary: "page faults, walks, exits and cycles of pages that come when they are touched",
  backends: BACKENDS,
  options: {
    vcpus: { meaning: "vCPUs", default: 1, min: 1, max: 1 },
    seed: { ...SEED, meaning: "without effect: nothing is drawn" },
    pages: { meaning: "pages that are touched", default: 4096, min: 1, max: PAGES },
  },
  run(options: ExperimentOptions, watcher?: Watcher): ExperimentResult {
    return {
      experiment: this.name,
      options,
      guestSemantics: TODAY,
      hostSemantics: TODAY,
      runs: measure(options, watcher),
      published: null,
    };
  },
  report,
};

/** One boot of the guest: a run for each phase. */
function measure(options: ExperimentOptions, watcher?: Watcher): ExperimentRun[] {
  const pages = Number(options.pages);
  const vm = new Machine({ seed: options.seed }).createVm({
    backend: options.backend,
    trace: watcher?.records ?? 0,
  });
  const stopwatch = new Stopwatch(vm);
  const runs: ExperimentRun[] = [];
  let walks = [0, 0];
  let counts = stopwatch.lap();
  const kernel = demandPaging({
    pages,
    begin: () => {
      walks = walksOf(vm);
      stopwatch.restart();
    },
    end: () => {
      counts = stopwatch.lap();
      const now = walksOf(vm);
      walks = now.map((count, n) => count - walks[n]);
    },
    measured: (phase: Phase, { cycles, faults }) => {
      runs.push(experimentRun(phase, { ...counts, cycles }, pages, {
        faultsPerOperation: faults / pages,
        walksPerOperation: walks[0] / pages,
        walkAccessesPerOperation: walks[1] / pages,
      }));
    },
  });
  vm.load(kernel.text);
  vm.start(kernel.entry);
  vm.machine.run();
  watcher?.done(TODAY, vm);
  return runs;
}

/** Walks of the only vCPU, and the accesses to tables that they have made. */
function walksOf(vm: Vm): number[] {
  const { walks, walkAccesses } = vm.bootstrap.processor.mmu!;
  return [walks, walkAccesses];
}

function report(result: ExperimentResult, columns: number): string {
  const { backend, pages } = result.options;
  const width = Math.min(columns, 100);
  const rows = PHASES.flatMap((phase) => result.runs.filter(({ name }) => name === phase)).map((run) => [
    run.name,
    grouped(run.figures.faultsPerOperation, 2),
    grouped(run.figures.walksPerOperation, 2),
    grouped(run.figures.walkAccessesPerOperation, 2),
    grouped(run.exitsPerOperation, 2),
    grouped(run.cyclesPerOperation),
  ]);
  return [
    wrapped(`A program touches ${grouped(Number(pages))} pages, ${backend}. For one page:`, width),
    "",
    table(["", "faults", "walks", "table accesses", "exits", "cycles"], rows, columns),
    "",
    wrapped(WHY, width),
  ].join("\n");
}

const WHY =
  "Why: what is read first gets the one page of zeroes, so that the write that follows faults once more, and has that " +
  "translation flushed; what is written first gets a page of its own at once. Exits are the host's own faults: it, too, " +
  "has no page until one is touched, and the frames of the last row are used for the second time. The TLB holds at most " +
  "1,536 pages: where more are touched, reading them again walks, without a fault. Counts come from executing; cycles " +
  "come from a first cost profile that is not calibrated.";
