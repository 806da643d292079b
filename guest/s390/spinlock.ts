/**
 * A spinlock that knows its holder (arch/s390/lib/spinlock.c): who finds it taken gives its time to the CPU that holds it, as
 * that one may wait for a host CPU.
 *
 * @module
 */

import type { S390Cpu, S390Guest } from "../../abi/mod.ts";

/** The lock word of a CPU: its address, inverted, so that 0 is free. */
function lockValue(cpuAddress: number): number {
  return ~cpuAddress >>> 0;
}

/** How a CPU waits. */
export interface SpinOptions {
  /** How many looks before it gives its time away; 100 by default. */
  readonly retries?: number;
  /** Whether it does at all; true by default. */
  readonly yields?: boolean;
}

/** Takes the lock at a word of storage, for the CPU with an address. */
export function* s390SpinLock(
  cpu: S390Cpu,
  lock: number,
  self: number,
  { retries = 100, yields = true }: SpinOptions = {},
): S390Guest {
  for (let count = retries;; count--) {
    yield cpu.compareAndSwap32(lock, 0, lockValue(self));
    if (cpu.cc === 0) return;
    if (count > 0) continue;
    const holder = ~cpu.number >>> 0;
    if (yields) yield cpu.diag9c(holder);
    count = retries;
  }
}

/** Releases it. */
export function* s390SpinUnlock(cpu: S390Cpu, lock: number): S390Guest {
  yield cpu.store32(lock, 0);
}
