/**
 * Records as text, in the manner of ftrace.
 *
 * @module
 */

import { apicRegisterName, DELIVERY_MODES, hex, msrName, u64 } from "../../abi/mod.ts";
import { type ArgFormat, TRACEPOINTS, type TracepointSpec } from "./tracepoints.ts";
import type { TraceRecord } from "./tracer.ts";

/** Names an exit reason of the virtual machine's backend. */
export type ExitNames = (reason: number) => string;

/** One line for one record: vCPU, time in cycles, event, arguments. */
export function formatRecord(
  record: TraceRecord,
  exitName: ExitNames,
  tracepoints: readonly TracepointSpec[] = TRACEPOINTS,
): string {
  const { name, args } = tracepoints[record.event];
  let word = 0;
  const fields = args.map(([field, format]) => {
    const low = record.args[word++];
    const value = format === "hex64" ? hex(u64(low, record.args[word++])) : formatWord(format, low, exitName);
    return `${field} ${value}`;
  });
  const who = record.vcpu < 0 ? "-" : `vcpu${record.vcpu}`;
  return `${who.padStart(7)} ${String(record.time).padStart(14)}: ${name}: ${fields.join(" ")}`;
}

function formatWord(format: Exclude<ArgFormat, "hex64">, word: number, exitName: ExitNames): string {
  switch (format) {
    case "dec":
      return String(word | 0);
    case "hex":
      return hex(word);
    case "bool":
      return word === 0 ? "0" : "1";
    case "exit":
      return exitName(word);
    case "apic-register":
      return apicRegisterName(word);
    case "delivery-mode":
      return DELIVERY_MODES[(word >>> 8) & 7];
    case "msr":
      return msrName(word);
  }
}
