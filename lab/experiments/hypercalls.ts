/**
 * Every hypercall of an architecture, as it goes: registers before and after, the instruction's bytes, the exit, and what
 * becomes of it.
 *
 * @module
 */

import type { ByteOrder } from "../../abi/mod.ts";
import {
  BACKENDS,
  HOST_SEMANTICS,
  type HostSemantics,
  MIPS_HOSTS,
  type MipsHost,
  PPC_HOSTS,
  type PpcHostName,
  S390_HOSTS,
  type S390Host,
} from "../../host/mod.ts";
import { ARCHITECTURES, type ArchName } from "../features.ts";
import { mipsCalls } from "../hypercalls/mips.ts";
import type { CountedCall, ObservedCall, RegistersShown } from "../hypercalls/observe.ts";
import { ppcCalls } from "../hypercalls/ppc.ts";
import { s390Calls } from "../hypercalls/s390.ts";
import { x86Calls } from "../hypercalls/x86.ts";
import { listed, wrapped } from "../report/table.ts";
import {
  type Experiment,
  type ExperimentOptions,
  type ExperimentResult,
  type ExperimentRun,
  experimentRun,
  type OptionSpec,
  SEED,
  type Watcher,
} from "./experiment.ts";

/** A run: one call. */
export interface HypercallRun extends ExperimentRun {
  /** How it went. */
  readonly call: ObservedCall;
}

/** What architectures let one choose: the first of each is the usual one. */
type Choices = Readonly<Partial<Record<"host" | "bits" | "order", readonly string[]>>>;

const ORDERS: readonly ByteOrder[] = ["big", "little"];
const WIDTHS = ["64", "32"];

const CHOICES: Readonly<Record<ArchName, Choices>> = {
  x86: { host: usualFirst("v6.19", HOST_SEMANTICS), bits: WIDTHS },
  s390: { host: usualFirst("kvm", S390_HOSTS) },
  ppc: { host: usualFirst("book3s-64-pr", PPC_HOSTS), order: ORDERS },
  mips: { host: usualFirst("mainline", MIPS_HOSTS), bits: WIDTHS, order: ORDERS },
};

function usualFirst(usual: string, hosts: Readonly<Record<string, unknown>>): string[] {
  return [usual, ...Object.keys(hosts).filter((host) => host !== usual)];
}

const MEANINGS = {
  host: "whose host, of those that the architecture has",
  bits: "the guest's width, where there are two",
  order: "its byte order, where there are two",
} as const;

/** vCPUs; x86's and s390's calls have somebody to wake and to yield to. */
const VCPUS: Readonly<Record<ArchName, number>> = { x86: 2, s390: 2, ppc: 1, mips: 1 };

function options(archs: readonly ArchName[]): Record<string, OptionSpec> {
  const vcpus = archs.map((arch) => VCPUS[arch]);
  const choices = (["host", "bits", "order"] as const).flatMap((what): [string, OptionSpec][] => {
    const all = [...new Set(archs.flatMap((arch) => CHOICES[arch][what] ?? []))];
    return all.length === 0 ? [] : [[what, { meaning: MEANINGS[what], default: all[0], choices: all }]];
  });
  return {
    vcpus: {
      meaning: "vCPUs; one calls",
      default: vcpus[0],
      min: Math.min(...vcpus),
      max: Math.max(...vcpus),
    },
    seed: { ...SEED, meaning: "without effect: nothing is drawn" },
    arch: { meaning: "architecture", default: archs[0], choices: ARCHITECTURES },
    ...Object.fromEntries(choices),
  };
}

/** The experiment, as far as these architectures go. */
function experimentOf(name: string, ...archs: ArchName[]): Experiment {
  return {
    name,
    summary:
      "every hypercall of an architecture: registers before and after, the instruction's bytes, the exit, the outcome",
    backends: archs.includes("x86") ? BACKENDS : [],
    options: options(archs),
    run,
    report,
  };
}

/** The experiment of each architecture, by the words that choose it. */
const OF = new Map(ARCHITECTURES.map((arch) => [arch, experimentOf(`hypercalls --arch ${arch}`, arch)]));

/** The experiment. */
export const hypercallsExperiment: Experiment = {
  ...experimentOf("hypercalls", ...ARCHITECTURES),
  narrowed: ({ arch = ARCHITECTURES[0] }) => OF.get(arch as ArchName),
};

function run(options: ExperimentOptions, watcher?: Watcher): ExperimentResult {
  const arch = options.arch as ArchName;
  const runs: HypercallRun[] = [...calls(arch, options, watcher)].map(([name, counted]) => ({
    ...experimentRun(name, counted, 1),
    call: counted.call,
  }));
  return {
    experiment: "hypercalls",
    options: { bits: null, order: null, ...options, backend: arch === "x86" ? options.backend : null },
    guestSemantics: arch === "x86" ? "v6.19" : null,
    hostSemantics: arch === "x86" ? options.host as HostSemantics : null,
    runs,
    published: null,
  };
}

function calls(
  arch: ArchName,
  { backend, host, bits: width, order }: ExperimentOptions,
  watcher: Watcher = { records: 0, done: () => {} },
): Map<string, CountedCall> {
  const bits = width === "32" ? 32 : 64;
  switch (arch) {
    case "x86":
      return x86Calls({ backend, host: host as HostSemantics, bits, watcher });
    case "s390":
      return s390Calls({ host: host as S390Host, watcher });
    case "ppc":
      return ppcCalls({ host: host as PpcHostName, order: order as ByteOrder, watcher });
    case "mips":
      return mipsCalls({ host: host as MipsHost, bits, order: order as ByteOrder, watcher });
  }
}

function report({ options, runs }: ExperimentResult, columns: number): string {
  const { arch, backend, host, order } = options;
  const title = arch === "x86"
    ? `x86, ${backend}, host of ${host}, ${options.bits}-bit guest`
    : `${arch}, host ${host}, ${order ?? "big"}-endian guest`;
  return [
    title,
    ...(runs as readonly HypercallRun[]).map((run) => callText(run, columns)),
  ].join("\n\n");
}

function callText({ name, call }: HypercallRun, columns: number): string {
  const { instruction, bytes, rewritten, before, after, exits, userspace, outcome } = call;
  const lines: [what: string, text: string][] = [
    ["call", `${instruction}: ${bytes}${rewritten === null ? "" : `, rewritten to ${rewritten}`}`],
    ["before", registersText(before)],
    ["after", after === null ? "the guest does not go on" : registersText(after)],
    ["exit", [...exits, ...userspace].join(", ") || "none"],
    ["outcome", outcome],
  ];
  return `${wrapped(name, columns)}\n${listed(lines, columns)}`;
}

function registersText(registers: RegistersShown): string {
  return Object.entries(registers).map(([name, value]) => `${name}=${value}`).join(" ");
}
