/**
 * Why paths are in use or not, as text.
 *
 * @module
 */

import type { Explanation } from "../../host/mod.ts";
import { wrapped } from "./table.ts";

/** Columns that a reason needs beside the path's name, to stand there. */
const ROOM = 24;

/**
 * A line a path: its name, whether it is in use, and why, folded into `columns`. Where vCPUs differ, each answer says whose
 * it is.
 *
 * @example Two paths
 * ```ts
 * import { explanationText } from "@exitless/exitless/lab";
 * import { assertEquals } from "@std/assert";
 *
 * const text = explanationText([
 *   { path: "APICv", inUse: true, why: "nothing inhibits it", vcpus: [0, 1] },
 *   { path: "PV EOI", inUse: false, why: "the guest has not enabled it", vcpus: [1] },
 * ], 2, 80);
 * assertEquals(text, "APICv   yes  nothing inhibits it\nPV EOI  no   vCPU 1: the guest has not enabled it");
 * ```
 */
export function explanationText(
  explanations: readonly Explanation[],
  vcpus: number,
  columns: number,
): string {
  const names = Math.max(0, ...explanations.map(({ path }) => path.length));
  const indent = names + 7 + ROOM <= columns ? names + 7 : 2;
  const margin = " ".repeat(indent);
  return explanations.map(({ path, inUse, why, vcpus: whose }) => {
    const reason = whose.length === vcpus ? why : `${ranges(whose)}: ${why}`;
    const lines = wrapped(reason, columns - indent).split("\n").map((line) => margin + line);
    const head = `${path.padEnd(names)}  ${inUse ? "yes" : "no "}  `;
    return indent === head.length
      ? [head + lines[0].slice(indent), ...lines.slice(1)].join("\n")
      : [head.trimEnd(), ...lines].join("\n");
  }).join("\n");
}

/** Numbers in ascending order, as "vCPUs 0-3, 5". */
function ranges(numbers: readonly number[]): string {
  const parts: string[] = [];
  for (let from = 0, to = 0; from < numbers.length; from = to + 1, to = from) {
    while (numbers[to + 1] === numbers[to] + 1) to++;
    parts.push(from === to ? `${numbers[from]}` : `${numbers[from]}-${numbers[to]}`);
  }
  return `vCPU${numbers.length === 1 ? "" : "s"} ${parts.join(", ")}`;
}
