/**
 * Delivery of interrupts and exceptions through the IDT (SDM 3A chapter 6), and IRET.
 *
 * The gate is read from guest memory. What delivery would push on the stack is kept as a saved register window
 * instead; a handler reads it through its handle.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { exceptionOf, type Guest, hex, instructionText, linearAddress, type X86Cpu } from "../../abi/mod.ts";
import * as activations from "./frames.ts";
import { NotModelled } from "./errors.ts";
import { FAULTED, READS_SYSTEM } from "./mmu.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CS,
  DF_VECTOR,
  ERROR_CODE,
  FLAG_IF,
  GATE_PRESENT,
  GP_VECTOR,
  HIGH,
  IDT_GATE32,
  IDT_GATE64,
  KERNEL32_CS,
  KERNEL_CS,
  NO_VECTOR,
  NP_VECTOR,
  OP_IRET,
  RFLAGS,
  SYSCALL_ENTRY,
  SYS_IDT_BASE,
  SYS_IDT_LIMIT,
  VECTOR,
} = abi;
const { entryAt, linear, popFrame, pushFrame } = activations;

const PAGE_MASK = 0xfff;
const TYPE_INTERRUPT = 0xe;
const TYPE_TRAP = 0xf;

/** Error code of a fault during delivery: its index is a vector. */
const ERROR_IDT = 2;
/** The event was external to the program: an interrupt, or an earlier exception (SDM 3A 6.13). */
const ERROR_EXT = 1;

/** What {@linkcode deliver} answers when the handler has begun. */
const DELIVERED = 0;
/** And when reading the gate has exited: the event has not been delivered, and software must see to it. */
const EXITED = -1;

/** What was being delivered when the guest exited: nothing. */
export const VECTORED_NOTHING = 0;
/** An external interrupt. */
export const VECTORED_INTERRUPT = 1;
/** An NMI. */
export const VECTORED_NMI = 2;
/** An exception. */
export const VECTORED_EXCEPTION = 3;

/** The exit interrupted the delivery of an event (SDM 3C 28.2.4: IDT-vectoring information; APM 2 15.7.2: EXITINTINFO). */
function vectored(p: Processor, kind: number, vector: number, errorCode: number): void {
  if (kind === VECTORED_NMI) p.nmiBlocked = false;
  p.vectored = kind;
  p.vectoredVector = vector;
  p.vectoredErrorCode = errorCode;
}

/**
 * Delivers an external interrupt or an NMI. What goes wrong with the gate raises an exception in its place.
 */
export function deliverInterrupt(p: Processor, vector: number, nmi: boolean): void {
  p.stopWaiting();
  if (nmi) p.nmiBlocked = true;
  const second = deliver(p, vector, 0);
  if (second === EXITED) vectored(p, nmi ? VECTORED_NMI : VECTORED_INTERRUPT, vector, 0);
  else if (second !== DELIVERED) raise(p, second >>> 16, second & 0xffff);
}

/** Raises an exception: the pending instruction stays pending, and the handler decides what becomes of it. */
export function raise(p: Processor, vector: number, errorCode: number): void {
  for (;;) {
    if (p.virtualization.exception(p, vector, errorCode)) return;
    const second = deliver(p, vector, errorCode);
    if (second === DELIVERED) return;
    if (second === EXITED) return vectored(p, VECTORED_EXCEPTION, vector, errorCode);
    if (vector === DF_VECTOR) {
      p.virtualization.tripleFault(p);
      return;
    }
    if (doubles(vector, second >>> 16)) {
      vector = DF_VECTOR;
      errorCode = 0;
    } else {
      vector = second >>> 16;
      errorCode = second & 0xffff;
    }
  }
}

/** Delivers an exception that software injects at VM entry: it is not intercepted again. */
export function deliverInjectedException(p: Processor, vector: number, errorCode: number): void {
  const second = deliver(p, vector, errorCode < 0 ? 0 : errorCode);
  if (second === DELIVERED) return;
  if (second === EXITED) vectored(p, VECTORED_EXCEPTION, vector, errorCode);
  else if (vector === DF_VECTOR) p.virtualization.tripleFault(p);
  else if (doubles(vector, second >>> 16)) raise(p, DF_VECTOR, 0);
  else raise(p, second >>> 16, second & 0xffff);
}

/** Whether a second exception during the delivery of a first makes a double fault (SDM 3A table 6-5). */
function doubles(first: number, second: number): boolean {
  const a = exceptionOf(first)?.severity ?? "benign";
  const b = exceptionOf(second)?.severity ?? "benign";
  if (a === "contributory") return b === "contributory";
  if (a === "page-fault") return b === "contributory" || b === "page-fault";
  return false;
}

/** A gate, as {@linkcode readGate} found it. */
const gate = { address: 0, selector: 0, type: 0 };

/** Begins the handler of a vector. Otherwise answers with the exception that this raises: vector << 16 | error code. */
function deliver(p: Processor, vector: number, errorCode: number): number {
  const fault = (vector << 3) | ERROR_IDT | ERROR_EXT;
  if (!readGate(p, vector)) return gateFault === DELIVERED ? (GP_VECTOR << 16) | fault : takeGateFault();
  const { selector, type } = gate;
  const kind = type & 0x1f;
  if (kind !== TYPE_INTERRUPT && kind !== TYPE_TRAP) return (GP_VECTOR << 16) | fault;
  if ((type & GATE_PRESENT) === 0) return (NP_VECTOR << 16) | fault;
  if (selector !== KERNEL_CS && !p.realMode && (p.longActive || selector !== KERNEL32_CS)) {
    return (GP_VECTOR << 16) | (selector & 0xfffc) | ERROR_EXT;
  }
  pushFrame(p, entryAt(p, gate.address));
  const { regs } = p;
  regs[CS] = selector;
  regs[VECTOR] = vector;
  regs[ERROR_CODE] = errorCode !== 0 && p.realMode ? 0 : errorCode; // Real mode has none (SDM 3B 21.1.4).
  if (kind === TYPE_INTERRUPT) regs[RFLAGS] &= ~FLAG_IF;
  p.shadow = false;
  p.charge(p.cost.eventDelivery);
  return DELIVERED;
}

/** What reading a gate came to, where its address is translated: as {@linkcode deliver} answers. */
let gateFault = DELIVERED;

function takeGateFault(): number {
  const fault = gateFault;
  gateFault = DELIVERED;
  return fault;
}

/** Reads a vector's gate. false where the IDT ends before it, or reading it has faulted. */
function readGate(p: Processor, vector: number): boolean {
  const { direct: memory } = p;
  const first = (p.idtWord + (vector << 2)) | 0;
  if (vector < p.idtGates && ((first + 3) | 0) < memory.flatWords) {
    const { u32 } = memory;
    gate64(u32[first], u32[first + 1], u32[first + 2]);
    return true;
  }
  return readGateSlowly(p, vector);
}

/** The same for every mode, and wherever the IDT is. */
function readGateSlowly(p: Processor, vector: number): boolean {
  const limit = p.sys[SYS_IDT_LIMIT];
  if (p.longActive) {
    const offset = IDT_GATE64.size * vector;
    if (offset + IDT_GATE64.size - 1 > limit) return false;
    const entry = idtBase(p) + offset;
    if (p.translates && entry % IDT_GATE64.size === 0) return openGate(p, entry);
    gate64(gateWord(p, entry), gateWord(p, entry + 4), gateWord(p, entry + 8));
    return gateFault === DELIVERED;
  }
  if (p.realMode) {
    // SDM 3B 21.1.4: four bytes, offset and segment.
    if (4 * vector + 3 > limit) return false;
    const entry = gateWord(p, idtBase(p) + 4 * vector);
    gate.address = (entry >>> 16) * 16 + (entry & 0xffff);
    gate.selector = entry >>> 16;
    gate.type = GATE_PRESENT | TYPE_INTERRUPT;
    return gateFault === DELIVERED;
  }
  const offset = IDT_GATE32.size * vector;
  if (offset + IDT_GATE32.size - 1 > limit) return false;
  gate64(gateWord(p, idtBase(p) + offset), gateWord(p, idtBase(p) + offset + 4), 0);
  return gateFault === DELIVERED;
}

/** Reads a gate that lies in one page: one translation serves for all of it. false where that has faulted. */
function openGate(p: Processor, address: number): boolean {
  const slot = gateSlot(p, address);
  if (slot < 0) return false;
  const mmu = p.mmu!;
  if (!mmu.open(slot, address | 0)) throw p.error(`its IDT is at ${hex(address)}, which no memory backs`);
  const { window } = mmu;
  const at = (address & PAGE_MASK) >>> 2;
  gate64(window.word(at) >>> 0, window.word(at + 1) >>> 0, window.word(at + 2) >>> 0);
  return true;
}

/** The TLB's slot for a gate's address; negative where there is none, which is then noted. */
function gateSlot(p: Processor, address: number): number {
  const mmu = p.mmu!;
  let slot = mmu.hit(Math.floor(address / HIGH), address | 0, READS_SYSTEM);
  if (slot < 0) slot = mmu.miss(address, READS_SYSTEM, 4);
  if (slot !== FAULTED) return slot;
  const fault = mmu.takeSystemFault();
  gateFault = fault === undefined ? EXITED : (fault.vector << 16) | fault.errorCode;
  return slot;
}

/** Takes a gate apart; a 32-bit gate is a 64-bit one whose third word is 0. */
function gate64(low: number, middle: number, high: number): void {
  gate.selector = low >>> 16;
  gate.type = (middle >>> 8) & 0xff;
  const address = (middle & 0xffff_0000) | (low & 0xffff);
  gate.address = high === 0 && address >= 0 ? address : linear(address >>> 0, high);
}

function idtBase(p: Processor): number {
  const { sys } = p;
  return p.translates
    ? linearAddress(sys[SYS_IDT_BASE], sys[SYS_IDT_BASE + 1])!
    : linear(sys[SYS_IDT_BASE], sys[SYS_IDT_BASE + 1]);
}

/** A word of a gate: of none, where reading it has faulted. */
function gateWord(p: Processor, address: number): number {
  if (!p.translates) {
    if (!p.memory.backed(address, 4)) throw p.error(`its IDT is at ${hex(address)}, which no memory backs`);
    return p.memory.word(address);
  }
  if (gateFault !== DELIVERED) return 0;
  if ((address & 3) !== 0) {
    throw new NotModelled("an IDT that is not aligned to 4 bytes, translated", "SDM 3A 6.10");
  }
  const slot = gateSlot(p, address);
  return slot < 0 ? 0 : p.mmu!.physical.word(p.mmu!.place(slot, address | 0));
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
      if (p.iretExit !== 0) p.leave(p.iretExit);
      else returnFromEvent(p);
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

/** Executes IRET: back to the activation that was interrupted, or that made the system call; NMIs are unblocked. */
export function iret(p: Processor): void {
  if (p.iretExit !== 0) {
    p.leave(p.iretExit);
    return;
  }
  if (p.context.depth < 2 || p.regs[VECTOR] === NO_VECTOR) {
    throw p.error("it executed IRET, but no event delivered this activation");
  }
  returnFromEvent(p);
}

function returnFromEvent(p: Processor): void {
  p.nmiBlocked = false;
  p.instructions++;
  p.shadow = false;
  popFrame(p);
  p.charge(p.cost.iret);
}
