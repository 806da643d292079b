/**
 * An execution context of the architectures that share host/arch: a stack of activations of guest functions, each with its
 * own window of registers, and how an instruction is built. x86 has its own ({@linkcode X86Context}).
 *
 * A register is two 32-bit words, low first. Its number is the architecture's; word `2 * r` is its low half.
 *
 * @module
 */

import { HIGH, highOf, lowOf, u64 } from "./bits.ts";
import type { BlockLayout, MachineBlock, MachineGuest } from "./text_block.ts";

/** How many activations may be nested: a program, and handlers above it. */
export const MACHINE_FRAMES = 24;

/** An exception that a handler sent to the fixup of the function that it interrupted: thrown there. */
export class MachineFault extends Error {
  /** The error's name. */
  override readonly name = "MachineFault";
  /** What the architecture calls the exception. */
  readonly exception: string;
  /** Its code: a program-interruption code, an ExcCode, a vector. */
  readonly code: number;
  /** The instruction that caused it, as an assembler spells it. */
  readonly instruction: string;

  /** `exception`, whose number is `code`, of `instruction`. */
  constructor(exception: string, code: number, instruction: string) {
    super(`${instruction} caused ${exception} (0x${code.toString(16)})`);
    this.exception = exception;
    this.code = code;
    this.instruction = instruction;
  }
}

/** One activation of a guest function. */
export interface MachineFrame<Cpu> {
  /** Its registers. */
  readonly regs: Uint32Array;
  /** Where its text is. */
  readonly block: MachineBlock<Cpu>;
  /** The running function. */
  readonly guest: MachineGuest;
  /** Its instruction that has not completed; 0 for none. */
  pending: number;
  /** The function has returned: the frame ends with the instruction that is pending. */
  ended: boolean;
  /** What the frame below gets if this handler sends it to its fixup pad; undefined in a program, or for an interrupt. */
  readonly fault: MachineFault | undefined;
  /** What it gets if it goes on at its fixup pad: its handler has returned. */
  owed: MachineFault | undefined;
}

/** A register, and what it is loaded with. */
export type RegisterLoad = readonly [register: number, value: number | bigint];

/** How a context is made. */
export interface ContextShape {
  /** The layout of its text. */
  readonly layout: BlockLayout;
  /** Registers in a window. */
  readonly registers: number;
  /** 64-bit system registers of a processor. */
  readonly systemRegisters: number;
}

/** The activations and registers of a processor's handle. `Cpu` is the handle's own class. */
export class MachineContext<Cpu> {
  /** The layout of its text. */
  readonly layout: BlockLayout;
  /** The activations, the lowest first. */
  readonly frames: MachineFrame<Cpu>[] = [];
  /** The registers of the top activation. */
  regs: Uint32Array;
  /** The instruction that is built and has not completed; 0 for none. */
  pending = 0;
  /** The program counter: the address of the next instruction that the processor fetches. */
  pc = 0;
  /** The system registers of the processor that runs this context. */
  sys: Uint32Array;
  /** Whether a processor has this context loaded. */
  running = false;

  /** A context without activations, which begins at {@linkcode pc}. */
  constructor({ layout, registers, systemRegisters }: ContextShape) {
    this.layout = layout;
    this.regs = new Uint32Array(2 * registers);
    this.sys = new Uint32Array(2 * systemRegisters);
  }

  /** The top activation; undefined before the first. */
  get top(): MachineFrame<Cpu> | undefined {
    return this.frames[this.frames.length - 1];
  }

  /** A register's value. */
  register(number: number): bigint {
    return u64(this.regs[2 * number], this.regs[2 * number + 1]);
  }

  /** Sets a register, modulo 2^64. Throws `RangeError` for a number that is not whole. */
  setRegister(number: number, value: number | bigint): void {
    setWords(this.regs, number, value);
  }

  /** A system register's value. */
  system(number: number): bigint {
    return u64(this.sys[2 * number], this.sys[2 * number + 1]);
  }

  /** Sets a system register, modulo 2^64. */
  setSystem(number: number, value: number | bigint): void {
    setWords(this.sys, number, value);
  }

  /** Sets a register that the activation below will find: how a handler returns a value. */
  setInterruptedRegister(number: number, value: number | bigint): void {
    setWords(this.interrupted("return a value").regs, number, value);
  }

  /** A register of the activation below. */
  interruptedRegister(number: number): bigint {
    const { regs } = this.interrupted("read a register");
    return u64(regs[2 * number], regs[2 * number + 1]);
  }

  /** The activation that a handler interrupted. Throws where there is none. */
  interrupted(what: string): MachineFrame<Cpu> {
    if (this.frames.length < 2) throw new Error(`Cannot ${what}: no activation was interrupted`);
    return this.frames[this.frames.length - 2];
  }

  /** The address of the fixup pad of the activation below. Throws where no instruction of it faulted. */
  fixupPad(): number {
    const { block, pending } = this.interrupted("fix up");
    if (pending === 0) throw new Error("Cannot fix up: no instruction is pending there");
    return block.address + this.layout.pad;
  }

  /** Begins to build an instruction. Throws where another one waits to be yielded. */
  protected begin(opcode: number): number {
    if (this.pending !== 0) {
      const { layout } = this;
      throw new Error(
        `Cannot build ${layout.instructionText(opcode)}: ${
          layout.instructionText(this.pending)
        } was built before it and not yielded`,
      );
    }
    this.pending = opcode;
    return opcode;
  }

  /** Builds an instruction, and loads some registers for it. */
  protected build(opcode: number, ...loads: readonly RegisterLoad[]): number {
    this.begin(opcode);
    try {
      for (const [register, value] of loads) this.setRegister(register, value);
    } catch (error) {
      this.pending = 0;
      throw error;
    }
    return opcode;
  }
}

function setWords(words: Uint32Array, number: number, value: number | bigint): void {
  if (typeof value === "bigint") {
    words[2 * number] = lowOf(value);
    words[2 * number + 1] = highOf(value);
  } else if (Number.isSafeInteger(value)) {
    words[2 * number] = value;
    words[2 * number + 1] = Math.floor(value / HIGH);
  } else {
    throw new RangeError(`Cannot load ${value} into a register: allowed are whole numbers and bigints`);
  }
}
