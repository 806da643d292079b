/**
 * Wait queues by address (kernel/futex/): a task sleeps as long as memory says so, and whoever changes that memory wakes
 * it. User memory is named by an address and an address space, the kernel's by an address alone.
 *
 * @module
 */

import type { Guest, X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { loadU64, storeU64 } from "../kernel/long.ts";
import { localIrqRestore, localIrqSave, spinLock, spinUnlock } from "../kernel/spinlock.ts";
import { currentTask, schedule, wakeUp } from "./core.ts";
import { PF_IDLE, TASK_INTERRUPTIBLE, taskField, WAIT_BUCKET, WAIT_BUCKETS } from "./layout.ts";
import type { Scheduler } from "./scheduler.ts";

/** What a task waits for. */
export interface WaitKey {
  /** The address. */
  readonly address: number;
  /** The address space that it is in; 0 for the kernel's. */
  readonly mm: number;
}

const LOCK = WAIT_BUCKET.fields.lock.offset;
const HEAD = WAIT_BUCKET.fields.head.offset;

function bucketOf(sched: Scheduler, { address, mm }: WaitKey): number {
  const hash = ((address >>> 2) ^ (mm >>> 8)) & (WAIT_BUCKETS - 1);
  return sched.waitBuckets + WAIT_BUCKET.size * hash;
}

/**
 * Sleeps until {@linkcode wake}, if `waits` says so: that is asked with the queue locked, so that no wake-up comes in
 * between. Whether it slept. Not for idle tasks. What `waits` throws is thrown here.
 */
export function* waitIf(
  cpu: X86Cpu,
  sched: Scheduler,
  key: WaitKey,
  waits: () => GuestValue<boolean>,
): GuestValue<boolean> {
  const bucket = bucketOf(sched, key);
  const enabled = yield* localIrqSave(cpu);
  yield* spinLock(cpu, bucket + LOCK);
  let sleeps: boolean;
  try {
    sleeps = yield* waits();
  } catch (fault) {
    yield spinUnlock(cpu, bucket + LOCK);
    yield* localIrqRestore(cpu, enabled);
    throw fault;
  }
  if (sleeps) {
    const task = yield* currentTask(cpu);
    yield* storeU64(cpu, 64, taskField(task, "waitAddress"), key.address);
    yield cpu.store64(taskField(task, "waitMm"), key.mm);
    yield* append(cpu, bucket + HEAD, task);
    yield cpu.store32(taskField(task, "state"), TASK_INTERRUPTIBLE);
  }
  yield spinUnlock(cpu, bucket + LOCK);
  if (sleeps) yield* schedule(cpu, sched);
  yield* localIrqRestore(cpu, enabled);
  return sleeps;
}

/** Who waits longest is woken first. */
function* append(cpu: X86Cpu, head: number, task: number): Guest {
  yield cpu.store64(taskField(task, "waitNext"), 0);
  let link = head;
  for (;;) {
    yield cpu.load64(link);
    if (cpu.eax === 0) break;
    link = taskField(cpu.eax, "waitNext");
  }
  yield cpu.store64(link, task);
}

/** Wakes at most `count` tasks that wait for a key. How many. */
export function* wake(cpu: X86Cpu, sched: Scheduler, key: WaitKey, count: number): GuestValue<number> {
  const bucket = bucketOf(sched, key);
  const woken: number[] = []; // wake_q: woken once the queue is unlocked.
  const enabled = yield* localIrqSave(cpu);
  yield* spinLock(cpu, bucket + LOCK);
  let link = bucket + HEAD;
  while (woken.length < count) {
    yield cpu.load64(link);
    const task = cpu.eax;
    if (task === 0) break;
    if (yield* waitsFor(cpu, task, key)) {
      yield cpu.load64(taskField(task, "waitNext"));
      yield cpu.store64(link, cpu.eax);
      woken.push(task);
    } else {
      link = taskField(task, "waitNext");
    }
  }
  yield spinUnlock(cpu, bucket + LOCK);
  for (const task of woken) yield* wakeUp(cpu, sched, task);
  yield* localIrqRestore(cpu, enabled);
  return woken.length;
}

function* waitsFor(cpu: X86Cpu, task: number, { address, mm }: WaitKey): GuestValue<boolean> {
  if ((yield* loadU64(cpu, 64, taskField(task, "waitAddress"))) !== address) return false;
  yield cpu.load64(taskField(task, "waitMm"));
  return cpu.eax === mm;
}

/** Waits until a word of the kernel's is no longer `value`. Idle tasks spin. */
export function* waitWhile(cpu: X86Cpu, sched: Scheduler, word: number, value: number): Guest {
  for (;;) {
    yield cpu.load32(word);
    if (cpu.eax !== value) return;
    if (yield* mayNotSleep(cpu)) {
      yield cpu.pauseWhile(word, value);
      continue;
    }
    yield* waitIf(cpu, sched, { address: word, mm: 0 }, function* () {
      yield cpu.load32(word);
      return cpu.eax === value;
    });
  }
}

function* mayNotSleep(cpu: X86Cpu): GuestValue<boolean> {
  yield cpu.load32(taskField(yield* currentTask(cpu), "flags"));
  return (cpu.eax & PF_IDLE) !== 0;
}

const FREE = 0;
const TAKEN = 1;
const CONTENDED = 2;

/** Takes a lock that may be held for long: who finds it taken sleeps. */
export function* mutexLock(cpu: X86Cpu, sched: Scheduler, mutex: number): Guest {
  yield cpu.cmpxchg32(mutex, FREE, TAKEN);
  if (cpu.zf) return;
  for (;;) {
    yield cpu.xchg32(mutex, CONTENDED);
    if (cpu.eax === FREE) return;
    yield* waitWhile(cpu, sched, mutex, CONTENDED);
  }
}

/** Releases a lock, and wakes who waits longest for it. */
export function* mutexUnlock(cpu: X86Cpu, sched: Scheduler, mutex: number): Guest {
  yield cpu.xchg32(mutex, FREE);
  if (cpu.eax === CONTENDED) yield* wake(cpu, sched, { address: mutex, mm: 0 }, 1);
}
