/**
 * What a C library is to user programs: system calls as functions. For programs that run at CPL 3.
 *
 * @module
 */

import { R10, R8, R9, RAX, RDI, RDX, RSI, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { FUTEX_PRIVATE_FLAG, FUTEX_WAIT, FUTEX_WAKE } from "./calls.ts";
import {
  NR_exit,
  NR_futex,
  NR_getcpu,
  NR_getrusage,
  NR_gettid,
  NR_madvise,
  NR_mmap,
  NR_mprotect,
  NR_munmap,
  NR_nanosleep,
  NR_sched_yield,
} from "./syscalls.ts";

const ARGUMENTS = [RDI, RSI, RDX, R10, R8, R9];
const HIGH = 2 ** 32;

/** Any system call. Arguments are safe integers. The result is signed: below 0 it is a negated error number. */
export function* syscall(cpu: X86Cpu, nr: number, ...args: readonly number[]): GuestValue<number> {
  const { regs } = cpu;
  regs[RAX] = nr;
  regs[RAX + 1] = 0;
  for (const [n, value] of args.entries()) {
    regs[ARGUMENTS[n]] = value >>> 0;
    regs[ARGUMENTS[n] + 1] = Math.floor(value / HIGH) >>> 0;
  }
  yield cpu.syscall();
  return (cpu.raxHigh | 0) * HIGH + cpu.eax;
}

/** The number that the program was started with. */
export function argumentOf(cpu: X86Cpu): number {
  return cpu.regs[RDI + 1] * HIGH + cpu.regs[RDI];
}

/** Lets other tasks run. */
export function schedYield(cpu: X86Cpu): GuestValue<number> {
  return syscall(cpu, NR_sched_yield);
}

/** Sleeps for some nanoseconds. */
export function nanosleep(cpu: X86Cpu, nanoseconds: number): GuestValue<number> {
  return syscall(cpu, NR_nanosleep, nanoseconds);
}

/** Ends the task. */
export function exit(cpu: X86Cpu, code: number): GuestValue<number> {
  return syscall(cpu, NR_exit, code);
}

/** The task's number. */
export function gettid(cpu: X86Cpu): GuestValue<number> {
  return syscall(cpu, NR_gettid);
}

/** Has the kernel store the number of this processor. */
export function getcpu(cpu: X86Cpu, address: number): GuestValue<number> {
  return syscall(cpu, NR_getcpu, address);
}

/** Sleeps while a word is `expected`, until it is woken. 0, or -EAGAIN where the word differs. */
export function futexWait(cpu: X86Cpu, address: number, expected: number): GuestValue<number> {
  return syscall(cpu, NR_futex, address, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, expected);
}

/** Wakes at most `count` tasks that wait for a word. How many. */
export function futexWake(cpu: X86Cpu, address: number, count: number): GuestValue<number> {
  return syscall(cpu, NR_futex, address, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count);
}

/** How a mapping is made: PROT_READ. */
export const PROT_READ = 1;
/** PROT_WRITE. */
export const PROT_WRITE = 2;
/** PROT_EXEC. */
export const PROT_EXEC = 4;
/** PROT_SEM: without effect on x86, but allowed. */
export const PROT_SEM = 8;
/** MAP_PRIVATE. */
export const MAP_PRIVATE = 2;
/** MAP_FIXED: at that address, and nowhere else. */
export const MAP_FIXED = 0x10;
/** MAP_ANONYMOUS. */
export const MAP_ANONYMOUS = 0x20;
/** MADV_DONTNEED: the pages' content is given up. */
export const MADV_DONTNEED = 4;

/** Maps anonymous memory: its address. */
export function mmap(
  cpu: X86Cpu,
  length: number,
  prot: number = PROT_READ | PROT_WRITE,
  at?: number,
): GuestValue<number> {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | (at === undefined ? 0 : MAP_FIXED);
  return syscall(cpu, NR_mmap, at ?? 0, length, prot, flags, -1, 0);
}

/** Unmaps memory. */
export function munmap(cpu: X86Cpu, address: number, length: number): GuestValue<number> {
  return syscall(cpu, NR_munmap, address, length);
}

/** Changes what may be done with memory. */
export function mprotect(cpu: X86Cpu, address: number, length: number, prot: number): GuestValue<number> {
  return syscall(cpu, NR_mprotect, address, length, prot);
}

/** Gives the content of pages up. */
export function madviseDontneed(cpu: X86Cpu, address: number, length: number): GuestValue<number> {
  return syscall(cpu, NR_madvise, address, length, MADV_DONTNEED);
}

/** How many page faults the program has had (getrusage's ru_minflt); `buffer` is where the answer may be put: 144 bytes. */
export function* minorFaults(cpu: X86Cpu, buffer: number): GuestValue<number> {
  yield* syscall(cpu, NR_getrusage, 0, buffer);
  yield cpu.load32(buffer + 64); // behind two struct timeval and four longs
  return cpu.eax;
}
