/**
 * Flags of a command line: what was typed, checked against what there is.
 *
 * @module
 */

import { parseArgs, type ParseArgsConfig } from "node:util";
import { allowed, type OptionSpec } from "./experiments/experiment.ts";

/** The options of a command, by name. */
export type OptionSpecs = Readonly<Record<string, OptionSpec>>;
/** What a command can be told besides its options: flags with a value, and those without. */
export type Flags = Readonly<Record<string, { readonly type: "string" | "boolean" }>>;

/** What was typed. */
export interface Typed {
  /** Options that were named. */
  readonly options: Readonly<Record<string, number | string>>;
  /** The other flags that were named. */
  readonly flags: Readonly<Record<string, unknown>>;
}

/**
 * Reads a command's options and flags. `doing` is what it does, for messages: "run pv-eoi". Throws `RangeError` naming what
 * is allowed.
 */
export function readFlags(doing: string, args: readonly string[], specs: OptionSpecs, others: Flags): Typed {
  const known: NonNullable<ParseArgsConfig["options"]> = {
    ...Object.fromEntries(Object.keys(specs).map((name) => [name, { type: "string" }] as const)),
    ...others,
  };
  const values = parsed(doing, args, known);
  const options: Record<string, number | string> = {};
  for (const [name, spec] of Object.entries(specs)) {
    const value = values[name];
    if (typeof value === "string") options[name] = typed(name, value, spec);
  }
  return { options, flags: values };
}

function parsed(
  doing: string,
  args: readonly string[],
  options: NonNullable<ParseArgsConfig["options"]>,
): Readonly<Record<string, unknown>> {
  try {
    return parseArgs({ args: negativeNumbers(args), options, strict: true, allowPositionals: false }).values;
  } catch (error) {
    const problem = (error as Error).message.split(/\.\s|\n/)[0];
    const names = Object.keys(options).map((name) => `--${name}`).join(", ");
    throw new RangeError(`Cannot ${doing}: ${problem}; allowed are ${names}`);
  }
}

/** What was typed for a flag whatever else was typed; undefined where it was not. */
export function flagValue(args: readonly string[], name: string): string | undefined {
  const options = { [name]: { type: "string" } } as const;
  const value = parseArgs({ args: negativeNumbers(args), options, strict: false }).values[name];
  return typeof value === "string" ? value : undefined;
}

/** `--seed -1` as `--seed=-1`: no option begins with a digit, and it is the number that is wrong. */
function negativeNumbers(args: readonly string[]): string[] {
  return args.reduce<string[]>((joined, arg) => {
    const last = joined.at(-1) ?? "";
    if (/^-\d/.test(arg) && /^--[^=]+$/.test(last)) return joined.with(-1, `${last}=${arg}`);
    return [...joined, arg];
  }, []);
}

/** What was typed for an option. Throws `RangeError` for a number that is none. */
function typed(option: string, text: string, spec: OptionSpec): number | string {
  if ("choices" in spec) return text;
  const value = /^(\d+|0x[0-9a-f]+)$/i.test(text) ? Number(text) : NaN;
  if (!Number.isSafeInteger(value)) {
    throw new RangeError(`Cannot use "${text}" for --${option}: allowed are ${allowed(spec)}`);
  }
  return value;
}
