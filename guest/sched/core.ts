/**
 * The scheduler's core (kernel/sched/core.c): who runs next, and the switch to it. Kernel code is preempted only where it
 * asks for it, as with CONFIG_PREEMPT_VOLUNTARY; user code at the end of whatever interrupts it.
 *
 * A processor's run queue is locked across a switch: who comes after releases it. So whoever finds a sleeping task off
 * its run queue, with that lock in hand, finds it switched away from too.
 *
 * @module
 */

import type { Guest, X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { localIrqRestore, localIrqSave, spinLock, spinUnlock } from "../kernel/spinlock.ts";
import { RESCHEDULE_VECTOR } from "../kernel/vectors.ts";
import {
  PF_PINNED,
  rqOf,
  rqOffset,
  TASK_DEAD,
  TASK_INTERRUPTIBLE,
  TASK_RUNNING,
  taskField,
} from "./layout.ts";
import type { Scheduler } from "./scheduler.ts";
import { armTick } from "./tick.ts";

const LOCK = rqOffset("lock");
const CURRENT = rqOffset("current");
const IDLE = rqOffset("idle");
const PREVIOUS = rqOffset("previous");
const NEED_RESCHED = rqOffset("needResched");
const SWITCHES = rqOffset("switches");

/** The task that this processor runs. */
export function* currentTask(cpu: X86Cpu): GuestValue<number> {
  yield cpu.load64(cpu.gsBase + CURRENT);
  return cpu.eax;
}

/** Gives the processor to the next task that is runnable; comes back when it is this one's turn again. */
export function* schedule(cpu: X86Cpu, sched: Scheduler): Guest {
  const enabled = yield* localIrqSave(cpu);
  const area = cpu.gsBase;
  yield* spinLock(cpu, area + LOCK);
  yield cpu.store32(area + NEED_RESCHED, 0);
  yield cpu.load64(area + IDLE);
  const idle = cpu.eax;
  const previous = yield* currentTask(cpu);
  if (previous !== idle) {
    yield cpu.load32(taskField(previous, "state"));
    if (cpu.eax === TASK_RUNNING) yield* enqueue(cpu, area, previous);
    else yield cpu.store32(taskField(previous, "onRq"), 0);
  }
  const next = (yield* dequeue(cpu, area)) || (yield* pull(cpu, sched)) || idle;
  if (next === previous) {
    yield spinUnlock(cpu, area + LOCK);
  } else {
    yield* switchTasks(cpu, sched, { previous, next, idle });
  }
  yield* localIrqRestore(cpu, enabled);
}

interface Switch {
  readonly previous: number;
  readonly next: number;
  readonly idle: number;
}

/** context_switch, with interrupts off and the run queue locked. */
function* switchTasks(cpu: X86Cpu, sched: Scheduler, { previous, next, idle }: Switch): Guest {
  const area = cpu.gsBase;
  yield cpu.store64(area + PREVIOUS, previous);
  yield cpu.store64(area + CURRENT, next);
  yield cpu.store32(taskField(next, "onCpu"), 1);
  yield cpu.load32(area + SWITCHES);
  yield cpu.store32(area + SWITCHES, cpu.eax + 1);
  if (previous === idle || next === idle) yield* armTick(cpu, sched, next === idle);
  const { kernel } = sched;
  if (kernel.hasMm) yield* kernel.mm.switchTasks(cpu, previous, next);
  yield cpu.switchTo(sched.contextOf(next));
  yield* finishTaskSwitch(cpu, sched);
}

/** What the task that comes after does for the one before it (finish_task_switch). Perhaps this is another processor. */
export function* finishTaskSwitch(cpu: X86Cpu, sched: Scheduler): Guest {
  const area = cpu.gsBase;
  yield cpu.load64(area + PREVIOUS);
  const previous = cpu.eax;
  yield cpu.load32(taskField(previous, "state"));
  const dead = cpu.eax === TASK_DEAD;
  yield cpu.store32(taskField(previous, "onCpu"), 0);
  yield spinUnlock(cpu, area + LOCK);
  const { kernel } = sched;
  if (kernel.hasMm) yield* kernel.mm.finishSwitch(cpu);
  if (dead) yield* sched.release(cpu, previous);
}

/** Puts a task behind all others of a run queue, which is locked. `area` is its processor's. */
function* enqueue(cpu: X86Cpu, area: number, task: number): Guest {
  yield cpu.store64(taskField(task, "runNext"), 0);
  yield cpu.load64(area + rqOffset("tail"));
  const tail = cpu.eax;
  yield cpu.store64(tail === 0 ? area + rqOffset("head") : taskField(tail, "runNext"), task);
  yield cpu.store64(area + rqOffset("tail"), task);
  yield cpu.load32(area + rqOffset("waiting"));
  yield cpu.store32(area + rqOffset("waiting"), cpu.eax + 1);
}

/** Takes the first task off a run queue, which is locked; 0 where there is none. */
function* dequeue(cpu: X86Cpu, area: number): GuestValue<number> {
  yield cpu.load64(area + rqOffset("head"));
  const task = cpu.eax;
  if (task === 0) return 0;
  yield cpu.load64(taskField(task, "runNext"));
  const second = cpu.eax;
  yield cpu.store64(area + rqOffset("head"), second);
  if (second === 0) yield cpu.store64(area + rqOffset("tail"), 0);
  yield cpu.load32(area + rqOffset("waiting"));
  yield cpu.store32(area + rqOffset("waiting"), cpu.eax - 1);
  return task;
}

/**
 * A processor that would idle takes a task that waits for another one (sched_balance_newidle); 0 where there is none. Its
 * own run queue is locked, so that it does not wait for another's lock: who holds that may wait for this one.
 */
function* pull(cpu: X86Cpu, sched: Scheduler): GuestValue<number> {
  yield cpu.load32(cpu.gsBase);
  const self = cpu.eax;
  for (let n = 0; n < sched.kernel.cpus; n++) {
    yield cpu.load32(rqOf(n, "waiting"));
    if (n === self || cpu.eax === 0) continue;
    yield cpu.xchg32(rqOf(n, "lock"), 1);
    if (cpu.eax !== 0) continue;
    const task = yield* takeMovable(cpu, sched.areaOf(n));
    if (task !== 0) yield cpu.store32(taskField(task, "cpu"), self);
    yield spinUnlock(cpu, rqOf(n, "lock"));
    if (task !== 0) return task;
  }
  return 0;
}

/** Takes the first task that may move off a run queue, which is locked; 0 where there is none. */
function* takeMovable(cpu: X86Cpu, area: number): GuestValue<number> {
  let last = 0;
  yield cpu.load64(area + rqOffset("head"));
  for (let task = cpu.eax; task !== 0; last = task, task = cpu.eax) {
    yield cpu.load32(taskField(task, "flags"));
    const pinned = (cpu.eax & PF_PINNED) !== 0;
    yield cpu.load64(taskField(task, "runNext"));
    if (pinned) continue;
    const next = cpu.eax;
    yield cpu.store64(last === 0 ? area + rqOffset("head") : taskField(last, "runNext"), next);
    if (next === 0) yield cpu.store64(area + rqOffset("tail"), last);
    yield cpu.load32(area + rqOffset("waiting"));
    yield cpu.store32(area + rqOffset("waiting"), cpu.eax - 1);
    return task;
  }
  return 0;
}

/**
 * Wakes a task that sleeps (try_to_wake_up). Whether it slept. One that is pinned wakes up where it fell asleep, another
 * one on an idle processor where there is one.
 */
export function* wakeUp(cpu: X86Cpu, sched: Scheduler, task: number): GuestValue<boolean> {
  const enabled = yield* localIrqSave(cpu);
  const woken = yield* tryToWakeUp(cpu, sched, task);
  yield* localIrqRestore(cpu, enabled);
  return woken;
}

function* tryToWakeUp(cpu: X86Cpu, sched: Scheduler, task: number): GuestValue<boolean> {
  const home = yield* lockTaskQueue(cpu, task);
  yield cpu.load32(taskField(task, "state"));
  const state = cpu.eax;
  if (state !== TASK_INTERRUPTIBLE) {
    yield spinUnlock(cpu, rqOf(home, "lock"));
    return false;
  }
  yield cpu.store32(taskField(task, "state"), TASK_RUNNING);
  yield cpu.load32(taskField(task, "onRq"));
  if (cpu.eax !== 0) { // It is about to sleep, and goes on instead.
    yield spinUnlock(cpu, rqOf(home, "lock"));
    return true;
  }
  yield cpu.load32(taskField(task, "flags"));
  const target = (cpu.eax & PF_PINNED) !== 0 ? home : yield* selectProcessor(cpu, sched, home);
  if (target !== home) {
    yield cpu.store32(taskField(task, "cpu"), target);
    yield spinUnlock(cpu, rqOf(home, "lock"));
    yield* spinLock(cpu, rqOf(target, "lock"));
  }
  yield cpu.store32(taskField(task, "onRq"), 1);
  yield* enqueue(cpu, sched.areaOf(target), task);
  if (yield* isIdle(cpu, target)) yield* resched(cpu, sched, target);
  yield spinUnlock(cpu, rqOf(target, "lock"));
  return true;
}

/** Locks the run queue of the processor that a task belongs to, which is the answer. */
function* lockTaskQueue(cpu: X86Cpu, task: number): GuestValue<number> {
  for (;;) {
    yield cpu.load32(taskField(task, "cpu"));
    const home = cpu.eax;
    yield* spinLock(cpu, rqOf(home, "lock"));
    yield cpu.load32(taskField(task, "cpu"));
    if (cpu.eax === home) return home;
    yield spinUnlock(cpu, rqOf(home, "lock"));
  }
}

/** Whether a processor runs its idle task. */
function* isIdle(cpu: X86Cpu, n: number): GuestValue<boolean> {
  yield cpu.load64(rqOf(n, "idle"));
  const idle = cpu.eax;
  yield cpu.load64(rqOf(n, "current"));
  return idle !== 0 && cpu.eax === idle;
}

/** Where to wake a task that may move: where it was, unless that is busy and another processor idles. */
function* selectProcessor(cpu: X86Cpu, sched: Scheduler, home: number): GuestValue<number> {
  if (yield* idlesAlone(cpu, home)) return home;
  for (let n = 0; n < sched.kernel.cpus; n++) {
    if (n !== home && (yield* sched.kernel.online(cpu, n)) && (yield* idlesAlone(cpu, n))) return n;
  }
  return home;
}

/** Whether a processor idles and nobody waits for it (available_idle_cpu). Only a hint: nothing is locked. */
function* idlesAlone(cpu: X86Cpu, n: number): GuestValue<boolean> {
  yield cpu.load32(rqOf(n, "waiting"));
  return cpu.eax === 0 && (yield* isIdle(cpu, n));
}

/** Has a processor schedule as soon as it can: by an IPI where it is another one and was not asked yet (resched_curr). */
export function* resched(cpu: X86Cpu, sched: Scheduler, target: number): Guest {
  yield cpu.load32(rqOf(target, "needResched"));
  if (cpu.eax !== 0) return;
  yield cpu.store32(rqOf(target, "needResched"), 1);
  yield cpu.load32(cpu.gsBase);
  if (cpu.eax !== target) yield* sched.kernel.apic.sendIpi(cpu, target, RESCHEDULE_VECTOR);
}

/** The last thing before user code goes on, with interrupts off (exit_to_user_mode_loop). */
export function* exitToUser(cpu: X86Cpu, sched: Scheduler): Guest {
  for (;;) {
    yield cpu.load32(cpu.gsBase + NEED_RESCHED);
    if (cpu.eax === 0) return;
    yield* schedule(cpu, sched);
  }
}

/** The end of an interrupt: user code may have to wait. */
export function* irqExit(cpu: X86Cpu, sched: Scheduler): Guest {
  if (cpu.interruptedCpl === 3) yield* exitToUser(cpu, sched);
}

/** What an idle task does, until `done` says so; for ever where it is left out (do_idle). */
export function* idleLoop(cpu: X86Cpu, sched: Scheduler, done?: () => GuestValue<boolean>): Guest {
  for (;;) {
    yield cpu.cli();
    if (done !== undefined && (yield* done())) break;
    yield cpu.load32(cpu.gsBase + NEED_RESCHED);
    if (cpu.eax !== 0) {
      yield* schedule(cpu, sched);
      continue;
    }
    yield cpu.sti();
    yield cpu.hlt();
  }
  yield cpu.sti();
}
