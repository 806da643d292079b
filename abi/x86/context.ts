/**
 * An execution context: a stack of activations of guest functions, each with its own window of registers, and what a
 * handler may know and change of the activation that it interrupted.
 *
 * @module
 */

import * as bits from "../bits.ts";
import { u64 } from "../bits.ts";
import * as instructions from "./instructions.ts";
import { words } from "../words.ts";
import * as registers from "./registers.ts";
import type { Guest, TextBlock } from "./text.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { HIGH } = bits;
const { BEHIND, FIXUP_PAD, LENGTH, SITE } = instructions;
const {
  CR0_PE,
  CS,
  ERROR_CODE,
  FLAG_CF,
  FLAG_FIXED,
  FLAG_IF,
  FLAG_ZF,
  GENERAL_REGISTERS,
  KERNEL_CS,
  NO_VECTOR,
  RAX,
  RBX,
  RCX,
  RDX,
  RFLAGS,
  SYS_CR0,
  SYS_GS_BASE,
  SYS_WORDS,
  VECTOR,
  WINDOW,
} = registers;

/** How many activations may be nested: a program, and handlers above it. */
export const MAX_FRAMES = 24;

/** What {@linkcode Frame.rip} is while no handler has sent the activation anywhere. */
export const UNSENT: number = -1;

/** One activation of a guest function, with its own window of registers. */
export class Frame {
  /** The activation's registers: live while it is the top one, saved while others are above it. */
  readonly regs: Uint32Array = words(WINDOW);
  /** The frame below; the lowest one's is itself. */
  readonly below: Frame;
  /** The frame above, which stays for the next activation; undefined before the first one there. */
  above: Frame | undefined = undefined;
  /** While other frames are above it: the function, which its context has while it is the top one. */
  guest: Guest | undefined = undefined;
  /** Where its text is. */
  block: TextBlock | undefined = undefined;
  /** While other frames are above it: its instruction that has not completed, 0 for none. */
  pending = 0;
  /** While other frames are above it: the last instruction that it completed, 0 for none. */
  last = 0;
  /**
   * While other frames are above it: the linear address that a handler sends it to; {@linkcode UNSENT} where it goes
   * on at its {@linkcode site}.
   */
  rip: number = UNSENT;

  /** A frame above another one; without that, the lowest. */
  constructor(below?: Frame) {
    this.below = below ?? this;
  }

  /** While other frames are above it: the linear address of its pending instruction, or of the next one. */
  get site(): number {
    return presentAddress(this.block!, this.pending, this.last);
  }
}

/** The linear address of instruction `pending` of a block, or, where that is 0, of what follows `last`: a small integer. */
export function presentAddress(block: TextBlock, pending: number, last: number): number {
  return block.address + (pending !== 0 ? SITE[pending] : BEHIND[last]);
}

/** The activations and registers of a {@linkcode X86Cpu}. */
export class X86Context {
  /** The top activation; before the first, the frame that it will begin in. */
  top: Frame = new Frame();
  /** Its registers. */
  regs: Uint32Array = this.top.regs;
  /** Activations in use. */
  depth = 0;
  /** The running function: the top activation's. */
  guest: Guest | undefined = undefined;
  /** The instruction that is built and has not completed; 0 for none. */
  pending = 0;
  /** The instruction that completed last in the top activation; 0 for none. */
  last = 0;
  /** The system registers of the processor that runs this context. */
  sys: Uint32Array = words(SYS_WORDS);
  /** Whether a processor has this context loaded. */
  running = false;

  /** A context without activations: what a processor has at reset. */
  constructor() {
    this.regs[RFLAGS] = FLAG_FIXED;
    this.regs[CS] = KERNEL_CS;
    this.regs[VECTOR] = NO_VECTOR;
  }

  // Registers.

  /** EAX. */
  get eax(): number {
    return this.regs[RAX];
  }
  /** EBX. */
  get ebx(): number {
    return this.regs[RBX];
  }
  /** ECX. */
  get ecx(): number {
    return this.regs[RCX];
  }
  /** EDX. */
  get edx(): number {
    return this.regs[RDX];
  }
  /** RAX. */
  get rax(): bigint {
    return u64(this.regs[RAX], this.regs[RAX + 1]);
  }
  /** Bits 63:32 of RAX. */
  get raxHigh(): number {
    return this.regs[RAX + 1];
  }
  /** RFLAGS.CF. */
  get cf(): boolean {
    return (this.regs[RFLAGS] & FLAG_CF) !== 0;
  }
  /** RFLAGS.ZF. */
  get zf(): boolean {
    return (this.regs[RFLAGS] & FLAG_ZF) !== 0;
  }
  /** RFLAGS.IF. */
  get interruptsEnabled(): boolean {
    return (this.regs[RFLAGS] & FLAG_IF) !== 0;
  }
  /** The current privilege level, 0 to 3. */
  get cpl(): number {
    return this.regs[CS] & 3;
  }
  /** The GS base: where a kernel's per-CPU area is. */
  get gsBase(): number {
    return this.sys[SYS_GS_BASE + 1] * HIGH + this.sys[SYS_GS_BASE];
  }

  /** A general register by name (`rax` to `r15`), for tests and traces. Throws `RangeError` for other names. */
  register(name: string): bigint {
    const word = GENERAL_REGISTERS[name];
    if (word === undefined) {
      throw new RangeError(
        `Cannot read register ${name}: allowed are ${Object.keys(GENERAL_REGISTERS).join(", ")}`,
      );
    }
    return u64(this.regs[word], this.regs[word + 1]);
  }

  // What a handler knows of the event that it handles.

  /** The vector that was delivered to this handler; 0xffffffff in a program. */
  get vector(): number {
    return this.regs[VECTOR];
  }
  /** The error code that was delivered with it; 0 where the exception has none. */
  get errorCode(): number {
    return this.regs[ERROR_CODE];
  }
  /** The instruction pointer that IRET will return to. */
  get interruptedRip(): number {
    const { regs, rip, site } = this.#interrupted("read the interrupted RIP");
    const realMode = (this.sys[SYS_CR0] & CR0_PE) === 0;
    return (rip === UNSENT ? site : rip) - (realMode ? 16 * regs[CS] : 0);
  }
  /** The privilege level that IRET will return to. */
  get interruptedCpl(): number {
    return this.#interrupted("read the interrupted CPL").regs[CS] & 3;
  }

  /**
   * Sends the interrupted function to its fixup: when the handler returns, the instruction that faulted throws an
   * {@linkcode X86Fault} there. What an exception table does in a kernel. Without it the instruction is retried.
   */
  fixup(): void {
    const frame = this.#faulted("fix up");
    frame.rip = frame.block!.address + FIXUP_PAD;
  }

  /** Sends the interrupted function behind its pending instruction, as a handler does that emulated it. */
  skip(): void {
    const frame = this.#faulted("skip an instruction");
    frame.rip = (frame.rip === UNSENT ? frame.site : frame.rip) + LENGTH[frame.pending];
  }

  /** Sets the RAX that the interrupted activation will find: how a system call returns a value. */
  setInterruptedRax(lo: number, hi: number = 0): void {
    const { regs } = this.#interrupted("return a value");
    regs[RAX] = lo;
    regs[RAX + 1] = hi;
  }

  #faulted(what: string): Frame {
    const frame = this.#interrupted(what);
    if (frame.pending === 0) throw new Error(`Cannot ${what}: no instruction is pending there`);
    return frame;
  }

  #interrupted(what: string): Frame {
    if (this.depth < 2) throw new Error(`Cannot ${what}: no activation was interrupted`);
    return this.top.below;
  }
}
