/**
 * What goes wrong in guest code, told in guest terms.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";

/** Guest code cannot go on: it let an exception escape, forgot a `yield`, or went to where no function goes on. */
export class ArchGuestError extends Error {
  /** The error's name. */
  override readonly name = "ArchGuestError";
  /** The processor, as `vcpu 3`. */
  readonly processor: string;
  /** The guest function that was running. */
  readonly where: string;
  /** The program counter. */
  readonly pc: number;

  /** `problem` happened on `processor`, in the function `where`, at `pc`. */
  constructor(processor: string, where: string, pc: number, problem: string, cause?: unknown) {
    super(`Cannot go on in ${where} on ${processor} at PC ${hex(pc)}: ${problem}`, { cause });
    this.processor = processor;
    this.where = where;
    this.pc = pc;
  }
}
