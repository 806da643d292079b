/**
 * The command line: `exitless list`, `exitless run EXPERIMENT`, `exitless explain`, `exitless features`.
 *
 * Exit codes: 0; 1 where a run found something wrong, which standard error tells; 2 where the command makes no sense,
 * and then one line on standard error says what is allowed.
 *
 * @module
 */

import { explainExperiment, explainMachine, explainReport, MACHINE_OPTIONS } from "./explain.ts";
import {
  allowed,
  checkedOptions,
  type Experiment,
  ExperimentFailed,
  experimentOptions,
  type OptionSpec,
  type Watcher,
} from "./experiments/experiment.ts";
import { experimentNamed, EXPERIMENTS } from "./experiments/registry.ts";
import { ARCHITECTURES, featuresOf } from "./features.ts";
import { type Flags, flagValue, type OptionSpecs, readFlags } from "./flags.ts";
import { featuresReport } from "./report/features.ts";
import { listed, wrapped } from "./report/table.ts";
import { fileBytes, TRACE_RECORDS, traceText } from "./report/trace_text.ts";

/** A file that a command writes. */
export interface OutputFile {
  /** Where; compressed where the name ends in `.gz`. */
  readonly path: string;
  /** What. */
  readonly text: string;
}

/** What a command did: what it prints and writes, and its exit code. */
export interface CommandResult {
  /** For standard output. */
  readonly out: string;
  /** For standard error. */
  readonly err: string;
  /** The exit code. */
  readonly code: number;
  /** The file to write. */
  readonly file?: OutputFile;
}

type Help = readonly (readonly [what: string, meaning: string])[];

const VERBS: Help = [
  ["exitless list", "the experiments and their options"],
  ["exitless run EXPERIMENT [options]", "runs one and prints its tables"],
  ["exitless run EXPERIMENT --help", "what it can be told"],
  [
    "exitless explain EXPERIMENT [options]",
    "which accelerated paths and PV features its machines use, and why not others",
  ],
  ["exitless explain [options]", "the same of a machine of your own"],
  ["exitless features [--arch ARCH]", "every hypercall and paravirtual feature of x86, s390, ppc and mips"],
];
const MACHINES: Help = [["--vcpus N", "vCPUs"], ["--seed S", "what random data is drawn from (0)"]];
const VENDORS: Help = [["--backend vmx|svm", "Intel's or AMD's virtualization"]];
const OUTPUT: Help = [
  ["--json", "prints one JSON object in place of the tables"],
  ["--trace FILE", "KVM's trace events as text, compressed if it ends in .gz"],
];

function usage(columns: number): string {
  return [
    wrapped("Exitless: a laboratory for KVM's paravirtual interface", columns),
    listed(VERBS, columns),
    listed([...MACHINES, ...VENDORS, ...OUTPUT], columns),
    "A machine of your own:",
    optionLines(MACHINE_OPTIONS, columns),
  ].join("\n\n");
}

/** Runs a command line. `columns` is the width of the terminal. */
export function command(args: readonly string[], columns: number): CommandResult {
  try {
    return { err: "", code: 0, ...dispatch(args, columns) };
  } catch (error) {
    // A mistake of whoever typed this; anything else is one of ours, and keeps its stack.
    if (error instanceof ExperimentFailed) return { out: "", err: oneLine(error.message), code: 1 };
    if (error instanceof RangeError) return { out: "", err: oneLine(error.message), code: 2 };
    throw error;
  }
}

/** What was typed may hold anything, and comes back in messages. */
function oneLine(message: string): string {
  return message.replaceAll(/\p{Cc}+/gu, " ");
}

type Output = Pick<CommandResult, "out" | "file">;

function dispatch(args: readonly string[], columns: number): Output {
  const [verb, ...rest] = args;
  if (rest.includes("--help") || rest.includes("-h")) return { out: help(rest, columns) };
  switch (verb) {
    case "list":
      if (rest.length > 0) throw new RangeError(`Cannot list ${rest.join(" ")}: "list" takes no arguments`);
      return { out: list(columns) };
    case "run":
      return run(rest, columns);
    case "explain":
      return explain(rest, columns);
    case "features":
      return { out: features(rest, columns) };
    case "help":
    case "--help":
    case "-h":
      return { out: usage(columns) };
    case undefined:
      throw new RangeError("Cannot do nothing: allowed are list, run, explain, features, help");
    default:
      throw new RangeError(`Cannot do ${verb}: allowed are list, run, explain, features, help`);
  }
}

function list(columns: number): string {
  return EXPERIMENTS.map((experiment) => described(experiment, columns)).join("\n\n");
}

function described({ name, summary, options }: Experiment, columns: number): string {
  return [name, wrapped(summary, columns), optionLines(options, columns)].join("\n");
}

/** What there is to say of an experiment, or of everything. */
function help([name, ...rest]: readonly string[], columns: number): string {
  const found = EXPERIMENTS.find((one) => one.name === name);
  const arch = flagValue(rest, "arch");
  const experiment = arch === undefined ? found : found?.narrowed?.({ arch }) ?? found;
  if (experiment === undefined) return usage(columns);
  const vendors = experiment.backends.length === 0 ? [] : VENDORS;
  return `${described(experiment, columns)}\n\n${listed([...vendors, ...OUTPUT], columns)}`;
}

/** What each option is, what it may be, and what it is when nothing is said. */
function optionLines(options: OptionSpecs, columns: number): string {
  const rows = Object.entries(options).map(([option, spec]) =>
    [`--${option}`, `${spec.meaning}: ${allowed(spec)} (${spec.default})`] as const
  );
  return listed(rows, columns);
}

const BACKEND: Flags = { backend: { type: "string" } };
const JSON_FLAG: Flags = { json: { type: "boolean" } };
const TRACE: Flags = { trace: { type: "string" } };

function run(args: readonly string[], columns: number): Output {
  const [name, ...rest] = args;
  if (name === undefined || name.startsWith("-")) {
    throw new RangeError(
      `Cannot run without an experiment's name: allowed are ${EXPERIMENTS.map((e) => e.name).join(", ")}`,
    );
  }
  const experiment = chosen(name, rest);
  const { options: given, flags } = readFlags(`run ${experiment.name}`, rest, experiment.options, {
    ...backendFlag(experiment),
    ...JSON_FLAG,
    ...TRACE,
  });
  const trace: string[] = [];
  const watcher: Watcher = {
    records: TRACE_RECORDS,
    done: (name, vm) => trace.push(traceText(name, vm)),
  };
  const path = typeof flags.trace === "string" ? flags.trace : undefined;
  if (path === "") throw new RangeError("Cannot write a trace without a file's name");
  const options = experimentOptions(experiment, backendOf(flags), given);
  const result = experiment.run(options, path === undefined ? undefined : watcher);
  const out = flags.json === true ? JSON.stringify(result) : experiment.report(result, columns);
  return path === undefined ? { out } : { out, file: { path, text: trace.join("\n") } };
}

function backendOf(flags: Readonly<Record<string, unknown>>): string | undefined {
  return typeof flags.backend === "string" ? flags.backend : undefined;
}

/** An experiment of an architecture, if it has architectures: each has options of its own. */
function chosen(name: string, args: readonly string[]): Experiment {
  const experiment = experimentNamed(name);
  const arch = flagValue(args, "arch");
  return experiment.narrowed?.(arch === undefined ? {} : { arch }) ?? experiment;
}

function backendFlag({ backends }: Experiment): Flags {
  return backends.length === 0 ? {} : BACKEND;
}

/** Explains the machines of an experiment, or one whose parts are named. */
function explain(args: readonly string[], columns: number): Output {
  const [first, ...rest] = args;
  const named = first !== undefined && !first.startsWith("-");
  const experiment = named ? chosen(first, rest) : undefined;
  const { options: given, flags } = readFlags(
    experiment === undefined ? "explain a machine" : `explain ${experiment.name}`,
    named ? rest : args,
    experiment?.options ?? MACHINE_OPTIONS,
    { ...(experiment === undefined ? BACKEND : backendFlag(experiment)), ...JSON_FLAG },
  );
  const backend = backendOf(flags);
  const machines = experiment === undefined
    ? [explainMachine(backend ?? "vmx", given)]
    : explainExperiment(experiment, experimentOptions(experiment, backend, given));
  if (flags.json !== true) return { out: explainReport(machines, columns) };
  return { out: JSON.stringify({ experiment: experiment?.name ?? null, machines }) };
}

/** What architectures have. */
function features(args: readonly string[], columns: number): string {
  const { options, flags } = readFlags("show features", args, { arch: ARCH }, JSON_FLAG);
  const { arch } = checkedOptions("show features", { arch: ARCH }, options);
  const archs = ARCHITECTURES.filter((name) => arch === "all" || arch === name);
  return flags.json === true
    ? JSON.stringify({ features: archs.map((name) => featuresOf(name)) })
    : featuresReport(archs, columns);
}

const ARCH: OptionSpec = { meaning: "architecture", default: "all", choices: ["all", ...ARCHITECTURES] };

/** Runs a command line, prints and writes what it has to say, and ends the process with its exit code. */
export async function main(args: readonly string[]): Promise<never> {
  const { out, err, code, file } = command(args, terminalColumns());
  await orExit("Cannot print", () => {
    if (out !== "") console.log(out);
  });
  if (err !== "") console.error(err);
  if (file !== undefined) {
    const bytes = await fileBytes(file.path, file.text);
    await orExit(`Cannot write ${file.path}`, () => Deno.writeFile(file.path, bytes));
  }
  Deno.exit(code);
}

/** Says what went wrong outside, a full disk or a missing folder, and ends the process with 2. */
async function orExit(problem: string, write: () => void | Promise<void>): Promise<void> {
  try {
    await write();
  } catch (error) {
    console.error(oneLine(`${problem}: ${error instanceof Error ? error.message : error}`));
    Deno.exit(2);
  }
}

/** The terminal's width; what is written to a file is not folded. */
function terminalColumns(): number {
  return Deno.stdout.isTerminal() ? Deno.consoleSize().columns : 200;
}

if (import.meta.main) await main(Deno.args);
