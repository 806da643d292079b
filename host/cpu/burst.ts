/**
 * Many steps of a processor at a stretch, until another thread may be first: what single steps come to, sooner. What
 * guests execute that send and take interrupts is looked for here, so that the compiler puts it into this loop, whose
 * size it limits.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as instruction from "./execute.ts";
import * as privileged from "./privileged.ts";
import type { Processor } from "./processor.ts";
import * as waiting from "./waiting.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { OP_WORK, OP_WRMSR } = abi;
// And so are functions.
const { execute } = instruction;
const { writeMsr } = privileged;
const { backToExit, work } = waiting;

/** Steps of the guest and of the host: the same as {@linkcode Processor.step} and the host's own steps. */
export function burst(p: Processor): void {
  // What is loaded again after a call needs no look at what it is; what was kept across it does.
  do {
    p.engine.countStep();
    p.engine.at = p.thread.time;
    if (p.guestMode) {
      step(p);
      if (p.guestMode || p.thread.time >= p.engine.horizon) continue;
      p.engine.countStep(); // It has exited, and nobody comes between that and the host.
      p.engine.at = p.thread.time;
    }
    p.thread.hostStep();
  } while (p.thread.time < p.engine.horizon);
}

function step(p: Processor): void {
  if (p.thread.time >= p.eventAt && takesEvent(p)) return;
  const op = p.context.pending || p.fetch();
  if (op === OP_WORK) work(p);
  else if (op === OP_WRMSR) wrmsr(p);
  else if (op !== 0) execute(p, op, true);
  else goOnComputing(p);
}

function takesEvent(p: Processor): boolean {
  if (!p.exitsStraight) return p.takesEvent();
  backToExit(p);
  return p.thread.straightInterrupt() || p.takesEvent();
}

function wrmsr(p: Processor): void {
  if (!p.exitsStraight || !p.thread.straightWrmsr()) writeMsr(p, OP_WRMSR);
}

/**
 * A handler has returned to a computation: that goes on at once, also where somebody else comes before. It is nobody
 * else's business, and whoever interrupts it finds out when it has begun.
 */
function goOnComputing(p: Processor): void {
  const { engine, thread } = p;
  if (!p.guestMode || p.context.pending !== OP_WORK) return;
  if (thread.time >= p.eventAt || !engine.reaches(thread.time)) return;
  engine.countStep();
  work(p);
}
