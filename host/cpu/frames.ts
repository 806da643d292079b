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
  type Guest,
  hex,
  instructionText,
  type TextBlock,
  type Vector,
  type X86Cpu,
} from "../../abi/mod.ts";
import { executeIret } from "./execute.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  ERROR_CODE,
  FIXUP_PAD,
  LENGTH,
  MAX_FRAMES,
  NO_VECTOR,
  OP_IRET,
  R11,
  R8,
  RFLAGS,
  RIP,
  SITE,
  SYSCALL_ENTRY,
  VECTOR,
} = abi;

/** The words of the registers that instructions reach, RAX to RDI; the only other one is R11, which SYSCALL fills. */
const REACHED = R8;

/** Begins an activation of the function at `address` above the present one, with the registers as they are. */
export function pushFrame(p: Processor, address: number): void {
  const { context } = p;
  const { depth, frames } = context;
  if (depth >= MAX_FRAMES) {
    throw p.error(`${MAX_FRAMES} activations are nested already, the most allowed`);
  }
  const block = blockAt(p, address);
  const below = frames[depth - 1];
  const from = below.regs;
  p.saveRip();
  below.savedRip = from[RIP] | 0;
  below.pending = context.pending;
  below.last = context.last;
  // A frame holds its function only while it is not the top one: a handler's never leaves the context.
  below.guest = context.guest;
  begin(p, depth, block);
  const to = p.regs;
  for (let i = 0; i < REACHED; i++) to[i] = from[i];
  to[R11] = from[R11];
  to[R11 + 1] = from[R11 + 1];
  to[RFLAGS] = from[RFLAGS];
}

function begin(p: Processor, depth: number, block: TextBlock): void {
  const { context } = p;
  let frame = context.frames[depth];
  if (frame === undefined) {
    frame = new Frame();
    context.frames[depth] = frame;
  }
  if (frame.block !== block) frame.block = block;
  context.depth = depth + 1;
  context.guest = block.code(context);
  context.regs = frame.regs;
  context.pending = 0;
  context.last = 0;
  p.regs = frame.regs;
}

function blockAt(p: Processor, address: number): TextBlock {
  const block = p.text.blockAt(address);
  if (block === undefined || block.address !== address) {
    throw p.error(`${hex(address)} is not the entry of a guest function`);
  }
  return block;
}

/**
 * The function at the top returned. A handler executes IRET; a system call or a user program gives the processor back
 * to what ran before it; a program that was booted leaves a processor that halts.
 */
export function endFrame(p: Processor): void {
  const { context } = p;
  if (context.pending !== 0) {
    throw p.error(`it returned without yielding ${instructionText(context.pending)}, which it had built`);
  }
  if (context.depth > 1) {
    const vector = p.regs[VECTOR];
    if (vector === NO_VECTOR || vector === SYSCALL_ENTRY) {
      popFrame(p);
      p.charge(p.cost.iret);
    } else {
      context.pending = OP_IRET;
      executeIret(p);
    }
    return;
  }
  if (context !== p.bootContext) throw p.error("this task returned; it must switch to another one instead");
  p.finished = true;
  context.guest = halted(context);
}

/** What a processor does after its program: CLI, and HLT for ever. */
function* halted(cpu: X86Cpu): Guest {
  yield cpu.cli();
  for (;;) yield cpu.hlt();
}

/** Takes the top activation off and goes on with the one below: the register part of IRET. */
export function popFrame(p: Processor): void {
  const { context } = p;
  const { frames } = context;
  const depth = --context.depth;
  const top = frames[depth];
  const below = frames[depth - 1];
  context.guest = below.guest;
  below.guest = undefined;
  context.regs = below.regs;
  context.pending = below.pending;
  context.last = below.last;
  p.regs = below.regs;
  if ((below.regs[RIP] | 0) !== below.savedRip) {
    goOnAt(p, p.storedRip, top.regs[VECTOR], top.regs[ERROR_CODE]);
  }
}

/** Software set RIP while the processor was out of guest mode: an entry starts a function, a continuation goes on. */
export function resumeAt(p: Processor): void {
  const { context } = p;
  const rip = p.storedRip;
  if (context.depth === 0) begin(p, 0, blockAt(p, rip));
  else if (rip !== p.rip) goOnAt(p, rip, NO_VECTOR, 0);
}

function goOnAt(p: Processor, rip: number, vector: number, errorCode: number): void {
  const { context } = p;
  const frame = context.frames[context.depth - 1];
  const op = context.pending;
  const { address } = frame.block!;
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
  if (next.depth === 0) begin(p, 0, blockAt(p, p.storedRip));
}
