/**
 * The command line: `exitless list`, `exitless run EXPERIMENT`.
 *
 * Exit codes: 0, or 2 where the command makes no sense; then one line on standard error says what is allowed.
 *
 * @module
 */

import { parseArgs, type ParseArgsConfig } from "node:util";
import {
  allowed,
  type Experiment,
  experimentOptions,
  type OptionSpec,
  type Watcher,
} from "./experiments/experiment.ts";
import { experimentNamed, EXPERIMENTS } from "./experiments/registry.ts";
import { wrapped } from "./report/table.ts";
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

const USAGE = `Exitless: a laboratory for KVM's paravirtual interface

  exitless list                      the experiments and their options
  exitless run EXPERIMENT [options]  runs one and prints its tables

  --backend vmx|svm   Intel's or AMD's virtualization
  --vcpus N           vCPUs
  --seed S            what random data is drawn from (0)
  --json              prints one JSON object in place of the tables
  --trace FILE        KVM's trace events as text, compressed if it ends in .gz`;

/** Runs a command line. `columns` is the width of the terminal. */
export function command(args: readonly string[], columns: number): CommandResult {
  try {
    return { err: "", code: 0, ...dispatch(args, columns) };
  } catch (error) {
    // A mistake of whoever typed this; anything else is one of ours, and keeps its stack.
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
  switch (verb) {
    case "list":
      if (rest.length > 0) throw new RangeError(`Cannot list ${rest.join(" ")}: "list" takes no arguments`);
      return { out: list(columns) };
    case "run":
      return run(rest, columns);
    case "help":
    case "--help":
    case "-h":
      return { out: USAGE };
    case undefined:
      throw new RangeError("Cannot do nothing: allowed are list, run, help");
    default:
      throw new RangeError(`Cannot do ${verb}: allowed are list, run, help`);
  }
}

function list(columns: number): string {
  return EXPERIMENTS.map(({ name, summary, options }) => {
    const width = Math.max(...Object.keys(options).map((option) => option.length));
    const rows = Object.entries(options).map(([option, spec]) =>
      `  --${option.padEnd(width)}  ${spec.meaning}: ${allowed(spec)} (${spec.default})`
    );
    return [name, wrapped(summary, columns), ...rows].join("\n");
  }).join("\n\n");
}

function run(args: readonly string[], columns: number): Output {
  const [name, ...rest] = args;
  if (name === undefined || name.startsWith("-")) {
    throw new RangeError(
      `Cannot run without an experiment's name: allowed are ${EXPERIMENTS.map((e) => e.name).join(", ")}`,
    );
  }
  const experiment = experimentNamed(name);
  const values = parsed(experiment, rest);
  const given: Record<string, number | string> = {};
  for (const [option, spec] of Object.entries(experiment.options)) {
    const value = values[option];
    if (typeof value === "string") given[option] = typed(option, value, spec);
  }
  const backend = typeof values.backend === "string" ? values.backend : experiment.backends[0];
  const trace: string[] = [];
  const watcher: Watcher = {
    records: TRACE_RECORDS,
    done: (name, vm) => trace.push(traceText(name, vm)),
  };
  const path = typeof values.trace === "string" ? values.trace : undefined;
  if (path === "") throw new RangeError("Cannot write a trace without a file's name");
  const options = experimentOptions(experiment, backend, given);
  const result = experiment.run(options, path === undefined ? undefined : watcher);
  const out = values.json === true ? JSON.stringify(result) : experiment.report(result, columns);
  return path === undefined ? { out } : { out, file: { path, text: trace.join("\n") } };
}

/** The flags of a command line. Throws `RangeError` naming those that an experiment has. */
function parsed(experiment: Experiment, args: readonly string[]): Readonly<Record<string, unknown>> {
  const options = flags(experiment);
  try {
    return parseArgs({ args: [...args], options, strict: true, allowPositionals: false }).values;
  } catch (error) {
    const problem = (error as Error).message.split(/\.\s|\n/)[0];
    const allowed = Object.keys(options).map((name) => `--${name}`).join(", ");
    throw new RangeError(`Cannot run ${experiment.name}: ${problem}; allowed are ${allowed}`);
  }
}

function flags(experiment: Experiment): NonNullable<ParseArgsConfig["options"]> {
  const own = Object.keys(experiment.options).map((name) => [name, { type: "string" }] as const);
  return {
    ...Object.fromEntries(own),
    backend: { type: "string" },
    json: { type: "boolean" },
    trace: { type: "string" },
  };
}

/** What was typed for an option, as the experiment takes it. Throws `RangeError` for a number that is none. */
function typed(option: string, text: string, spec: OptionSpec): number | string {
  if ("choices" in spec) return text;
  const value = /^(\d+|0x[0-9a-f]+)$/i.test(text) ? Number(text) : NaN;
  if (!Number.isSafeInteger(value)) {
    throw new RangeError(`Cannot use "${text}" for --${option}: allowed are ${allowed(spec)}`);
  }
  return value;
}

/** Runs a command line, prints and writes what it has to say, and ends the process with its exit code. */
export async function main(args: readonly string[]): Promise<never> {
  const { out, err, code, file } = command(args, terminalColumns());
  if (out !== "") console.log(out);
  if (err !== "") console.error(err);
  if (file !== undefined) await write(file);
  Deno.exit(code);
}

async function write({ path, text }: OutputFile): Promise<void> {
  const bytes = await fileBytes(path, text);
  try {
    await Deno.writeFile(path, bytes);
  } catch (error) {
    console.error(`Cannot write ${path}: ${error instanceof Error ? error.message : error}`);
    Deno.exit(2);
  }
}

/** The terminal's width; what is written to a file is not folded. */
function terminalColumns(): number {
  return Deno.stdout.isTerminal() ? Deno.consoleSize().columns : 200;
}

if (import.meta.main) await main(Deno.args);
