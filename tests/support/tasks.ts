/**
 * Kernels with tasks: what a test starts, and what became of it.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { Guest, GuestFunction, X86Cpu } from "../../abi/mod.ts";
import { rqOf, type RUN_QUEUE, type TASK_STRUCT, taskField, type TaskOptions } from "../../guest/mod.ts";
import type { StalenessOracle } from "../../host/mod.ts";
import { KernelRig, type KernelRigOptions } from "./kernels.ts";

/** A task to be started: a program, and how. */
export interface Start extends Partial<Omit<TaskOptions, "entry">> {
  /** What it runs: in user mode, unless it is a kernel thread. */
  readonly program: GuestFunction;
  /** It has no user mode. */
  readonly kernelThread?: boolean;
}

/** A kernel whose boot processor starts tasks and waits for all of them. */
export class TaskRig extends KernelRig {
  /** The tasks, in the order in which they were started. */
  readonly tasks: number[] = [];

  /** A kernel with tasks; without paging unless the options say so. */
  constructor(options: KernelRigOptions = {}) {
    super({ sched: true, ...options });
  }

  /** Starts all, waits until they have ended, and answers with their exit codes. `before` runs first. */
  runTasks(starts: readonly Start[], before?: (cpu: X86Cpu) => Guest): number[] {
    const { kernel } = this;
    const entries = starts.map(({ program, kernelThread }) =>
      kernelThread === true ? kernel.sched.kernelThread((cpu) => program(cpu)) : kernel.user(program)
    );
    const { tasks } = this;
    this.run(function* main(cpu) {
      if (before !== undefined) yield* before(cpu);
      for (const [n, { program: _program, kernelThread: _thread, ...options }] of starts.entries()) {
        tasks.push(yield* kernel.sched.spawn(cpu, { ...options, entry: entries[n] }));
      }
      yield* kernel.sched.waitForAll(cpu);
    });
    return this.exitCodes();
  }

  /** The exit codes of the tasks. */
  exitCodes(): number[] {
    return this.tasks.map((task) => this.task(task, "exitCode"));
  }

  /** A field of a task. */
  task(task: number, name: keyof typeof TASK_STRUCT.fields): number {
    return this.vm.memory.word(taskField(task, name));
  }

  /** A field of a run queue. */
  rq(cpu: number, name: keyof typeof RUN_QUEUE.fields): number {
    return this.vm.memory.word(rqOf(cpu, name));
  }
}

/** A kernel with paging whose boot processor makes an address space, starts tasks in it, and waits for all of them. */
export class PagingRig extends TaskRig {
  /** The address space. */
  space = 0;
  /** Anonymous memory in it, where it was asked for. */
  shared = 0;

  /** A kernel with paging; each use of a translation is judged where the machine has an oracle. */
  constructor(options: KernelRigOptions = {}) {
    const paging = typeof options.paging === "object" ? options.paging : {};
    let oracle: StalenessOracle | undefined = undefined;
    super({
      ...options,
      paging: {
        frames: 256,
        ...paging,
        witness: {
          changed: (range) => oracle?.changed({ space: "linear", ...range }),
          gone: (range, reason) => oracle?.gone({ space: "linear", ...range, reason }),
        },
      },
    });
    oracle = this.vm.machine.staleness;
  }

  /** Starts all in one address space with `pages` of shared memory, which is their argument; answers with exit codes. */
  runProgram(starts: readonly Start[], pages: number = 1): number[] {
    const { kernel } = this;
    // deno-lint-ignore no-this-alias
    const rig = this;
    const entries = starts.map(({ program }) => kernel.user(program));
    this.run(function* main(cpu) {
      rig.space = yield* kernel.mm.create(cpu);
      rig.shared = yield* kernel.mm.map(cpu, rig.space, 4096 * pages);
      for (const [n, { program: _program, kernelThread: _thread, ...options }] of starts.entries()) {
        const argument = options.argument ?? rig.shared;
        rig.tasks.push(
          yield* kernel.sched.spawn(cpu, { ...options, argument, entry: entries[n], mm: rig.space }),
        );
      }
      yield* kernel.mm.put(cpu, rig.space);
      yield* kernel.sched.waitForAll(cpu);
    });
    return this.exitCodes();
  }

  /** A variable of memory management. */
  mm(name: "used"): number {
    return this.vm.memory.word(this.kernel.mm.dataAt(name));
  }

  /** That nothing but the kernel complained. */
  quiet(): this {
    assertEquals(this.kernel.log, []);
    return this;
  }
}
