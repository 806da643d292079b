/**
 * Instructions that take time and can be cut short: computation, and PAUSE loops.
 *
 * A computation sleeps until it is done; an event that comes earlier pulls its thread back to the event's time, and
 * RCX says what is left. A PAUSE loop is charged in bulk: its thread sleeps until a store touches the word, and then
 * continues at the end of the turn in which the store happened, where the slow loop would have seen it.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as core from "../core/mod.ts";
import { rebased } from "../core/mod.ts";
import { comparisonFlags, STATUS_FLAGS } from "./flags.ts";
import { raise } from "./events.ts";
import { linearOperand, operandBase } from "./memory_access.ts";
import { PAGE_SIZE } from "../memory/mod.ts";
import { FAULTED, READS, VIRTUALIZED } from "./mmu.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { GP_VECTOR, OP_LOAD32, OP_PAUSE_WHILE, OP_WORK, RAX, RCX, RFLAGS } = abi;
const { FAR } = core;

/** The longest sleep at a stretch; a longer computation goes on behind it. */
const STRETCH: number = 1 << 28;

/** Executes LOOP: it falls asleep for as long as RCX says, less where an event is already on its way. */
export function work(p: Processor): void {
  const { engine, thread, regs } = p;
  const low = regs[RCX];
  const left = regs[RCX + 1] !== 0 || low > STRETCH ? STRETCH : low;
  if (left === 0 || engine.explores) {
    p.working = false;
    regs[RCX] = 0;
    regs[RCX + 1] = 0;
    p.retire(OP_WORK);
    return;
  }
  const start = thread.time;
  if (p.shadow) {
    // Each turn of the loop is an instruction: an event that the shadow holds off comes after the first.
    p.shadow = false;
    thread.time = start + 1;
    take(regs, 1);
    return;
  }
  const until = p.asyncAt < start + left ? p.asyncAt : start + left;
  p.sleepStart = start;
  p.sleepEnd = until;
  thread.time = until;
  take(regs, until - start);
  // Nobody comes before its end: it need not wait to be interrupted.
  if (until < engine.horizon) return;
  p.working = true;
}

/**
 * An event at `time` cuts a sleeping computation short. Where nothing but an exit can come of it, its thread is woken
 * when that is over: nobody notices an exit before the host's turn behind it.
 */
export function workInterrupted(p: Processor, time: number): void {
  const { engine, thread, sleepStart, sleepEnd } = p;
  if (time >= sleepEnd) return;
  const cut = time < sleepStart ? sleepStart : time;
  // One that has begun early has not begun at all.
  if (time <= sleepStart && engine.isAhead(thread, sleepStart)) engine.takeStepBack();
  giveBack(p.regs, sleepEnd - cut);
  p.sleepEnd = cut;
  const exited = cut + p.cost.vmexit;
  engine.wakeAt(thread, p.exitsStraight && engine.reaches(exited) ? exited : cut);
}

/** The thread of a computation that was woken when its exit would be over goes back to when the exit begins. */
export function backToExit(p: Processor): void {
  if (p.working && p.sleepEnd < p.thread.time) p.thread.time = p.sleepEnd;
}

/**
 * The run has stopped, or somebody looks: a computation that would not have begun yet is taken back, and one that was
 * cut short wakes when it was. Whether it has exited by now.
 */
export function settleWork(p: Processor): boolean {
  const { engine, thread, sleepStart, sleepEnd } = p;
  if (engine.isAhead(thread, sleepStart)) {
    giveBack(p.regs, sleepEnd - sleepStart);
    p.working = false;
    engine.takeStepBack();
    engine.wakeAt(thread, sleepStart);
    return false;
  }
  if (sleepEnd >= thread.time) return false;
  engine.wakeAt(thread, sleepEnd);
  return !engine.isAhead(thread, sleepEnd);
}

/** Takes cycles off what is left. */
function take(regs: Uint32Array, cycles: number): void {
  const low = regs[RCX];
  const rest = (low - cycles) >>> 0;
  regs[RCX] = rest;
  if (rest > low) regs[RCX + 1]--;
}

/** Gives cycles back to what is left. */
function giveBack(regs: Uint32Array, cycles: number): void {
  const low = regs[RCX];
  const rest = (low + cycles) >>> 0;
  regs[RCX] = rest;
  if (rest < low) regs[RCX + 1]++;
}

/** Executes PAUSE; CMP [RDI], EAX; JE: looks at the word, and sleeps until it may have changed. */
export function pauseWhile(p: Processor): void {
  const { engine, thread, memory, spin } = p;
  const address = spinAddress(p);
  if (address === FAULTED) return;
  if (!memory.backed(address, 4)) throw p.error("a PAUSE loop can only spin on plain memory");
  const value = memory.word(address);
  if (value !== p.regs[RAX]) {
    endSpin(p);
    p.regs[RFLAGS] = (p.regs[RFLAGS] & ~STATUS_FLAGS) | comparisonFlags(value, p.regs[RAX]);
    p.charge(p.cost.load);
    p.retire(OP_PAUSE_WHILE);
    return;
  }
  // The first turn ends the STI shadow, and an event that it holds off comes then.
  if (p.shadow || !p.bulkSpin) {
    p.shadow = false;
    p.charge(p.cost.pauseLoop);
    return;
  }
  if (spin.address !== address) {
    endSpin(p);
    spin.address = address;
    p.spinning = true;
    memory.watch(spin);
  }
  p.sleepStart = thread.time;
  if (p.asyncAt !== FAR) engine.wakeAt(thread, turnAfter(p, p.asyncAt));
  else engine.park(thread);
}

/** The guest-physical address of the word; FAULTED where looking at it has faulted, or exited. */
function spinAddress(p: Processor): number {
  if (!p.translates) return operandBase(p);
  const linear = linearOperand(p, OP_LOAD32);
  if (linear === undefined) {
    raise(p, GP_VECTOR, 0);
    return FAULTED;
  }
  if ((linear & (PAGE_SIZE - 1)) > PAGE_SIZE - 4) {
    throw p.error("a PAUSE loop can only spin on a word in one page while addresses are translated");
  }
  const physical = p.mmu!.translate(linear, READS, 4);
  return physical < 0 ? physical : p.mmu!.guestAddress(physical) ?? VIRTUALIZED;
}

/** The loop is not asleep any more. */
export function endSpin(p: Processor): void {
  if (!p.spinning) return;
  p.memory.unwatch(p.spin);
  p.spinning = false;
  p.spin.address = -1;
}

/** An event at `time` ends the sleep of a PAUSE loop at the end of that turn. */
export function spinInterrupted(p: Processor, time: number): void {
  const { engine, thread } = p;
  const end = turnAfter(p, time);
  if (thread.queued && thread.time <= end) return;
  engine.wakeAt(thread, end);
}

/**
 * When the turn ends during which `time` falls; turns follow one another from {@linkcode Processor.sleepStart}. The
 * slow loop looks at the end of each turn: at equal times, before a running thread with a higher number.
 */
function turnAfter(p: Processor, time: number): number {
  const { sleepStart, thread } = p;
  const turn = p.cost.pauseLoop;
  if (turn === 0) return time > sleepStart ? time : sleepStart;
  const passed = time - sleepStart;
  const turns = passed > turn ? ((passed + turn - 1) / turn) | 0 : 1;
  const end = sleepStart + turns * turn;
  if (end !== time) return end;
  const running = p.engine.running!;
  return time === running.time && thread.id < running.id ? end + turn : end;
}

/** The engine's epoch has moved on: the start of a sleep moves too, a PAUSE loop's by whole turns as well. */
export function rebaseSleep(p: Processor, by: number): void {
  const turn = Math.max(1, p.cost.pauseLoop);
  const start = p.sleepStart - by;
  p.sleepEnd = rebased(p.sleepEnd, by);
  p.sleepStart = (start < -turn ? start - (Math.ceil(start / turn) + 1) * turn : start) | 0;
}
