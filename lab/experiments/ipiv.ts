/**
 * IPI virtualization, as of 2021: the round trip of an IPI between two vCPUs that do not halt, in xAPIC and x2APIC mode,
 * on processors that do more and more of it by themselves.
 *
 * @module
 */

import { ipiRoundTrip, type RoundTripTiming, SENDER, TARGET } from "../../guest/examples/ipiv.ts";
import type { ApicName } from "../../guest/mod.ts";
import {
  type Acceleration,
  ACCELERATIONS,
  type BackendName,
  BACKENDS,
  type HostSemantics,
  Machine,
} from "../../host/mod.ts";
import { Stopwatch } from "../measure.ts";
import published from "../published/ipiv_2021.json" with { type: "json" };
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

const YEAR = "2021";
/** KVM's, by vendor: x2AVIC came a year after the series. */
const HOSTS: Readonly<Record<BackendName, HostSemantics>> = { vmx: YEAR, svm: "2022" };
/** The published test has two. */
const PUBLISHED_VCPUS = 2;
/** KVM_MAX_VCPUS of that year is more, but an xAPIC's ID has 8 bits, and 255 is everybody's. */
const VCPUS = 255;

/** The modes, by the names of the runs. */
const MODES: Readonly<Record<string, ApicName>> = { xapic: "xapic", x2apic: "x2apic-physical" };
/** What the levels are called in the report. */
const LEVELS: Readonly<Record<Acceleration, string>> = {
  none: "nothing",
  apicv: "APICv",
  ipiv: "APICv, IPI virtualization",
  avic: "AVIC",
  x2avic: "AVIC, x2AVIC",
};
const ALL = "all";

/** The experiment. */
export const ipivExperiment: Experiment = {
  name: "ipiv",
  summary: "2021: the round trip of an IPI, by APIC mode, without and with IPI virtualization",
  backends: BACKENDS,
  options: {
    vcpus: { meaning: "vCPUs; two take part, the others sleep", default: 2, min: 2, max: VCPUS },
    seed: { ...SEED, meaning: "without effect: nothing is drawn" },
    times: { meaning: "round trips", default: 1000, min: 1, max: 100_000 },
    acceleration: {
      meaning: "of the processor",
      default: ALL,
      choices: [ALL, ...new Set(Object.values(ACCELERATIONS).flat())],
    },
  },
  run(options: ExperimentOptions, watcher?: Watcher): ExperimentResult {
    const { backend, vcpus } = options;
    const there = ACCELERATIONS[backend];
    const levels = there.filter((level) => options.acceleration === ALL || options.acceleration === level);
    if (levels.length === 0) {
      throw new RangeError(
        `Cannot run ipiv with acceleration ${options.acceleration} on ${backend}: ` +
          `allowed are ${[ALL, ...there].join(", ")}`,
      );
    }
    return {
      experiment: this.name,
      options,
      guestSemantics: YEAR,
      hostSemantics: HOSTS[backend],
      runs: Object.keys(MODES).flatMap((mode) =>
        levels.map((level) => measure(mode, level, options, watcher))
      ),
      published: backend === "vmx" && vcpus === PUBLISHED_VCPUS ? published : null,
    };
  },
  report,
};

/** One boot of the guest. */
function measure(
  mode: string,
  acceleration: Acceleration,
  options: ExperimentOptions,
  watcher?: Watcher,
): ExperimentRun {
  const { backend, seed, vcpus } = options;
  const times = Number(options.times);
  const name = `${mode}/${acceleration}`;
  const vm = new Machine({ seed }).createVm({
    backend,
    vcpus,
    acceleration,
    hostSemantics: HOSTS[backend],
    x2apic: mode === "x2apic", // QEMU's "-cpu host,-x2apic".
    trace: watcher?.records ?? 0,
  });
  const stopwatch = new Stopwatch(vm);
  const runs: ExperimentRun[] = [];
  const kernel = ipiRoundTrip({
    cpus: vcpus,
    apic: MODES[mode],
    guestSemantics: YEAR,
    times,
    begin: () => stopwatch.restart(),
    end: ({ total, sum }: RoundTripTiming) => {
      runs.push(experimentRun(name, { ...stopwatch.lap(), cycles: total }, times, {
        senderExitsPerOperation: stopwatch.exitsOf(SENDER) / times,
        targetExitsPerOperation: stopwatch.exitsOf(TARGET) / times,
        roundTripCycles: sum / times,
      }));
      vm.engine.stop();
    },
  });
  vm.load(kernel.text);
  vm.start(kernel.entry);
  vm.machine.run();
  watcher?.done(name, vm);
  return runs[0];
}

function report(result: ExperimentResult, columns: number): string {
  const { vcpus, backend } = result.options;
  const width = Math.min(columns, 100);
  const beside = result.published !== null;
  const title = `The IPI round trip of kvm-unit-tests on ${vcpus} vCPUs, ${backend}, a host of ` +
    `${result.hostSemantics}. For one round trip: exits of the sender and of the target, and cycles` +
    (beside ? `, beside the averages of the ${YEAR} series` : "");
  return [
    wrapped(title, width),
    "",
    exitsTable(result, columns),
    "",
    ...beside ? [cyclesTable(result, columns), ""] : [],
    wrapped(`${WHY}${beside ? compared(result) : ""}.`, width),
  ].join("\n");
}

function exitsTable(result: ExperimentResult, columns: number): string {
  const rows: string[][] = [];
  for (const mode of Object.keys(MODES)) {
    rows.push([`${mode}, hardware delivers by`]);
    for (const run of result.runs.filter(({ name }) => name.startsWith(`${mode}/`))) {
      const level = run.name.slice(mode.length + 1) as Acceleration;
      const theirs = published.columns.indexOf(run.name);
      rows.push([
        `  ${LEVELS[level]}`,
        grouped(run.figures.senderExitsPerOperation, 2),
        grouped(run.figures.targetExitsPerOperation, 2),
        grouped(run.cyclesPerOperation),
        ...result.published === null ? [] : [theirs === -1 ? "" : grouped(published.averages[theirs])],
      ]);
    }
  }
  const head = ["", "sender exits", "target exits", "cycles"];
  return table(result.published === null ? head : [...head, YEAR], rows, columns);
}

/** The published rows, and what was simulated under their columns. */
function cyclesTable(result: ExperimentResult, columns: number): string {
  const ours = published.columns.map((column) =>
    result.runs.find(({ name }) => name === column)?.cyclesPerOperation
  );
  const reduction = (cycles: readonly (number | undefined)[], mode: number): string => {
    const [without, by] = [cycles[2 * mode], cycles[2 * mode + 1]];
    return without === undefined || by === undefined ? "" : `${grouped(100 * (by / without - 1), 2)}%`;
  };
  const cell = (cycles: number | undefined): string => cycles === undefined ? "" : grouped(cycles);
  return table(
    ["cycles of IPI", "xAPIC w/o IPIv", "w/ IPIv", "x2APIC w/o IPIv", "w/ IPIv"],
    [
      ["published"],
      ...published.rows.map((row, n) => [`  ${n + 1}`, ...row.map(cell)]),
      ["  average", ...published.averages.map((average) => grouped(average, 2).replace(/\.?0+$/, ""))],
      ["  reduction", "", reduction(published.averages, 0), "", reduction(published.averages, 1)],
      ["simulated"],
      ["  cycles", ...ours.map(cell)],
      ["  reduction", "", reduction(ours, 0), "", reduction(ours, 1)],
    ],
    columns,
  );
}

const WHY =
  "Why: without help each of the sender's accesses to the ICR exits, the target is interrupted out of guest mode, and " +
  "its EOI exits. Where hardware delivers interrupts the target has no exit, and the sender one; where it sends them " +
  "too there is none at all. These counts come from executing. Cycles come from a first cost profile that is not " +
  "calibrated";

/** What may be compared with the published figures; nothing where not all of them were simulated. */
function compared({ runs }: ExperimentResult): string {
  const saved = (cycles: readonly number[]): string =>
    `${grouped(cycles[0] - cycles[1])} and ${grouped(cycles[2] - cycles[3])}`;
  const ours = published.columns.flatMap((column) => runs.filter(({ name }) => name === column))
    .map(({ cyclesPerOperation }) => cyclesPerOperation);
  if (ours.length < published.columns.length) return "";
  return `: an exit less saves ${saved(ours)} cycles in xAPIC and x2APIC mode, where the series saves ` +
    `${
      saved(published.averages)
    }. The rest of the way, which has no exit, is far longer on its processor than here, ` +
    "and longest in xAPIC mode: APIC accesses in microcode, and the physical interrupt, cost more than the profile " +
    "says. So the percentages differ, and only the exits agree";
}
