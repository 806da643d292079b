/**
 * Guests that time themselves by the local APIC's timer.
 *
 * @module
 */

import type { X86Cpu } from "../../abi/mod.ts";
import { type ApicMode, type Asking, enter, tryingRig, write } from "./apic.ts";
import type { Rig, RigOptions } from "./guests.ts";

/** The vector of the guest's timer. */
export const TIMER_VECTOR = 0x40;
/** The timer's modes, in place. */
export const ONESHOT = 0;
/** Periodic. */
export const PERIODIC = 1 << 17;
/** TSC deadline. */
export const DEADLINE = 2 << 17;
/** LVT bit 16. */
export const MASKED = 1 << 16;
/** Cycles of the default profiles' TSC in a microsecond. */
export const MICROSECOND = 2500;
/** What an expiry may be late by until its handler runs: an exit, an entry, a wake-up. */
export const LATE = 10 * MICROSECOND;

/** A guest with a timer, and when the timer's handler ran. */
export class TimedGuest {
  /** The TSC at each run of the handler. */
  readonly ticks: number[] = [];
  /** The rig. */
  readonly rig: Rig;
  /** The mode of its APIC. */
  readonly mode: ApicMode;

  /** A guest whose APIC is used in `mode`. */
  constructor(options: RigOptions = {}, mode: ApicMode = "x2apic") {
    this.mode = mode;
    const { ticks } = this;
    this.rig = tryingRig(options).on(TIMER_VECTOR, function* timer(cpu) {
      yield cpu.rdtsc();
      ticks.push(cpu.edx * 2 ** 32 + cpu.eax);
      yield* write(cpu, mode, 0x0b0, 0);
    });
  }

  /** Runs a program with interrupts on, to its end, which must come before simulated time passes `deadline`. */
  run(program: (cpu: X86Cpu, guest: TimedGuest) => Asking<void>, deadline = 1e10): this {
    // deno-lint-ignore no-this-alias
    const guest = this;
    this.rig.finish(function* main(cpu) {
      yield* enter(cpu, guest.mode);
      yield cpu.sti();
      yield* program(cpu, guest);
      yield cpu.cli();
    }, deadline);
    return this;
  }

  /** Writes the LVT timer register. */
  *lvt(cpu: X86Cpu, value: number): Asking<void> {
    yield* write(cpu, this.mode, 0x320, TIMER_VECTOR | value);
  }

  /** Divides by 1, and starts a count-down of `ns` nanoseconds. Answers with the TSC at the start. */
  *start(cpu: X86Cpu, ns: number): Asking<number> {
    yield* write(cpu, this.mode, 0x3e0, 0xb);
    const at = yield* this.tsc(cpu);
    yield* write(cpu, this.mode, 0x380, ns);
    return at;
  }

  /** Sets the deadline. */
  *deadline(cpu: X86Cpu, tsc: number): Asking<void> {
    yield cpu.wrmsr(0x6e0, tsc, tsc / 2 ** 32);
  }

  /** Reads the counter. */
  *tsc(cpu: X86Cpu): Asking<number> {
    yield cpu.rdtsc();
    return cpu.edx * 2 ** 32 + cpu.eax;
  }
}
