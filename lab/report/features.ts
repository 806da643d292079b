/**
 * What architectures have, as text.
 *
 * @module
 */

import {
  type ArchName,
  type CallFacts,
  type CallingConvention,
  type FeatureFacts,
  featuresOf,
} from "../features.ts";
import { wrapped } from "./table.ts";

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
    ["call", convention.instructions.map(({ text, bytes: all }) => bytes(text, all)).join("; ")],
    ["number", convention.number],
    ["arguments", convention.arguments.join(", ")],
    ["results", `${convention.results.join(", ")}; ${convention.status}`],
    ["widths", convention.widths],
    ["unknown number", convention.unknown],
    ["from user mode", convention.fromUserMode],
    ["then", convention.advance],
    ["discovery", convention.discovery],
  ].map(([what, text]) => entry(`  ${what.padEnd(16)}`, text, columns)).join("\n");
}

function callText(call: CallFacts, columns: number): string {
  const signature = `${call.name}(${call.arguments.join(", ")})`;
  return [
    entry(`  ${call.number.padStart(8)}  `, `${signature} -> ${call.result}`, columns),
    entry(" ".repeat(14), `${call.meaning}; ${call.offered}`, columns),
  ].join("\n");
}

function featureTexts(features: readonly FeatureFacts[], columns: number): string[] {
  if (features.length === 0) return ["features: hosts tell of none"];
  const lines: string[] = [];
  let where = "";
  for (const feature of features) {
    if (feature.where !== where) lines.push(`features in ${where = feature.where}`);
    const text = `${feature.name}: ${feature.meaning}; ${feature.offered}`;
    lines.push(entry(`  ${String(feature.bit).padStart(8)}  `, text, columns));
  }
  return lines;
}

/** A text behind its head, broken so that it stays behind it. */
function entry(head: string, text: string, columns: number): string {
  return head + wrapped(text, columns - head.length).replaceAll("\n", `\n${" ".repeat(head.length)}`);
}
