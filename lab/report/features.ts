/**
 * What architectures have, as text.
 *
 * @module
 */

import {
  type ArchFeatures,
  ARCHITECTURES,
  type ArchName,
  type CallFacts,
  type CallingConvention,
  type FeatureFacts,
  featuresOf,
} from "../features.ts";
import { behind, wrapped } from "./table.ts";

/** Architectures' features as text of at most `columns`. */
export function featuresReport(archs: readonly ArchName[], columns: number): string {
  return archs.map((arch) => {
    const { conventions, calls, functions, features } = featuresOf(arch);
    return [
      arch,
      ...conventions.map((convention) => conventionText(convention, columns)),
      "hypercalls",
      ...calls.map((call) => callText(call, columns)),
      ...functions.length === 0
        ? []
        : ["the instruction's other functions", ...functions.map((call) => callText(call, columns))],
      ...featureTexts(features, columns),
    ].join("\n");
  }).join("\n\n");
}

function conventionText(convention: CallingConvention, columns: number): string {
  const bytes = (text: string, all: Readonly<Record<string, string>>): string => {
    const orders = Object.entries(all);
    const shown = orders.length === 1
      ? orders[0][1]
      : orders.map(([order, s]) => `${s} ${order}-endian`).join(", ");
    return `${text}: ${shown}`;
  };
  return [
    ...convention.hosts.length === 0 ? [] : [["hosts", convention.hosts.join(", ")]],
    ["call", convention.instructions.map(({ text, bytes: all }) => bytes(text, all)).join("; ")],
    ["number", convention.number],
    ["arguments", convention.arguments.join(", ")],
    ["results", `${convention.results.join(", ")}; ${convention.status}`],
    ["widths", convention.widths],
    ["unknown number", convention.unknown],
    ["from user mode", convention.fromUserMode],
    ["then", convention.advance],
    ["discovery", convention.discovery],
  ].map(([what, text]) => behind(`  ${what.padEnd(16)}`, text, columns)).join("\n");
}

function callText(call: CallFacts, columns: number): string {
  const signature = `${call.name}(${call.arguments.join(", ")})`;
  return [
    behind(`  ${call.number.padStart(8)}  `, `${signature} -> ${call.result}`, columns),
    behind(" ".repeat(14), `${call.meaning}; ${call.offered}`, columns),
  ].join("\n");
}

function featureTexts(features: readonly FeatureFacts[], columns: number): string[] {
  if (features.length === 0) return ["features: hosts tell of none"];
  const lines: string[] = [];
  let where = "";
  for (const feature of features) {
    if (feature.where !== where) lines.push(wrapped(`features in ${where = feature.where}`, columns));
    const text = `${feature.name}: ${feature.meaning}; ${feature.offered}`;
    lines.push(behind(`  ${String(feature.bit).padStart(8)}  `, text, columns));
  }
  return lines;
}

/** The calling conventions side by side: a column an architecture. */
export function conventionMatrix(): { readonly head: readonly string[]; readonly rows: readonly string[][] } {
  const all = ARCHITECTURES.map((arch) => featuresOf(arch));
  const row = (what: string, cell: (features: ArchFeatures) => string): string[] => [what, ...all.map(cell)];
  /** What conventions have, once where they have the same. */
  const each = (cell: (convention: CallingConvention) => string) => (features: ArchFeatures): string =>
    [...new Set(features.conventions.map(cell))].join(" or ");
  const instructions = (pick: (one: CallingConvention["instructions"][number]) => string) =>
    each(({ instructions }) => instructions.map((one) => `\`${pick(one)}\``).join(" or "));
  return {
    head: ["", ...all.map(({ arch }) => arch)],
    rows: [
      row("instruction", instructions(({ text }) => text)),
      row("bytes", instructions(({ bytes }) => Object.values(bytes)[0])),
      row("byte order", ({ conventions }) => byteOrder(conventions[0])),
      row("number", each(({ number }) => number)),
      row("arguments", each((convention) => ranges(convention.arguments))),
      row("results", each(({ results }) => ranges(results))),
      row("first result", each(({ status }) => status)),
      row("unknown number", each(({ unknown }) => unknown)),
      row("from user mode", each(({ fromUserMode }) => fromUserMode)),
      row("widths", each(({ widths }) => widths)),
      row("then", each(({ advance }) => advance)),
      row(
        "calls",
        ({ calls, functions }) =>
          [numbers(calls), ...functions.length === 0 ? [] : [`functions ${numbers(functions)}`]].join("; "),
      ),
      row("feature bits", ({ features }) => places(features)),
      row("discovery", each(({ discovery }) => discovery)),
    ],
  };
}

function byteOrder({ instructions: [{ bytes }] }: CallingConvention): string {
  const orders = Object.keys(bytes);
  return orders.length === 1 ? orders[0] : `the guest's; shown: ${orders[0]}`;
}

function numbers(calls: readonly CallFacts[]): string {
  return ranges(calls.map(({ number }) => number));
}

/** Names that end in numbers, or numbers: runs of three and more as their ends. */
function ranges(names: readonly string[]): string {
  const runs: string[][] = [];
  for (const name of names) {
    const run = runs.at(-1);
    if (run !== undefined && follows(run[run.length - 1], name)) run.push(name);
    else runs.push([name]);
  }
  return runs.map((run) => run.length < 3 ? run.join(", ") : `${run[0]} to ${run[run.length - 1]}`).join(
    ", ",
  );
}

function follows(first: string, second: string): boolean {
  const parts = (name: string) => /^(0x)?(\D*)([0-9a-f]+)$/.exec(name);
  const [one, other] = [parts(first), parts(second)];
  if (one === null || other === null || one[2] !== other[2]) return false;
  const radix = one[1] === undefined ? 10 : 16;
  return parseInt(other[3], radix) === parseInt(one[3], radix) + 1;
}

function places(features: readonly FeatureFacts[]): string {
  if (features.length === 0) return "none";
  const where = Map.groupBy(features, (feature) => feature.where);
  return [...where].map(([place, list]) => `${place}: ${ranges(list.map(({ bit }) => String(bit)))}`).join(
    "; ",
  );
}
