/**
 * Instructions that take time and can be cut short: computation, and PAUSE loops.
 *
 * A computation sleeps until it is done; an event that comes earlier pulls its thread back to the event's time, and
 * RCX says what is left. A PAUSE loop is charged in bulk: its thread sleeps until a store touches the word, and then
 * continues at the end of the turn in which the store happened, where the slow loop would have seen it.
 *
 * @module
 */

import { HIGH, OP_PAUSE_WHILE, OP_WORK, RAX, RCX } from "../../abi/mod.ts";
import { between, later } from "../core/mod.ts";
import type { Processor } from "./processor.ts";

/** Executes LOOP: it falls asleep for as long as RCX says, less where an event is already on its way. */
export function work(p: Processor): void {
  const { engine, thread, regs } = p;
  const left = regs[RCX + 1] * HIGH + regs[RCX];
  if (left === 0 || engine.explores) {
    p.workStart = -1;
    setLeft(p, 0);
    p.retire(OP_WORK);
    return;
  }
  const { now } = thread;
  p.shadow = false; // Each turn of the loop is an instruction.
  const sleep = Math.min(left, between(now, p.asyncAt));
  p.workStart = now;
  thread.setClock(later(now, sleep));
  engine.clockMoved();
  setLeft(p, between(sleep, left));
}

/** An event at `time` cuts a sleeping computation short. */
export function workInterrupted(p: Processor, time: number): void {
  const { engine, thread, regs } = p;
  const end = thread.clock;
  if (time >= end) return;
  const cut = Math.max(time, p.workStart);
  setLeft(p, regs[RCX + 1] * HIGH + regs[RCX] + between(cut, end));
  engine.wake(thread, cut);
}

function setLeft(p: Processor, cycles: number): void {
  p.regs[RCX] = cycles;
  p.regs[RCX + 1] = cycles / HIGH;
}

/** Executes PAUSE; CMP [address], EAX; JE: looks at the word, and sleeps until it may have changed. */
export function pauseWhile(p: Processor, address: number): void {
  const { engine, thread } = p;
  endSpin(p);
  if (p.memory.word(address) !== p.regs[RAX]) {
    p.charge(p.cost.load);
    p.retire(OP_PAUSE_WHILE);
    return;
  }
  p.shadow = false;
  if (!p.bulkSpin) {
    p.charge(p.cost.pauseLoop);
    return;
  }
  p.spin.address = address;
  p.spinStart = thread.now;
  p.memory.watch(p.spin);
  if (p.asyncAt < Infinity) engine.wake(thread, turnAfter(p, p.asyncAt));
  else engine.park(thread);
}

/** The loop is not asleep any more. */
export function endSpin(p: Processor): void {
  if (p.spin.address < 0) return;
  p.memory.unwatch(p.spin);
  p.spin.address = -1;
}

/** An event at `time` ends the sleep of a PAUSE loop at the end of that turn. */
export function spinInterrupted(p: Processor, time: number): void {
  const { engine, thread } = p;
  const end = turnAfter(p, time);
  if (thread.queued && thread.clock <= end) return;
  engine.wake(thread, end);
}

/**
 * When the turn ends during which `time` falls; turns follow one another from {@linkcode Processor.spinStart}. The
 * slow loop looks at the end of each turn: at equal times, before a running thread with a higher number.
 */
function turnAfter(p: Processor, time: number): number {
  const { engine, spinStart } = p;
  const turn = p.cost.pauseLoop;
  if (turn === 0) return Math.max(time, spinStart);
  const end = spinStart + Math.max(1, Math.ceil(between(spinStart, time) / turn)) * turn;
  const lookedBefore = end === time && time === engine.runningClock && p.thread.id < engine.running!.id;
  return lookedBefore ? end + turn : end;
}
