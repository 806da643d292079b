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
import { wrapped } from "../report/table.ts";
import {
  type Experiment,
  type ExperimentOptions,
  type ExperimentResult,
  type ExperimentRun,
  experimentRun,
  SEED,
  type Watcher,
} from "./experiment.ts";

/** A run: one call. */
export interface HypercallRun extends ExperimentRun {
  /** How it went. */
  readonly call: ObservedCall;
}

/** What architectures let one choose; the first of each is the usual one. */
const CHOICES: Readonly<Record<ArchName, Readonly<Record<"host" | "bits" | "order", readonly string[]>>>> = {
  x86: { host: usualFirst("v6.19", HOST_SEMANTICS), bits: ["64", "32"], order: ["little"] },
  s390: { host: usualFirst("kvm", S390_HOSTS), bits: ["64"], order: ["big"] },
  ppc: { host: usualFirst("book3s-64-pr", PPC_HOSTS), bits: ["host's"], order: ["big", "little"] },
  mips: { host: usualFirst("mainline", MIPS_HOSTS), bits: ["64", "32"], order: ["big", "little"] },
};

function usualFirst(usual: string, hosts: Readonly<Record<string, unknown>>): string[] {
  return [usual, ...Object.keys(hosts).filter((host) => host !== usual)];
}

const USUAL = "usual";

function everyChoice(what: "host" | "bits" | "order"): string[] {
  return [USUAL, ...new Set(ARCHITECTURES.flatMap((arch) => CHOICES[arch][what]))];
}

/** The experiment. */
export const hypercallsExperiment: Experiment = {
  name: "hypercalls",
  summary:
    "every hypercall of an architecture: registers before and after, the instruction's bytes, the exit, the outcome",
  backends: BACKENDS,
  options: {
    vcpus: { meaning: "vCPUs; one calls", default: 2, min: 2, max: 2 },
    seed: { ...SEED, meaning: "without effect: nothing is drawn" },
    arch: { meaning: "architecture", default: "x86", choices: ARCHITECTURES },
    host: {
      meaning: "whose host, of those that the architecture has",
      default: USUAL,
      choices: everyChoice("host"),
    },
    bits: { meaning: "the guest's width, where there are two", default: USUAL, choices: everyChoice("bits") },
    order: { meaning: "its byte order, likewise", default: USUAL, choices: everyChoice("order") },
  },
  run,
  report,
};

/** What was chosen. Throws `RangeError` for what the architecture does not have. */
function chosen(options: ExperimentOptions, arch: ArchName, what: "host" | "bits" | "order"): string {
  const choices = CHOICES[arch][what];
  const choice = String(options[what]);
  if (choice === USUAL) return choices[0];
  if (choices.includes(choice)) return choice;
  throw new RangeError(
    `Cannot run hypercalls of ${arch} with ${what} ${choice}: allowed are ${choices.join(", ")}`,
  );
}

function run(options: ExperimentOptions, watcher?: Watcher): ExperimentResult {
  const arch = options.arch as ArchName;
  const host = chosen(options, arch, "host");
  const width = chosen(options, arch, "bits");
  const bits = width === "32" ? 32 : 64;
  const order = chosen(options, arch, "order") as ByteOrder;
  if (arch !== "x86") {
    if (options.backend !== "vmx") {
      throw new RangeError(`Cannot run hypercalls of ${arch} on ${options.backend}: vendors are x86's`);
    }
    if (watcher !== undefined) {
      throw new RangeError(`Cannot trace or explain hypercalls of ${arch}: allowed is x86`);
    }
  }
  const calls = (): Map<string, CountedCall> => {
    switch (arch) {
      case "x86":
        return x86Calls({
          backend: options.backend,
          host: host as HostSemantics,
          bits,
          records: watcher?.records ?? 0,
          done: watcher?.done ?? (() => {}),
        });
      case "s390":
        return s390Calls(host as S390Host);
      case "ppc":
        return ppcCalls({ host: host as PpcHostName, order });
      case "mips":
        return mipsCalls({ host: host as MipsHost, bits, order });
    }
  };
  const runs: HypercallRun[] = [...calls()].map(([name, counted]) => ({
    ...experimentRun(name, counted, 1),
    call: counted.call,
  }));
  return {
    experiment: "hypercalls",
    options: { ...options, backend: arch === "x86" ? options.backend : null, host, bits: width, order },
    guestSemantics: arch === "x86" ? "v6.19" : null,
    hostSemantics: arch === "x86" ? host as HostSemantics : null,
    runs,
    published: null,
  };
}

function report({ options, runs }: ExperimentResult, columns: number): string {
  const { arch, backend, host, order } = options;
  const title = arch === "x86"
    ? `x86, ${backend}, host of ${host}, ${options.bits}-bit guest`
    : `${arch}, host ${host}, ${order}-endian guest`;
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
  const width = "  outcome  ".length;
  return [
    name,
    ...lines.map(([what, text]) =>
      `  ${what.padEnd(width - 2)}` +
      wrapped(text, columns - width).replaceAll("\n", `\n${" ".repeat(width)}`)
    ),
  ].join("\n");
}

function registersText(registers: RegistersShown): string {
  return Object.entries(registers).map(([name, value]) => `${name}=${value}`).join(" ");
}
