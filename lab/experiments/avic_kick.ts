/**
 * Finding the targets of AVIC's IPIs, as of 2022: IPIs to halted vCPUs of larger and larger machines, and the cycles that
 * the host spends on looking for whom to wake.
 *
 * @module
 */

import { ipiToSleepers } from "../../guest/examples/avic_kick.ts";
import type { ApicName } from "../../guest/mod.ts";
import {
  AVIC_KICKS,
  type AvicKick,
  type CostProfile,
  GENERIC_SVM,
  type HostSemantics,
  Machine,
} from "../../host/mod.ts";
import { Stopwatch } from "../measure.ts";
import { bars } from "../report/bars.ts";
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

const YEAR = "2022";
/** Whose KVM looks for targets in which way: until the patch, with it, today. */
const HOSTS: Readonly<Record<AvicKick, HostSemantics>> = { slow: YEAR, "2022": YEAR, "v6.19": "v6.19" };
/** x2AVIC's table ends at ID 511; AVIC's at 254, as 255 is everybody's. */
const VCPUS = 512;
const XAPIC_VCPUS = 255;
const APICS: readonly ApicName[] = ["x2apic-physical", "x2apic-cluster", "xapic"];
const ALL = "all";

/** The same processor, on which looking for a target takes no time: what a run takes less on it is what looking took. */
const FREE_SEARCH: CostProfile = {
  ...GENERIC_SVM,
  name: "generic-svm, looking for targets free",
  costs: {
    ...GENERIC_SVM.costs,
    slowMatch: { ...GENERIC_SVM.costs.slowMatch, cycles: 0 },
    avicTarget: { ...GENERIC_SVM.costs.avicTarget, cycles: 0 },
  },
};

/** The experiment. */
export const avicKickExperiment: Experiment = {
  name: "avic-kick",
  summary: "2022: waking the halted targets of AVIC's IPIs, by asking every vCPU and by looking them up",
  backends: ["svm"],
  options: {
    vcpus: {
      meaning: `vCPUs of the largest; with xAPICs ${XAPIC_VCPUS}`,
      default: VCPUS,
      min: 2,
      max: VCPUS,
    },
    seed: { ...SEED, meaning: "without effect: nothing is drawn" },
    times: { meaning: "IPIs", default: 20, min: 1, max: 10_000 },
    apic: { meaning: "APIC driver", default: APICS[0], choices: APICS },
    kick: { meaning: "how targets are found", default: ALL, choices: [ALL, ...AVIC_KICKS] },
  },
  run(options: ExperimentOptions, watcher?: Watcher): ExperimentResult {
    const kicks = AVIC_KICKS.filter((kick) => options.kick === ALL || options.kick === kick);
    return {
      experiment: this.name,
      options,
      guestSemantics: YEAR,
      hostSemantics: YEAR,
      runs: kicks.flatMap((kick) => sizes(options).map((vcpus) => measure(kick, vcpus, options, watcher))),
      published: null,
    };
  },
  report,
};

/** Powers of two, and the largest. */
function sizes({ vcpus, apic }: ExperimentOptions): number[] {
  const largest = apic === "xapic" ? Math.min(vcpus, XAPIC_VCPUS) : vcpus;
  const found: number[] = [];
  for (let size = 2; size < largest; size *= 2) found.push(size);
  return [...found, largest];
}

/** One size: with the usual prices, and once more with a free search. */
function measure(
  kick: AvicKick,
  vcpus: number,
  options: ExperimentOptions,
  watcher?: Watcher,
): ExperimentRun {
  const run = boot(kick, vcpus, options, GENERIC_SVM, watcher);
  const free = boot(kick, vcpus, options, FREE_SEARCH);
  return {
    ...run,
    hostSemantics: HOSTS[kick],
    figures: { ...run.figures, searchCyclesPerOperation: run.cyclesPerOperation - free.cyclesPerOperation },
  };
}

/** One boot of the guest. */
function boot(
  kick: AvicKick,
  vcpus: number,
  options: ExperimentOptions,
  costs: CostProfile,
  watcher?: Watcher,
): ExperimentRun {
  const times = Number(options.times);
  const name = `${kick}/${vcpus}`;
  // As QEMU has it: without this, APIC ID 255 is everybody's to processors that are not up yet.
  const wide = vcpus > XAPIC_VCPUS;
  const vm = new Machine({ seed: options.seed }).createVm({
    backend: options.backend,
    vcpus,
    acceleration: "x2avic",
    avicKick: kick,
    hostSemantics: HOSTS[kick],
    costs,
    // A vCPU that is polled for has a CPU: to hardware it runs.
    haltPollNs: 0,
    x2apicApi32BitIds: wide,
    x2apicApiDisableBroadcastQuirk: wide,
    trace: watcher?.records ?? 0,
  });
  const stopwatch = new Stopwatch(vm);
  const runs: ExperimentRun[] = [];
  const kernel = ipiToSleepers({
    cpus: vcpus,
    apic: options.apic as ApicName,
    guestSemantics: YEAR,
    times,
    begin: () => stopwatch.restart(),
    end: (sending) =>
      runs.push(experimentRun(name, { ...stopwatch.lap(), cycles: sending }, times, {
        vcpus,
        senderExitsPerOperation: stopwatch.exitsOf(0) / times,
      })),
  });
  vm.load(kernel.text);
  vm.start(kernel.entry);
  vm.machine.run();
  watcher?.done(name, vm);
  return runs[0];
}

function report(result: ExperimentResult, columns: number): string {
  const { runs, options } = result;
  const width = Math.min(columns, 100);
  const kicks = AVIC_KICKS.filter((kick) => runs.some(({ name }) => name.startsWith(`${kick}/`)));
  const of = (kick: AvicKick): readonly ExperimentRun[] =>
    runs.filter(({ name }) => name.startsWith(`${kick}/`));
  const rows = of(kicks[0]).map((first, n) => [
    grouped(first.figures.vcpus),
    grouped(first.figures.senderExitsPerOperation, 1),
    ...kicks.flatMap((kick) => {
      const { cyclesPerOperation, figures } = of(kick)[n];
      return [grouped(cyclesPerOperation), grouped(figures.searchCyclesPerOperation)];
    }),
  ]);
  const title =
    `AVIC's IPIs to halted vCPUs, ${options.apic}, guest of ${YEAR}. For one IPI, by the number of vCPUs: ` +
    "exits of the sender, its cycles, and those of them in which the host looks for the target";
  return [
    wrapped(title, width),
    "",
    table(["vCPUs", "exits", ...kicks.flatMap((kick) => [kick, "looking"])], rows, columns),
    "",
    "Cycles of looking:",
    ...kicks.map((kick) =>
      bars(
        kick,
        of(kick).map(({ figures }) => [grouped(figures.vcpus), figures.searchCyclesPerOperation]),
        Math.max(...runs.map(({ figures }) => figures.searchCyclesPerOperation)),
        Math.min(columns, 72),
      )
    ),
    "",
    wrapped(WHY, width),
  ].join("\n");
}

const WHY =
  "Why: hardware requests the interrupt and finds its target not running: that is the exit. The host has to wake the " +
  "target. Until 2022 it asked every vCPU whether the IPI means it; since then it goes from the destination to the vCPU " +
  "(2022: to one; v6.19: to each of several), but for shorthands and broadcasts. That the one grows with the number of " +
  "vCPUs and the others do not comes from executing; how fast it grows is an assumed price for asking one vCPU, and on a " +
  "real host each is a cache miss. The patch gives no figures. Halt polling is off: a vCPU that is polled for runs.";
