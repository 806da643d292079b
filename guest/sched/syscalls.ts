/**
 * System calls: SYSCALL enters the kernel, a table says what to do, and user code goes on with the result in RAX. Numbers
 * and registers are Linux's (arch/x86/entry/syscalls/syscall_64.tbl; the x86-64 psABI, A.2.1): the number in RAX,
 * arguments in RDI, RSI, RDX, R10, R8 and R9. What has no memory of its own here differs: nanosleep's duration is a
 * number of nanoseconds, in a register.
 *
 * @module
 */

import {
  EFER_SCE,
  FLAG_AF,
  FLAG_CF,
  FLAG_IF,
  FLAG_IOPL,
  FLAG_OF,
  FLAG_PF,
  FLAG_SF,
  FLAG_ZF,
  type Guest,
  IA32_EFER,
  IA32_FMASK,
  IA32_LSTAR,
  IA32_STAR,
  KERNEL_CS,
  R10,
  R8,
  R9,
  RDI,
  RDX,
  RSI,
  USER32_CS,
  type X86Cpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { exitToUser } from "./core.ts";
import { rqOffset } from "./layout.ts";
import type { Scheduler } from "./scheduler.ts";

/** mmap. */
export const NR_mmap = 9;
/** mprotect. */
export const NR_mprotect = 10;
/** munmap. */
export const NR_munmap = 11;
/** sched_yield. */
export const NR_sched_yield = 24;
/** madvise. */
export const NR_madvise = 28;
/** nanosleep. */
export const NR_nanosleep = 35;
/** exit. */
export const NR_exit = 60;
/** getrusage. */
export const NR_getrusage = 98;
/** gettid. */
export const NR_gettid = 186;
/** futex. */
export const NR_futex = 202;
/** getcpu. */
export const NR_getcpu = 309;

/** Not an error of anybody's: try again. */
export const EAGAIN = 11;
/** No memory, or no such mapping. */
export const ENOMEM = 12;
/** An address that the caller may not use. */
export const EFAULT = 14;
/** An argument that cannot be. */
export const EINVAL = 22;
/** No such system call. */
export const ENOSYS = 38;

/** What a system call is given: six registers, as signed numbers, exact where a double can be. */
export type SyscallArguments = readonly number[];

/** A system call: its result, or a negated error number. */
export type Syscall = (cpu: X86Cpu, sched: Scheduler, args: SyscallArguments) => GuestValue<number>;

/** The system calls of a kernel, by number. */
export class SyscallTable {
  readonly #calls = new Map<number, Syscall>();

  /** Puts a system call behind a number. Throws `RangeError` where one is there. */
  add(nr: number, call: Syscall): void {
    if (this.#calls.has(nr)) throw new RangeError(`Cannot add system call ${nr}: it is there already`);
    this.#calls.set(nr, call);
  }

  /** The system call of a number. */
  at(nr: number): Syscall | undefined {
    return this.#calls.get(nr);
  }
}

const FLAG_TF = 1 << 8;
const FLAG_DF = 1 << 10;
const FLAG_NT = 1 << 14;
const FLAG_RF = 1 << 16;
const FLAG_AC = 1 << 18;
const FLAG_ID = 1 << 21;
/** What SYSCALL clears: with AC, user code cannot bring its own leave to touch user pages along (syscall_init). */
const SYSCALL_MASK = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_OF |
  FLAG_IOPL | FLAG_NT | FLAG_RF | FLAG_AC | FLAG_ID;

/** Lets user code of this processor make system calls (syscall_init). */
export function* enableSyscalls(cpu: X86Cpu, entry: number): Guest {
  yield cpu.wrmsr(IA32_STAR, 0, (USER32_CS << 16) | KERNEL_CS);
  yield cpu.wrmsr(IA32_LSTAR, entry);
  yield cpu.wrmsr(IA32_FMASK, SYSCALL_MASK);
  yield cpu.rdmsr(IA32_EFER);
  yield cpu.wrmsr(IA32_EFER, cpu.eax | EFER_SCE, cpu.edx);
}

const SYSCALLS = rqOffset("syscalls");
const HIGH = 2 ** 32;

/** Where SYSCALL enters the kernel (entry_SYSCALL_64), with interrupts off. */
export function* systemCall(cpu: X86Cpu, sched: Scheduler): Guest {
  const call = sched.syscalls.at(cpu.eax);
  const { regs } = cpu.top.below; // What the entry code would save as pt_regs.
  const args = [RDI, RSI, RDX, R10, R8, R9].map((word) => (regs[word + 1] | 0) * HIGH + regs[word]);
  yield cpu.load32(cpu.gsBase + SYSCALLS);
  yield cpu.store32(cpu.gsBase + SYSCALLS, cpu.eax + 1);
  yield cpu.sti();
  const result = call === undefined ? -ENOSYS : yield* call(cpu, sched, args);
  yield cpu.cli();
  cpu.setInterruptedRax(result >>> 0, Math.floor(result / HIGH));
  yield* exitToUser(cpu, sched);
}
