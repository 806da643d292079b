/**
 * Tasks of a small s390 kernel: they run on CPU 0 in the problem state, one at a time, until they end, give way, or touch a
 * page that the host has to bring in. Their state is in guest memory, a row of {@linkcode S390_TASK} each. A second CPU can
 * help: it takes interruptions that tell of pages which have come, as those may go to any CPU.
 *
 * @module
 */

import {
  EXT_IRQ_CP_SERVICE,
  type Layout,
  layout,
  PFAULT_INIT_SUBCODE,
  S390Cpu,
  type S390Function,
  type S390Guest,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import {
  enableServiceSignals,
  type ExternalInterruption,
  S390_LC_CPU_NR,
  S390_LC_LPP,
  s390EnterUserMode,
  S390Kernel,
  s390Wait,
} from "./kernel.ts";
import { pfaultFini, pfaultInit, pfaultStep, type PfaultWait } from "./pfault.ts";
import { s390SpinLock, s390SpinUnlock } from "./spinlock.ts";
import { s390LoadField } from "./storage.ts";

/** A task as the kernel keeps it. */
export const S390_TASK: Layout<"pid" | "state" | "pfault_wait" | "pad"> = layout("task", {
  pid: "u32",
  state: "u32",
  pfault_wait: "s64",
  pad: ["u8", 16],
}, { endian: "big" });

/** The task can run. */
export const S390_TASK_RUNNING = 0;
/** It waits (TASK_UNINTERRUPTIBLE). */
export const S390_TASK_BLOCKED = 2;
/** It has ended. */
export const S390_TASK_DEAD = 0x80;

/** Supervisor call: the task ends. */
export const S390_SVC_EXIT = 1;
/** Supervisor call: others may run. */
export const S390_SVC_YIELD = 2;
/** Supervisor call: this CPU goes without pseudo page faults, as one does that is taken offline; who waits for a page is woken. */
export const S390_SVC_PFAULT_FINI = 3;

/** How a kernel with tasks is built. */
export interface S390TasksOptions {
  /** What the tasks run, in the problem state. Their numbers are 1 and up. */
  readonly tasks: readonly S390Function[];
  /** Where the kernel keeps its tables: some 4 KiB. */
  readonly tables: number;
  /** Whether it begins the pfault handshake; true by default. */
  readonly pfault?: boolean;
  /** The prefix of a second CPU, which takes completions too; none by default. */
  readonly helper?: number;
}

/** A kernel with tasks. Its program ends when they have all ended. */
export class S390Tasks {
  /** The kernel. */
  readonly kernel: S390Kernel;
  /** Where the second CPU starts; undefined where there is none. */
  readonly helperEntry: number | undefined;
  readonly #options: S390TasksOptions;
  readonly #contexts: S390Cpu[] = [];
  #idle: S390Cpu | undefined = undefined;

  /** Links the image. */
  constructor(options: S390TasksOptions) {
    this.#options = options;
    this.kernel = new S390Kernel({
      main: (cpu) => this.#main(cpu),
      svc: (cpu, nr) => this.#svc(cpu, nr),
    });
    this.helperEntry = options.helper === undefined
      ? undefined
      : this.kernel.cpu(options.helper, (cpu) => this.#help(cpu));
    this.kernel.onExternal(EXT_IRQ_CP_SERVICE, (cpu, what) => this.#pfault(cpu, what));
    for (const [index, task] of options.tasks.entries()) {
      const entry = this.kernel.text.add(function* taskEntry(cpu) {
        yield* s390EnterUserMode(cpu);
        yield* task(cpu);
        yield cpu.svc(S390_SVC_EXIT);
      }, task.name || `task ${index + 1}`);
      this.#contexts.push(S390Cpu.task(entry));
    }
  }

  /** The row of a task. */
  row(pid: number): number {
    return this.#options.tables + S390_TASK.size * pid;
  }

  /** A word behind the rows, and the rows' own: who changes them holds it (pfault_lock). */
  get #lock(): number {
    return this.row(this.#options.tasks.length + 1);
  }

  /** Behind that word, pfault's parameter block. */
  get #block(): number {
    return this.row(this.#options.tasks.length + 2);
  }

  *#main(cpu: S390Cpu): S390Guest {
    this.#idle = cpu;
    const { tasks, pfault = true, helper } = this.#options;
    if (helper !== undefined) yield cpu.stap(S390_LC_CPU_NR);
    yield cpu.store32(this.row(0) + S390_TASK.fields.pid.offset, 0);
    for (let pid = 1; pid <= tasks.length; pid++) {
      yield cpu.store32(this.row(pid) + S390_TASK.fields.pid.offset, pid);
      yield* this.#setState(cpu, pid, S390_TASK_RUNNING);
      yield* this.#setWait(cpu, pid, 0);
    }
    if (pfault) {
      yield* enableServiceSignals(cpu);
      yield* pfaultInit(cpu, this.#block);
    }
    // The idle task: number 0.
    for (;;) {
      const next = yield* this.#runnable(cpu);
      if (next === "none") return;
      // A second CPU may take the interruption, and sends none itself: then the idle task looks again and again.
      if (next === "later") yield* helper === undefined ? s390Wait(cpu) : timeSliceEnd(cpu);
      else yield* this.#switchTo(cpu, next);
    }
  }

  /** The second CPU waits for completions, for ever. */
  *#help(cpu: S390Cpu): S390Guest {
    yield cpu.stap(S390_LC_CPU_NR);
    yield* enableServiceSignals(cpu);
    for (;;) yield* s390Wait(cpu);
  }

  /** A task that can run; "later" where those that are left wait; "none" where none is left. */
  *#runnable(cpu: S390Cpu): GuestValue<number | "later" | "none"> {
    let left = false;
    const count = this.#contexts.length;
    const last = Number(yield* s390LoadField(cpu, this.row(0), S390_TASK.fields.pid));
    for (let i = 0; i < count; i++) {
      const pid = (last + i) % count + 1;
      const state = Number(yield* s390LoadField(cpu, this.row(pid), S390_TASK.fields.state));
      if (state === S390_TASK_RUNNING) return pid;
      if (state !== S390_TASK_DEAD) left = true;
    }
    return left ? "later" : "none";
  }

  *#current(cpu: S390Cpu): GuestValue<number> {
    yield cpu.load64(S390_LC_LPP);
    return cpu.number;
  }

  /** Row 0 is the idle task's, and remembers who ran last. */
  *#switchTo(cpu: S390Cpu, pid: number): S390Guest {
    yield cpu.store64(S390_LC_LPP, pid);
    if (pid !== 0) yield cpu.store32(this.row(0) + S390_TASK.fields.pid.offset, pid);
    yield cpu.switchTo(pid === 0 ? this.#idle! : this.#contexts[pid - 1]);
  }

  /** The present task does not go on: the idle task finds another. */
  #schedule(cpu: S390Cpu): S390Guest {
    return this.#switchTo(cpu, 0);
  }

  *#svc(cpu: S390Cpu, nr: number): S390Guest {
    const pid = yield* this.#current(cpu);
    if (nr === S390_SVC_EXIT) yield* this.#setState(cpu, pid, S390_TASK_DEAD);
    if (nr === S390_SVC_EXIT || nr === S390_SVC_YIELD) yield* this.#schedule(cpu);
    if (nr === S390_SVC_PFAULT_FINI) {
      yield* pfaultFini(cpu, this.#block);
      yield* this.#locked(cpu, () => this.#wakeAll(cpu));
    }
  }

  /** pfault_cpu_dead: nobody knows whose completions still come. */
  *#wakeAll(cpu: S390Cpu): S390Guest {
    for (let pid = 1; pid <= this.#contexts.length; pid++) {
      const wait = yield* s390LoadField(cpu, this.row(pid), S390_TASK.fields.pfault_wait);
      if (wait !== 1n) continue;
      yield* this.#setWait(cpu, pid, 0);
      yield* this.#setState(cpu, pid, S390_TASK_RUNNING);
    }
  }

  /** pfault_interrupt. */
  *#pfault(cpu: S390Cpu, { subcode, parameter }: ExternalInterruption): S390Guest {
    if ((subcode & 0xff00) !== PFAULT_INIT_SUBCODE) return;
    const pid = Number(parameter & 0xffff_ffffn);
    if (pid < 1 || pid > this.#contexts.length) return;
    const blocks = yield* this.#locked(cpu, () => this.#take(cpu, pid, subcode));
    if (blocks) yield* this.#schedule(cpu);
  }

  /** Steps a task's state. Whether it is to make room. */
  *#take(cpu: S390Cpu, pid: number, subcode: number): GuestValue<boolean> {
    const row = this.row(pid);
    const wait = Number(
      BigInt.asIntN(64, yield* s390LoadField(cpu, row, S390_TASK.fields.pfault_wait)),
    ) as PfaultWait;
    const state = Number(yield* s390LoadField(cpu, row, S390_TASK.fields.state));
    const step = pfaultStep(wait, subcode, state === S390_TASK_RUNNING);
    yield* this.#setWait(cpu, pid, step.wait);
    if (step.task === "is woken") {
      yield* this.#setState(cpu, pid, S390_TASK_RUNNING);
    } else if (step.task === "blocks") {
      yield* this.#setState(cpu, pid, S390_TASK_BLOCKED);
    }
    return step.task === "blocks";
  }

  /** Alone, a CPU needs no lock: interruptions are disabled. */
  *#locked<T>(cpu: S390Cpu, body: () => GuestValue<T>): GuestValue<T> {
    if (this.#options.helper === undefined) return yield* body();
    yield cpu.load16(S390_LC_CPU_NR);
    yield* s390SpinLock(cpu, this.#lock, cpu.number);
    const result = yield* body();
    yield* s390SpinUnlock(cpu, this.#lock);
    return result;
  }

  *#setState(cpu: S390Cpu, pid: number, state: number): S390Guest {
    yield cpu.store32(this.row(pid) + S390_TASK.fields.state.offset, state);
  }

  *#setWait(cpu: S390Cpu, pid: number, wait: PfaultWait): S390Guest {
    yield cpu.store64(this.row(pid) + S390_TASK.fields.pfault_wait.offset, wait);
  }
}

function* timeSliceEnd(cpu: S390Cpu): S390Guest {
  yield cpu.diag44();
}
