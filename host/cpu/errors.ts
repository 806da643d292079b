/**
 * What goes wrong in guest code, told in guest terms.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";

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
