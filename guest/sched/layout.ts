/**
 * What the scheduler keeps in guest memory: task structs, a run queue in each per-CPU area, and the hash table of wait
 * queues. A pointer is an address below 4 GiB in a 64-bit field; 0 points nowhere.
 *
 * @module
 */

import { type Layout, layout } from "../../abi/mod.ts";
import { percpu, PERCPU_AREA, PERCPU_RQ_SIZE } from "../kernel/memory_map.ts";

/** A task (struct task_struct). */
export const TASK_STRUCT: Layout<
  | "state"
  | "onRq"
  | "onCpu"
  | "cpu"
  | "pid"
  | "flags"
  | "exitCode"
  | "slice"
  | "runNext"
  | "timerNext"
  | "wakeAt"
  | "waitNext"
  | "waitAddress"
  | "waitMm"
  | "entry"
  | "argument"
  | "mm"
  | "activeMm"
  | "dead"
  | "inUse"
> = layout("task_struct", {
  state: "u32",
  onRq: "u32",
  onCpu: "u32",
  cpu: "u32",
  pid: "u32",
  flags: "u32",
  exitCode: "u32",
  slice: "u32",
  runNext: "u64",
  timerNext: "u64",
  wakeAt: "u64",
  waitNext: "u64",
  waitAddress: "u64",
  waitMm: "u64",
  entry: "u64",
  argument: "u64",
  mm: "u64",
  activeMm: "u64",
  dead: "u32",
  inUse: "u32",
}, { size: 256 });

/** A run queue (struct rq): round robin, as SCHED_RR has it among tasks of one priority. */
export const RUN_QUEUE: Layout<
  | "lock"
  | "waiting"
  | "current"
  | "idle"
  | "head"
  | "tail"
  | "previous"
  | "previousMm"
  | "needResched"
  | "ticks"
  | "timers"
  | "nextTick"
  | "switches"
  | "syscalls"
> = layout("rq", {
  lock: "u32",
  waiting: "u32",
  current: "u64",
  idle: "u64",
  head: "u64",
  tail: "u64",
  previous: "u64",
  previousMm: "u64",
  needResched: "u32",
  ticks: "u32",
  timers: "u64",
  nextTick: "u64",
  switches: "u32",
  syscalls: "u32",
}, { size: PERCPU_RQ_SIZE });

/** A bucket of the hash table of wait queues (struct futex_hash_bucket). */
export const WAIT_BUCKET: Layout<"lock" | "unused" | "head"> = layout("wait_bucket", {
  lock: "u32",
  unused: "u32",
  head: "u64",
});
/** Buckets. */
export const WAIT_BUCKETS = 64;

/** The scheduler's own variables. */
export const SCHED_DATA: Layout<"taskLock" | "live" | "nextPid" | "unused"> = layout("sched_data", {
  taskLock: "u32",
  live: "u32",
  nextPid: "u32",
  unused: "u32",
});

/** A task that runs, or would run if it had a processor. */
export const TASK_RUNNING = 0;
/** A task that sleeps. */
export const TASK_INTERRUPTIBLE = 1;
/** A task that will never run again. */
export const TASK_DEAD = 0x80;

/** The task stays on its processor. */
export const PF_PINNED = 1 << 0;
/** The task has no user mode. */
export const PF_KTHREAD = 1 << 1;
/** The task is a processor's idle task. */
export const PF_IDLE = 1 << 2;

const RQ = PERCPU_AREA.fields.rq.offset;

/** Where in a processor's area, from its GS base on, a field of its run queue is. */
export function rqOffset(name: keyof typeof RUN_QUEUE.fields): number {
  return RQ + RUN_QUEUE.fields[name].offset;
}

/** The address of a field of a processor's run queue. */
export function rqOf(cpu: number, name: keyof typeof RUN_QUEUE.fields): number {
  return percpu(cpu, "rq") + RUN_QUEUE.fields[name].offset;
}

/** The address of a field of a task. */
export function taskField(task: number, name: keyof typeof TASK_STRUCT.fields): number {
  return task + TASK_STRUCT.fields[name].offset;
}
