/**
 * What a virtual machine's ring of trace records holds, as text in the manner of ftrace, and as a file.
 *
 * @module
 */

import { Foras, gzip, Memory } from "denoflate";
import type { AnyVm } from "../experiments/experiment.ts";

/** Records that are kept of each boot of a guest when a trace is asked for. */
export const TRACE_RECORDS: number = 1 << 16;

/** The records of a virtual machine under a title, oldest first; a comment says how many were overwritten. */
export function traceText(title: string, vm: AnyVm): string {
  const lines = [`# ${title}: vCPU, time in cycles, event`];
  const { lost } = vm.tracer;
  if (lost > 0) lines.push(`# ${lost} earlier records were overwritten`);
  return [...lines, ...vm.traceText()].join("\n") + "\n";
}

/** A text file's bytes: compressed where its name ends in `.gz`. */
export async function fileBytes(path: string, text: string): Promise<Uint8Array> {
  const plain = new TextEncoder().encode(text);
  if (!path.endsWith(".gz")) return plain;
  await Foras.initBundledOnce();
  using memory = new Memory(plain);
  return gzip(memory, 1).copyAndDispose();
}
