/**
 * How an instruction is built: its opcode is pending until it is yielded, and its operands are in the registers that its
 * encoding names.
 *
 * @module
 */

import * as bits from "../bits.ts";
import { highOf, lowOf } from "../bits.ts";
import { X86Context } from "./context.ts";
import { instructionText } from "./instructions.ts";
import * as registers from "./registers.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { HIGH } = bits;
const { RAX, RCX, RDI, RDX } = registers;

/** The upper half of linear addresses is written as negative numbers: this many of them are canonical. */
const LOWEST = 2 ** 47;

/** A context whose instructions can be built. */
export class X86Operands extends X86Context {
  /** Begins to build an instruction. Throws where another one waits to be yielded. */
  protected begin(opcode: number): number {
    if (this.pending !== 0) {
      throw new Error(
        `Cannot build ${instructionText(opcode)}: ${
          instructionText(this.pending)
        } was built before it and not yielded`,
      );
    }
    this.pending = opcode;
    return opcode;
  }

  /** Loads a register with two halves. */
  protected pair(word: number, lo: number, hi: number): void {
    // Cut to 32 bits as integers, not by the array from floating point.
    const { regs } = this;
    regs[word] = lo | 0;
    regs[word + 1] = hi | 0;
  }

  /** Loads a register with a whole number or a bigint. Throws `RangeError` for other numbers. */
  protected wide(word: number, value: number | bigint): void {
    const { regs } = this;
    if (typeof value === "bigint") {
      regs[word] = lowOf(value);
      regs[word + 1] = highOf(value);
    } else if (value >>> 0 === value) {
      regs[word] = value;
      regs[word + 1] = 0;
    } else if (Number.isSafeInteger(value)) {
      regs[word] = value;
      regs[word + 1] = Math.floor(value / HIGH);
    } else {
      throw new RangeError(`Cannot load ${value} into a register: allowed are whole numbers and bigints`);
    }
  }

  /** Loads RDI with an address. Throws `RangeError` for what is none. */
  protected address(address: number): void {
    const { regs } = this;
    regs[RDI] = address;
    if (address >>> 0 === address) {
      regs[RDI + 1] = 0;
    } else if (Number.isSafeInteger(address) && address >= -LOWEST) {
      regs[RDI + 1] = Math.floor(address / HIGH);
    } else {
      this.pending = 0;
      throw new RangeError(`Cannot address ${address}: allowed are whole numbers from -2^47 to 2^53 - 1`);
    }
  }

  /** An instruction with a memory operand. */
  protected memory(opcode: number, address: number): number {
    this.begin(opcode);
    this.address(address);
    return opcode;
  }

  /** One with a memory operand, and RAX. */
  protected store(opcode: number, address: number, lo: number, hi: number): number {
    this.begin(opcode);
    this.address(address);
    this.pair(RAX, lo, hi);
    return opcode;
  }

  /** One with a bit string in memory, and the number of a bit. */
  protected bit(opcode: number, address: number, bit: number): number {
    this.begin(opcode);
    this.address(address);
    this.pair(RCX, bit, 0);
    return opcode;
  }

  /** One with RAX alone. */
  protected value(opcode: number, lo: number, hi: number): number {
    this.begin(opcode);
    this.pair(RAX, lo, hi);
    return opcode;
  }

  /** OUT, of some width. */
  protected out(opcode: number, port: number, value: number): number {
    this.begin(opcode);
    this.pair(RDX, port, 0);
    this.pair(RAX, value, 0);
    return opcode;
  }
}
