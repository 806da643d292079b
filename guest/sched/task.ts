/**
 * A task's first steps and its last ones.
 *
 * @module
 */

import {
  exceptionName,
  FLAG_FIXED,
  FLAG_IF,
  type Guest,
  hex,
  RDI,
  UD_VECTOR,
  type X86Cpu,
} from "../../abi/mod.ts";
import { loadU64 } from "../kernel/long.ts";
import { currentTask, exitToUser, finishTaskSwitch, schedule } from "./core.ts";
import { PF_KTHREAD, TASK_DEAD, taskField } from "./layout.ts";
import type { Scheduler } from "./scheduler.ts";
import { wake } from "./wait.ts";

/** What ends a task for an instruction that is none. */
export const SIGILL = 4;
/** What ends a task for an access that it may not make. */
export const SIGSEGV = 11;
/** What ends a task for an access that no memory is left for. */
export const SIGKILL = 9;

/** The code of a task that ends by itself, as wait(2) has it. */
export function exited(code: number): number {
  return (code & 0xff) << 8;
}

/** Where a task begins (ret_from_fork): interrupts are off, and its processor's run queue is locked. */
export function* returnFromFork(cpu: X86Cpu, sched: Scheduler): Guest {
  yield* finishTaskSwitch(cpu, sched);
  const task = yield* currentTask(cpu);
  yield cpu.load64(taskField(task, "entry"));
  const entry = cpu.eax;
  const argument = yield* loadU64(cpu, 64, taskField(task, "argument"));
  yield cpu.load32(taskField(task, "flags"));
  if ((cpu.eax & PF_KTHREAD) !== 0) {
    yield cpu.sti();
    yield* sched.kernel.functionAt(entry)(cpu, argument);
  } else {
    yield* exitToUser(cpu, sched);
    cpu.regs[RDI] = argument;
    cpu.regs[RDI + 1] = argument / 2 ** 32;
    yield cpu.sysret(entry, FLAG_FIXED | FLAG_IF);
    yield cpu.sti(); // The program has returned, which is how it exits.
  }
  yield* doExit(cpu, sched, exited(0));
}

/** Ends the current task for good (do_exit). Never returns. */
export function* doExit(cpu: X86Cpu, sched: Scheduler, code: number): Guest {
  const { kernel } = sched;
  const task = yield* currentTask(cpu);
  yield cpu.store32(taskField(task, "exitCode"), code);
  if (kernel.hasMm) yield* kernel.mm.exitTask(cpu, task);
  yield cpu.cli();
  yield cpu.store32(taskField(task, "dead"), 1);
  yield* wake(cpu, sched, { address: taskField(task, "dead"), mm: 0 }, Infinity);
  yield cpu.store32(taskField(task, "state"), TASK_DEAD);
  yield* schedule(cpu, sched);
  throw new Error("Cannot go on with a task that has ended");
}

/** Ends the current task with a signal, and says why (force_sig_fault, with no handler installed). */
export function* killTask(cpu: X86Cpu, sched: Scheduler, signal: number, why: string): Guest {
  const task = yield* currentTask(cpu);
  yield cpu.load32(taskField(task, "pid"));
  sched.kernel.log.push(`task ${cpu.eax}: ${why}`);
  yield* doExit(cpu, sched, signal);
}

/** #UD and #GP: they end a user task; the kernel goes on in its fixup. */
export function* userTrap(cpu: X86Cpu, sched: Scheduler): Guest {
  if (cpu.interruptedCpl !== 3) {
    cpu.fixup();
    return;
  }
  const { vector, errorCode } = cpu;
  const rip = cpu.interruptedRip;
  yield cpu.sti();
  const name = exceptionName(vector);
  yield* killTask(
    cpu,
    sched,
    vector === UD_VECTOR ? SIGILL : SIGSEGV,
    `${name}(${hex(errorCode)}) at ip ${hex(rip)}`,
  );
}
