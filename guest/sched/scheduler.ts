/**
 * Tasks, and what runs them: a kernel that was built with `sched` has one of these. What it remembers is in guest memory
 * (layout.ts); a task's frames, which a kernel has on its stacks, are its {@linkcode X86Cpu}.
 *
 * @module
 */

import { FLAG_FIXED, GP_VECTOR, type Guest, type Gva, RFLAGS, UD_VECTOR, X86Cpu } from "../../abi/mod.ts";
import { rdtsc } from "../instructions.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { percpu, PERCPU_SIZE } from "../kernel/memory_map.ts";
import type { SmpFunction } from "../kernel/smp.ts";
import { localIrqRestore, localIrqSave, spinLock, spinUnlock } from "../kernel/spinlock.ts";
import { LOCAL_TIMER_VECTOR } from "../kernel/vectors.ts";
import { currentTask, idleLoop, irqExit, resched, schedule, wakeUp } from "./core.ts";
import {
  PF_IDLE,
  PF_KTHREAD,
  PF_PINNED,
  rqOf,
  SCHED_DATA,
  TASK_INTERRUPTIBLE,
  TASK_STRUCT,
  taskField,
  WAIT_BUCKET,
  WAIT_BUCKETS,
} from "./layout.ts";
import { addSchedulerCalls } from "./calls.ts";
import { enableSyscalls, SyscallTable, systemCall } from "./syscalls.ts";
import { returnFromFork, userTrap } from "./task.ts";
import { calibrate, sleepUntil, startTimer, timerInterrupt, type TimerMode } from "./tick.ts";
import { waitWhile } from "./wait.ts";

/** How a kernel schedules. Everything has a default. */
export interface SchedOptions {
  /** Ticks a second (CONFIG_HZ); 250 by default. */
  readonly hz?: number;
  /** Ticks that a task runs while others wait; 1 by default. */
  readonly slice?: number;
  /** The timer; TSC deadlines by default, and counts of one shot where the machine does not have them. */
  readonly timer?: TimerMode;
  /** Tasks that there may be at a time, idle tasks aside; 64 by default. */
  readonly tasks?: number;
}

/** A task to be made. */
export interface TaskOptions {
  /** Where it begins: an address that {@linkcode Kernel.user}, or {@linkcode Scheduler.kernelThread}, gave. */
  readonly entry: number;
  /** What it gets: in RDI, or as its argument; a whole number below 2^53. 0 by default. */
  readonly argument?: number;
  /** The processor that it stays on; without that it may move. */
  readonly cpu?: number;
  /** Its address space, where there is paging; the task has a share of it. A kernel thread has none. */
  readonly mm?: number;
}

/**
 * Runs a kernel's tasks.
 *
 * @example Two user programs take turns
 * ```ts
 * import { Machine } from "@exitless/exitless";
 * import { argumentOf, Kernel, schedYield } from "@exitless/exitless/guest";
 * import { assertEquals } from "@std/assert";
 *
 * const order: number[] = [];
 * const kernel: Kernel = new Kernel({
 *   sched: true,
 *   *main(cpu, kernel) {
 *     for (const argument of [1, 2]) yield* kernel.sched.spawn(cpu, { entry: program, argument });
 *     yield* kernel.sched.waitForAll(cpu);
 *   },
 * });
 * const program: number = kernel.user(function* program(cpu) {
 *   const me = argumentOf(cpu);
 *   for (let turn = 0; turn < 2; turn++) {
 *     order.push(me);
 *     yield* schedYield(cpu);
 *   }
 * });
 * const vm = new Machine().createVm();
 * vm.load(kernel.text);
 * vm.start(kernel.entry);
 * assertEquals(vm.machine.run().end, "finished");
 * assertEquals(order, [1, 2, 1, 2]);
 * ```
 */
export class Scheduler {
  /** The kernel. */
  readonly kernel: Kernel;
  /** Ticks a second. */
  readonly hz: number;
  /** Ticks of a slice. */
  readonly slice: number;
  /** What timer was asked for. */
  readonly wantedTimer: TimerMode | undefined;
  /** The system calls. */
  readonly syscalls: SyscallTable = new SyscallTable();
  /** Where the hash table of wait queues is. */
  readonly waitBuckets: number;
  /** Where the scheduler's memory ends: a whole page. */
  readonly end: number;

  /** Patched at boot: the timer in use. */
  timerMode: TimerMode = "tsc-deadline";
  /** Patched at boot: the TSC's frequency in MHz (tsc_khz). */
  mhz = 0;
  /** Patched at boot: the frequency of the APIC timer's clock in MHz. */
  apicMhz = 0;

  readonly #data: number;
  readonly #tasks: number;
  readonly #limit: number;
  readonly #contexts = new Map<number, X86Cpu>();
  readonly #fork: Gva;
  readonly #entry: Gva;
  readonly #threads = new Set<number>();

  /** Links the scheduler into a kernel; its memory begins at `start`. Throws `RangeError` for options that cannot be. */
  constructor(kernel: Kernel, start: number, options: SchedOptions) {
    if (kernel.bits !== 64) throw new RangeError("Cannot build a 32-bit kernel with tasks: allowed is 64");
    this.kernel = kernel;
    this.hz = whole("tick", options.hz ?? 250, 1, 10_000, "times a second");
    this.slice = whole("give slices of", options.slice ?? 1, 1, 10_000, "ticks");
    this.#limit = whole("have", options.tasks ?? 64, 1, 4096, "tasks");
    this.wantedTimer = options.timer;
    this.waitBuckets = start;
    this.#data = start + WAIT_BUCKETS * WAIT_BUCKET.size;
    this.#tasks = Math.ceil((this.#data + SCHED_DATA.size) / TASK_STRUCT.size) * TASK_STRUCT.size;
    const last = this.#tasks + (kernel.cpus + this.#limit) * TASK_STRUCT.size;
    this.end = Math.ceil(last / PERCPU_SIZE) * PERCPU_SIZE;

    addSchedulerCalls(this.syscalls);
    this.#entry = kernel.text.add((cpu) => systemCall(cpu, this), "entry_SYSCALL_64");
    this.#fork = kernel.text.add((cpu) => returnFromFork(cpu, this), "ret_from_fork");
    kernel.irq(LOCAL_TIMER_VECTOR, (cpu) => timerInterrupt(cpu, this), "sysvec_apic_timer_interrupt");
    for (const vector of [UD_VECTOR, GP_VECTOR]) {
      kernel.gate(vector, (cpu) => userTrap(cpu, this), "exc_trap");
    }
  }

  /** Cycles between two ticks. */
  get period(): number {
    return Math.round(this.mhz * 1e6 / this.hz);
  }

  // Linking.

  /** Registers a function that a kernel thread can run, and gives its address. */
  kernelThread(func: SmpFunction, name?: string): Gva {
    const address = this.kernel.smpFunction(func, name);
    this.#threads.add(address);
    return address;
  }

  // Booting.

  /** The boot processor's part: what is in memory. */
  *boot(cpu: X86Cpu): Guest {
    this.#contexts.clear();
    for (let bucket = 0; bucket < WAIT_BUCKETS; bucket++) {
      const address = this.waitBuckets + WAIT_BUCKET.size * bucket;
      yield cpu.store64(address, 0);
      yield cpu.store64(address + WAIT_BUCKET.fields.head.offset, 0);
    }
    yield cpu.store32(this.dataAt("taskLock"), 0);
    yield cpu.store32(this.dataAt("live"), 0);
    yield cpu.store32(this.dataAt("nextPid"), 1);
    for (let slot = 0; slot < this.#limit; slot++) yield cpu.store32(taskField(this.#slot(slot), "inUse"), 0);
  }

  /** Each processor's part, before it takes interrupts: what it runs now becomes its idle task. */
  *bootProcessor(cpu: X86Cpu, n: number): Guest {
    const idle = this.idleTask(n);
    for (let offset = 0; offset < TASK_STRUCT.size; offset += 8) yield cpu.store64(idle + offset, 0);
    yield cpu.store32(taskField(idle, "cpu"), n);
    yield cpu.store32(taskField(idle, "onCpu"), 1);
    yield cpu.store32(taskField(idle, "flags"), PF_IDLE | PF_PINNED | PF_KTHREAD);
    this.#contexts.set(idle, cpu);
    for (const name of ["head", "tail", "timers", "nextTick", "previousMm"] as const) {
      yield cpu.store64(rqOf(n, name), 0);
    }
    for (const name of ["lock", "waiting", "needResched", "ticks", "switches", "syscalls"] as const) {
      yield cpu.store32(rqOf(n, name), 0);
    }
    yield cpu.store64(rqOf(n, "idle"), idle);
    yield cpu.store64(rqOf(n, "current"), idle);
    if (this.kernel.hasMm) yield* this.kernel.mm.adoptIdle(cpu, idle);
    yield* enableSyscalls(cpu, this.#entry);
  }

  /** Each processor's part, once its APIC is enabled. */
  *bootTimer(cpu: X86Cpu, n: number): Guest {
    if (n === 0) yield* calibrate(cpu, this);
    yield* startTimer(cpu, this);
  }

  // Tasks.

  /**
   * Makes a task and lets it run. Its address. Throws `RangeError` for an entry that was not registered, and where there
   * are too many tasks.
   */
  *spawn(cpu: X86Cpu, { entry, argument = 0, cpu: pinned, mm = 0 }: TaskOptions): GuestValue<number> {
    const thread = this.#threads.has(entry);
    if (!thread && !this.kernel.isUser(entry)) {
      throw new RangeError(
        `Cannot start a task at 0x${entry.toString(16)}: no function was registered there`,
      );
    }
    if (pinned !== undefined && !(pinned >= 0 && pinned < this.kernel.cpus)) {
      throw new RangeError(
        `Cannot pin a task to processor ${pinned}: allowed are 0 to ${this.kernel.cpus - 1}`,
      );
    }
    if (!thread && this.kernel.hasMm && mm === 0) {
      throw new RangeError("Cannot start a user task without an address space");
    }
    const enabled = yield* localIrqSave(cpu);
    const task = yield* this.#allocate(cpu);
    yield cpu.load32(cpu.gsBase);
    const home = pinned ?? cpu.eax;
    yield cpu.store32(taskField(task, "cpu"), home);
    yield cpu.store32(
      taskField(task, "flags"),
      (pinned === undefined ? 0 : PF_PINNED) | (thread ? PF_KTHREAD : 0),
    );
    yield cpu.store32(taskField(task, "slice"), this.slice);
    yield cpu.store64(taskField(task, "entry"), entry);
    yield cpu.store64(taskField(task, "argument"), argument, argument / 2 ** 32);
    if (!thread && mm !== 0) {
      yield* this.kernel.mm.get(cpu, mm);
      yield cpu.store64(taskField(task, "mm"), mm);
      yield cpu.store64(taskField(task, "activeMm"), mm);
    }
    const context = X86Cpu.task(this.#fork);
    context.regs[RFLAGS] = FLAG_FIXED; // It comes out of a switch, which is made with interrupts off.
    this.#contexts.set(task, context);
    yield cpu.xadd32(this.dataAt("live"), 1);
    yield cpu.store32(taskField(task, "state"), TASK_INTERRUPTIBLE);
    yield* wakeUp(cpu, this, task);
    yield* localIrqRestore(cpu, enabled);
    return task;
  }

  *#allocate(cpu: X86Cpu): GuestValue<number> {
    yield* spinLock(cpu, this.dataAt("taskLock"));
    yield cpu.load32(this.dataAt("nextPid"));
    const pid = cpu.eax;
    yield cpu.store32(this.dataAt("nextPid"), pid + 1);
    let found = 0;
    for (let tried = 0; found === 0 && tried < this.#limit; tried++) {
      const task = this.#slot((pid - 1 + tried) % this.#limit); // Who has ended stays visible for a while.
      yield cpu.load32(taskField(task, "inUse"));
      if (cpu.eax === 0) found = task;
    }
    if (found !== 0) {
      for (let offset = 0; offset < TASK_STRUCT.size; offset += 8) yield cpu.store64(found + offset, 0);
      yield cpu.store32(taskField(found, "inUse"), 1);
      yield cpu.store32(taskField(found, "pid"), pid);
    }
    yield spinUnlock(cpu, this.dataAt("taskLock"));
    if (found === 0) {
      throw new RangeError(`Cannot start a task: there are ${this.#limit} already, the most allowed`);
    }
    return found;
  }

  /** A task that has ended is off its processor: its struct can become another one's. */
  *release(cpu: X86Cpu, task: number): Guest {
    this.#contexts.delete(task);
    yield cpu.store32(taskField(task, "inUse"), 0);
    yield cpu.xadd32(this.dataAt("live"), -1);
    if (cpu.eax === 1) yield* resched(cpu, this, 0); // The boot processor may wait for that.
  }

  /** Waits until a task has ended: its exit code (do_wait). While nobody uses its struct for another. */
  *join(cpu: X86Cpu, task: number): GuestValue<number> {
    yield* waitWhile(cpu, this, taskField(task, "dead"), 0);
    yield cpu.load32(taskField(task, "exitCode"));
    return cpu.eax;
  }

  /** The boot processor's program idles, so that tasks run, until all of them have ended. */
  waitForAll(cpu: X86Cpu): Guest {
    const live = this.dataAt("live");
    return idleLoop(cpu, this, function* () {
      yield cpu.load32(live);
      return cpu.eax === 0;
    });
  }

  /** The current task. */
  current(cpu: X86Cpu): GuestValue<number> {
    return currentTask(cpu);
  }

  /** Lets others run; comes back when it is this task's turn again. */
  yield(cpu: X86Cpu): Guest {
    return schedule(cpu, this);
  }

  /** The current task sleeps. */
  *sleep(cpu: X86Cpu, nanoseconds: number): Guest {
    yield* sleepUntil(cpu, this, (yield* rdtsc(cpu)) + Math.ceil(nanoseconds * this.mhz / 1000));
  }

  /** Wakes a task that sleeps. Whether it did. */
  wakeUp(cpu: X86Cpu, task: number): GuestValue<boolean> {
    return wakeUp(cpu, this, task);
  }

  /** What each processor but the boot processor runs: its idle task. */
  idle(cpu: X86Cpu): Guest {
    return idleLoop(cpu, this);
  }

  /** The end of an interrupt. */
  irqExit(cpu: X86Cpu): Guest {
    return irqExit(cpu, this);
  }

  // Where things are.

  /** The frames of a task. */
  contextOf(task: number): X86Cpu {
    const context = this.#contexts.get(task);
    if (context === undefined) throw new Error(`Cannot run the task at 0x${task.toString(16)}: it has ended`);
    return context;
  }

  /** The address of a processor's idle task. */
  idleTask(n: number): number {
    return this.#tasks + TASK_STRUCT.size * n;
  }

  /** The address of a processor's area. */
  areaOf(n: number): number {
    return percpu(n, "cpu");
  }

  /** The address of one of the scheduler's variables. */
  dataAt(name: keyof typeof SCHED_DATA.fields): number {
    return this.#data + SCHED_DATA.fields[name].offset;
  }

  #slot(n: number): number {
    return this.idleTask(this.kernel.cpus + n);
  }
}

function whole(verb: string, value: number, min: number, max: number, what: string): number {
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw new RangeError(`Cannot ${verb} ${value} ${what}: allowed are ${min} to ${max}`);
}
