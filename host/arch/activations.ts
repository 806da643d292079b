/**
 * Where guest code goes on. The program counter decides:
 *
 * - at the site of the pending instruction: that instruction is executed (again);
 * - behind that site: it is done, and its function goes on;
 * - at the fixup pad of its block, after a handler: its fault is thrown into its function;
 * - outside text: the words there are executed, until they come back to one of those;
 * - anywhere else in text: a loud error.
 *
 * @module
 */

import {
  MACHINE_FRAMES,
  type MachineContext,
  type MachineFault,
  type MachineFrame,
  type MachineText,
} from "../../abi/mod.ts";
import { ArchGuestError } from "./errors.ts";

/** The guest code of a processor. `Cpu` is the handle that its functions get. */
export class Activations<Cpu extends MachineContext<Cpu>> {
  /** The text that the processor fetches from; undefined before an image was loaded. */
  text: MachineText<Cpu> | undefined = undefined;
  /** The context that is loaded. */
  context: Cpu;
  readonly #processor: string;
  /** The processor is on its way from a vector that is no function's entry to the handler. */
  #entering = false;
  #fault: MachineFault | undefined = undefined;
  #returned = false;

  /** The code of `processor`, which has `context` loaded. */
  constructor(processor: string, context: Cpu) {
    this.#processor = processor;
    this.context = context;
    context.running = true;
  }

  /**
   * Brings the function at the top to an instruction that is to be executed at the program counter. false where the
   * program has returned.
   */
  ready(): boolean {
    const { context } = this;
    if (context.frames.length === 0) this.#push(undefined);
    if (this.#entering && this.#onItsWay()) return true;
    this.settle();
    while (context.pending === 0 || !this.#waits()) {
      const { pending } = context;
      const { block, owed } = context.top!;
      context.top!.owed = undefined;
      if (pending === 0) {
        if (!this.#resume()) return false;
      } else if (context.pc === block.address + context.layout.pad && owed !== undefined) {
        context.pending = 0;
        if (!this.#resume(owed)) return false;
      } else {
        throw this.error("neither an entry nor a continuation of a function is there");
      }
    }
    context.top!.owed = undefined;
    return true;
  }

  /**
   * The processor has set the program counter to an exception's vector: its handler begins there, or where the words there
   * jump to. `fault` is what the handler may send to the fixup of the function that it interrupts.
   */
  enterHandler(fault?: MachineFault): void {
    this.#entering = true;
    this.#fault = fault;
    this.#onItsWay();
  }

  /** Whether words outside text lead to the handler's entry; where they have done so, it begins. */
  #onItsWay(): boolean {
    if (this.text?.blockAt(this.context.pc) === undefined) return true;
    this.#entering = false;
    this.#push(this.#fault);
    return false;
  }

  /**
   * The processor has executed the instruction that returns from a handler, or the host has for it: if the handler's
   * function has returned, its activation ends. Without this call it ends when the program counter is elsewhere, which is the
   * same unless the way back leads to that very instruction of the same function.
   */
  leaveHandler(): void {
    this.#returned = this.context.top?.ended === true;
  }

  /**
   * The processor was reset, and goes on at the program counter: behind the instruction that had it reset, or anywhere else,
   * and then whatever ran on it is gone.
   */
  restart(): void {
    const { context } = this;
    const { top, pc, pending, layout } = context;
    if (top !== undefined && pc === top.block.address + layout.behind[pending]) return;
    this.clear();
  }

  /** Whatever ran on the processor is gone; registers stay. */
  clear(): void {
    const { context } = this;
    context.frames.length = 0;
    context.pending = 0;
    this.#entering = false;
    this.#returned = false;
  }

  /** Another context is loaded: a task switch. */
  load(next: Cpu): void {
    if (next.running) throw this.error("it switched to a task that is already running");
    const { context } = this;
    context.running = false;
    next.running = true;
    next.sys = context.sys;
    this.context = next;
  }

  /** An error in guest terms. */
  error(problem: string, cause?: unknown): ArchGuestError {
    const { context } = this;
    const where = context.top?.block.name ?? "no function";
    return new ArchGuestError(this.#processor, where, context.pc, problem, cause);
  }

  /** Whether the pending instruction, or words outside text, are to be executed. What has been completed is no more. */
  #waits(): boolean {
    const { context } = this;
    const { pc, pending, layout } = context;
    const { address } = context.top!.block;
    if (pc === address + layout.behind[pending]) {
      context.pending = 0;
      return false;
    }
    if (pc >= address + layout.site[pending] && pc < address + layout.behind[pending]) return true;
    return this.text!.blockAt(pc) === undefined;
  }

  /**
   * A handler whose returning instruction has been executed ends; the frame below is owed what its fixup throws. Called
   * before the next instruction anyway; where interrupts can come before that, right behind the returning one.
   */
  settle(): void {
    const { context } = this;
    const { top } = context;
    if (!top?.ended) return;
    const here = context.pc === top.block.address + context.layout.site[context.pending];
    if (here && !this.#returned) return;
    this.#returned = false;
    context.frames.pop();
    const below = context.top!;
    below.owed = top.fault ?? below.owed;
    context.regs = below.regs;
    context.pending = below.pending;
  }

  #push(fault: MachineFault | undefined): void {
    const { context } = this;
    const { pc, frames } = context;
    const block = this.text?.blockAt(pc);
    if (block === undefined || block.address !== pc) {
      throw this.error("no guest function has its entry there");
    }
    const below = context.top;
    if (below !== undefined) below.pending = context.pending;
    const regs = below === undefined ? context.regs : below.regs.slice();
    const frame: MachineFrame<Cpu> = {
      regs,
      block,
      guest: block.code(context),
      pending: 0,
      ended: false,
      fault,
      owed: undefined,
    };
    if (frames.length === MACHINE_FRAMES) {
      throw this.error(`${MACHINE_FRAMES} activations are nested already, the most allowed`);
    }
    frames.push(frame);
    context.regs = regs;
    context.pending = 0;
  }

  /** Resumes the function at the top up to its next instruction. false where it was the program, and has returned. */
  #resume(fault?: MachineFault): boolean {
    const { context } = this;
    const top = context.top!;
    let result: IteratorResult<number, void>;
    try {
      result = fault === undefined ? top.guest.next() : top.guest.throw(fault);
    } catch (error) {
      throw this.error(error instanceof Error ? error.message : String(error), error);
    }
    if (result.done) {
      if (context.pending !== 0) {
        throw this.error(`it built ${context.layout.instructionText(context.pending)} and did not yield it`);
      }
      if (context.frames.length === 1) return false;
      top.ended = true;
      context.pending = context.layout.returns;
    } else if (result.value !== context.pending || result.value === 0) {
      throw this.error(`it yielded ${String(result.value)}; what it yields must be built by its cpu handle`);
    }
    context.pc = top.block.address + context.layout.site[context.pending];
    return true;
  }
}
