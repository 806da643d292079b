/**
 * Activations: how they begin, and how they end. RIP decides where an interrupted function goes on:
 *
 * - at the site of its pending instruction: the instruction is executed (again);
 * - behind that site: it has been done by somebody else;
 * - at the fixup pad of its block: the instruction throws its fault into the function;
 * - anywhere else: a loud error.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import {
  faultOf,
  Frame,
  hex,
  instructionText,
  type TextBlock,
  type Vector,
  type X86Cpu,
} from "../../abi/mod.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  ERROR_CODE,
  FIXUP_PAD,
  LENGTH,
  MAX_FRAMES,
  HIGH,
  NO_VECTOR,
  R11,
  RAX,
  RBX,
  RCX,
  RDI,
  RDX,
  RFLAGS,
  RSI,
  SITE,
  UNSENT,
  VECTOR,
} = abi;

/**
 * Begins an activation of `block` above the present one, with the registers as they are: of the general ones, those
 * that instructions reach, which are their operands, and R11, which SYSCALL fills.
 */
export function pushFrame(p: Processor, block: TextBlock): void {
  const { context } = p;
  const below = context.top;
  const above = below.above ?? newFrame(p, below);
  below.rip = UNSENT;
  below.pending = context.pending;
  below.last = context.last;
  // A frame holds its function only while it is not the top one: a handler's never leaves the context.
  below.guest = context.guest;
  const from = below.regs;
  const to = above.regs;
  to[RAX] = from[RAX];
  to[RAX + 1] = from[RAX + 1];
  to[RCX] = from[RCX];
  to[RCX + 1] = from[RCX + 1];
  to[RDX] = from[RDX];
  to[RDX + 1] = from[RDX + 1];
  to[RBX] = from[RBX];
  to[RBX + 1] = from[RBX + 1];
  to[RSI] = from[RSI];
  to[RSI + 1] = from[RSI + 1];
  to[RDI] = from[RDI];
  to[RDI + 1] = from[RDI + 1];
  to[R11] = from[R11];
  to[R11 + 1] = from[R11 + 1];
  to[RFLAGS] = from[RFLAGS];
  context.depth++;
  begin(p, above, block);
}

function newFrame(p: Processor, below: Frame): Frame {
  if (p.context.depth === MAX_FRAMES) {
    throw p.error(`${MAX_FRAMES} activations are nested already, the most allowed`);
  }
  const frame = new Frame(below);
  below.above = frame;
  return frame;
}

/** Begins a context's first activation. */
function beginFirst(p: Processor): void {
  const { context } = p;
  const block = entryAt(p, p.storedRip);
  context.depth = 1;
  begin(p, context.top, block);
}

/** The top activation begins, in `block`. */
function begin(p: Processor, frame: Frame, block: TextBlock): void {
  const { context } = p;
  frame.block = block;
  context.top = frame;
  context.guest = block.code(context);
  context.regs = frame.regs;
  context.pending = 0;
  context.last = 0;
  p.regs = frame.regs;
}

/** The function whose entry is at `address`. */
export function entryAt(p: Processor, address: number): TextBlock {
  const block = p.text.blockAt(address);
  if (block === undefined || block.address !== address) {
    throw p.error(`${hex(address)} is not the entry of a guest function`);
  }
  return block;
}

/** A linear address from its halves: a small integer to V8 where it can be one. */
export function linear(low: number, high: number): number {
  return high === 0 ? low : high * HIGH + low;
}

/** Takes the top activation off and goes on with the one below: the register part of IRET. */
export function popFrame(p: Processor): void {
  const { context } = p;
  const { top } = context;
  const { below } = top;
  context.depth--;
  context.top = below;
  context.guest = below.guest;
  below.guest = undefined;
  context.regs = below.regs;
  context.pending = below.pending;
  context.last = below.last;
  p.regs = below.regs;
  if (below.rip !== UNSENT) goOnAt(p, below.rip, top.regs[VECTOR], top.regs[ERROR_CODE]);
}

/** Software set RIP while the processor was out of guest mode: an entry starts a function, a continuation goes on. */
export function resumeAt(p: Processor): void {
  const rip = p.storedRip;
  if (p.context.depth === 0) beginFirst(p);
  else if (rip !== p.rip) goOnAt(p, rip, NO_VECTOR, 0);
}

function goOnAt(p: Processor, rip: number, vector: number, errorCode: number): void {
  const { context } = p;
  const op = context.pending;
  const { address } = context.top.block!;
  if (op !== 0 && rip === address + SITE[op] + LENGTH[op]) {
    p.retire(op);
    return;
  }
  if (op !== 0 && rip === address + FIXUP_PAD && vector !== NO_VECTOR) {
    fixUp(p, op, faultOf(vector as Vector, errorCode, instructionText(op)));
    return;
  }
  throw p.error(`RIP ${hex(rip)} is neither an entry nor a continuation of the interrupted function`);
}

function fixUp(p: Processor, op: number, fault: Error): void {
  p.context.pending = 0;
  p.context.last = op;
  p.throwInto(fault);
}

/** Switches to another context: the rest of XCHG RSP, RAX. */
export function switchContext(p: Processor, next: X86Cpu): void {
  if (next.running) throw p.error("it switched to a task that is already running");
  p.context.running = false;
  next.running = true;
  next.sys = p.sys;
  p.context = next;
  p.regs = next.regs;
  if (next.depth === 0) beginFirst(p);
}
