/**
 * Time: the local APIC's timer ticks while a processor has something to do, and wakes sleepers. With TSC deadlines, and
 * with counts of one shot, an idle processor is left alone until its next sleeper's time (CONFIG_NO_HZ_IDLE,
 * CONFIG_HIGH_RES_TIMERS); a periodic timer ticks on for ever, and sleepers wait for a tick (CONFIG_HZ_PERIODIC).
 *
 * @module
 */

import {
  APIC_LVT_TIMER_ONESHOT,
  APIC_LVT_TIMER_PERIODIC,
  APIC_LVT_TIMER_TSCDEADLINE,
  APIC_LVTT,
  APIC_TDCR,
  APIC_TMCCT,
  APIC_TMICT,
  CPUID_1_ECX_TSC_DEADLINE,
  type Guest,
  high,
  IA32_TSC_DEADLINE,
  low,
  type X86Cpu,
} from "../../abi/mod.ts";
import { rdtsc } from "../instructions.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { loadU64, storeU64 } from "../kernel/long.ts";
import { LOCAL_TIMER_VECTOR } from "../kernel/vectors.ts";
import { currentTask, schedule, wakeUp } from "./core.ts";
import { rqOffset, TASK_INTERRUPTIBLE, taskField } from "./layout.ts";
import type { Scheduler } from "./scheduler.ts";

const TIMERS = rqOffset("timers");
const NEXT_TICK = rqOffset("nextTick");
const TICKS = rqOffset("ticks");

/**
 * How the local APIC's timer is used. "off" is for explored runs, in which a timer that is armed may expire at each step:
 * nobody ticks, and tasks switch where they wait.
 */
export type TimerMode = "tsc-deadline" | "one-shot" | "periodic" | "off";

/** By mode: what the LVT has. */
const LVT_MODES: Readonly<Record<Exclude<TimerMode, "off">, number>> = {
  "tsc-deadline": APIC_LVT_TIMER_TSCDEADLINE,
  "one-shot": APIC_LVT_TIMER_ONESHOT,
  "periodic": APIC_LVT_TIMER_PERIODIC,
};

const FREQUENCY_LEAF = 0x16;
/** APIC_TDCR: divide by 1. */
const DIVIDE_BY_1 = 0xb;
/** Microseconds for which the timer's clock is compared with the TSC. */
const CALIBRATION = 10_000;

/** Finds out what the machine's clocks are: on the boot processor, with its APIC enabled. */
export function* calibrate(cpu: X86Cpu, sched: Scheduler): Guest {
  yield cpu.cpuid(FREQUENCY_LEAF);
  sched.mhz = cpu.eax & 0xffff;
  yield cpu.cpuid(1);
  const deadlines = (cpu.ecx & CPUID_1_ECX_TSC_DEADLINE) !== 0;
  sched.timerMode = sched.wantedTimer ?? (deadlines ? "tsc-deadline" : "one-shot");
  if (sched.timerMode === "tsc-deadline" && !deadlines) {
    throw new RangeError("Cannot tick by TSC deadlines: CPUID does not offer them");
  }
  if (sched.timerMode === "tsc-deadline" || sched.timerMode === "off") return;
  const { apic } = sched.kernel;
  yield* apic.write(cpu, APIC_TDCR, DIVIDE_BY_1);
  yield* apic.write(cpu, APIC_TMICT, 0xffff_ffff);
  yield cpu.work(CALIBRATION * sched.mhz);
  yield* apic.read(cpu, APIC_TMCCT);
  const counted = 0xffff_ffff - cpu.eax;
  yield* apic.write(cpu, APIC_TMICT, 0);
  sched.apicMhz = Math.max(1, Math.round(counted / CALIBRATION));
}

/** Sets this processor's timer up (setup_APIC_timer). A periodic one starts. */
export function* startTimer(cpu: X86Cpu, sched: Scheduler): Guest {
  const { apic } = sched.kernel;
  if (sched.timerMode === "off") return;
  yield* apic.write(cpu, APIC_LVTT, LVT_MODES[sched.timerMode] | LOCAL_TIMER_VECTOR);
  if (sched.timerMode === "tsc-deadline") return;
  yield* apic.write(cpu, APIC_TDCR, DIVIDE_BY_1);
  if (sched.timerMode === "periodic") {
    yield* apic.write(cpu, APIC_TMICT, sched.apicMhz * Math.round(1e6 / sched.hz));
  }
}

/** The processor begins or ends to idle: its tick stops or begins. With interrupts off. */
export function* armTick(cpu: X86Cpu, sched: Scheduler, idle: boolean): Guest {
  if (sched.timerMode === "periodic" || sched.timerMode === "off") return;
  const area = cpu.gsBase;
  const tick = idle ? 0 : (yield* rdtsc(cpu)) + sched.period;
  yield* storeU64(cpu, 64, area + NEXT_TICK, tick);
  yield* program(cpu, sched);
}

/** Programs the next event: the tick, or the first sleeper's time, whichever comes first; none disarms the timer. */
function* program(cpu: X86Cpu, sched: Scheduler): Guest {
  const area = cpu.gsBase;
  const tick = yield* loadU64(cpu, 64, area + NEXT_TICK);
  yield cpu.load64(area + TIMERS);
  const first = cpu.eax;
  const wakeAt = first === 0 ? 0 : yield* loadU64(cpu, 64, taskField(first, "wakeAt"));
  const next = tick === 0 || (wakeAt !== 0 && wakeAt < tick) ? wakeAt : tick;
  if (sched.timerMode === "tsc-deadline") {
    yield cpu.wrmsr(IA32_TSC_DEADLINE, low(next), high(next));
    return;
  }
  const cycles = next === 0 ? 0 : Math.max(next - (yield* rdtsc(cpu)), sched.mhz); // At least a microsecond.
  const count = Math.ceil(cycles / sched.mhz * sched.apicMhz);
  yield* sched.kernel.apic.write(cpu, APIC_TMICT, Math.min(count, 0xffff_ffff));
}

/** The timer's interrupt. */
export function* timerInterrupt(cpu: X86Cpu, sched: Scheduler): Guest {
  const area = cpu.gsBase;
  const now = yield* rdtsc(cpu);
  yield* wakeSleepers(cpu, sched, now);
  if (sched.timerMode === "periodic") {
    yield* tick(cpu, sched);
    return;
  }
  const due = yield* loadU64(cpu, 64, area + NEXT_TICK);
  if (due !== 0 && now >= due) {
    yield* tick(cpu, sched);
    yield* storeU64(cpu, 64, area + NEXT_TICK, Math.max(due, now - sched.period) + sched.period);
  }
  yield* program(cpu, sched);
}

function* wakeSleepers(cpu: X86Cpu, sched: Scheduler, now: number): Guest {
  const list = cpu.gsBase + TIMERS;
  for (;;) {
    yield cpu.load64(list);
    const task = cpu.eax;
    if (task === 0 || (yield* loadU64(cpu, 64, taskField(task, "wakeAt"))) > now) return;
    yield cpu.load64(taskField(task, "timerNext"));
    yield cpu.store64(list, cpu.eax);
    yield* wakeUp(cpu, sched, task);
  }
}

/** The current task has used one more tick; when its slice is over and others wait, it is their turn (task_tick_rt). */
function* tick(cpu: X86Cpu, sched: Scheduler): Guest {
  const area = cpu.gsBase;
  yield cpu.load32(area + TICKS);
  yield cpu.store32(area + TICKS, cpu.eax + 1);
  const task = yield* currentTask(cpu);
  yield cpu.load64(area + rqOffset("idle"));
  if (cpu.eax === task) return;
  yield cpu.load32(taskField(task, "slice"));
  const left = cpu.eax - 1;
  yield cpu.store32(taskField(task, "slice"), left > 0 ? left : sched.slice);
  if (left > 0) return;
  yield cpu.load32(area + rqOffset("waiting"));
  if (cpu.eax !== 0) yield cpu.store32(area + rqOffset("needResched"), 1);
}

/** The current task sleeps until the TSC says `wakeAt` (do_nanosleep). */
export function* sleepUntil(cpu: X86Cpu, sched: Scheduler, wakeAt: number): Guest {
  if (sched.timerMode === "off") throw new RangeError("Cannot sleep: the kernel's timer is off");
  yield cpu.cli();
  const task = yield* currentTask(cpu);
  yield* storeU64(cpu, 64, taskField(task, "wakeAt"), wakeAt);
  const first = yield* insert(cpu, task, wakeAt);
  yield cpu.store32(taskField(task, "state"), TASK_INTERRUPTIBLE);
  if (first && sched.timerMode !== "periodic") yield* program(cpu, sched);
  yield* schedule(cpu, sched);
  yield cpu.sti();
}

/** Puts a sleeper into this processor's list, the earliest first. Whether it is that. */
function* insert(cpu: X86Cpu, task: number, wakeAt: number): GuestValue<boolean> {
  const list = cpu.gsBase + TIMERS;
  let link = list;
  for (;;) {
    yield cpu.load64(link);
    const next = cpu.eax;
    if (next === 0 || (yield* loadU64(cpu, 64, taskField(next, "wakeAt"))) > wakeAt) {
      yield cpu.store64(taskField(task, "timerNext"), next);
      yield cpu.store64(link, task);
      return link === list;
    }
    link = taskField(next, "timerNext");
  }
}
