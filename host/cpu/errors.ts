/**
 * What goes wrong in guest code, told in guest terms.
 *
 * @module
 */

import { exceptionName, hex, instructionText, X86Fault } from "../../abi/mod.ts";
import type { Processor } from "./processor.ts";

/** Guest code cannot go on: it let an exception escape, forgot a `yield`, or jumped to where no function is. */
export class GuestError extends Error {
  /** The error's name. */
  override readonly name = "GuestError";
  /** The processor, as `vcpu 3`. */
  readonly processor: string;
  /** The guest function that was running. */
  readonly where: string;
  /** Its instruction pointer. */
  readonly rip: number;

  /** `problem` happened on `processor`, in the function `where`, at `rip`. */
  constructor(processor: string, where: string, rip: number, problem: string, cause?: unknown) {
    super(`Cannot go on in ${where} on ${processor} at RIP ${hex(rip)}: ${problem}`, { cause });
    this.processor = processor;
    this.where = where;
    this.rip = rip;
  }
}

/** Something real that this machine does not model. */
export class NotModelled extends Error {
  /** The error's name. */
  override readonly name = "NotModelled";

  /** `what` is not modelled; `reference` says where it is described. */
  constructor(what: string, reference: string) {
    super(`Cannot simulate ${what}: not modelled (${reference})`);
  }
}

/** What a guest function let escape. */
export function escaped(p: Processor, error: unknown): Error {
  if (error instanceof X86Fault) {
    return p.error(`nobody caught ${exceptionName(error.vector)} of ${error.instruction}`, error);
  }
  if (!isGenerator(p.context.guest)) {
    return p.error("it is no generator function: what it returned cannot be resumed", error);
  }
  return p.error(error instanceof Error ? error.message : String(error), error);
}

function isGenerator(guest: unknown): boolean {
  return Object.prototype.toString.call(guest) === "[object Generator]";
}

/** A guest function yielded something else than the instruction that it had built. */
export function misbuilt(p: Processor, op: unknown): Error {
  const built = p.context.pending;
  if (built === 0) {
    return p.error(`it yielded ${String(op)}; what it yields must be built by its cpu handle`);
  }
  const yielded = typeof op === "number" ? instructionText(op) : String(op);
  return p.error(`it built ${instructionText(built)} and yielded ${yielded}`);
}
