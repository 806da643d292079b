/**
 * Spinlocks in guest memory: a word that is 1 while somebody holds the lock. Whoever may be interrupted by another user
 * of the same lock turns interrupts off first.
 *
 * @module
 */

import type { Guest, X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "./cpumask.ts";

/** Takes a lock; spins on the word, not on the bus, while it is taken. */
export function* spinLock(cpu: X86Cpu, lock: number): Guest {
  for (;;) {
    yield cpu.xchg32(lock, 1);
    if (cpu.eax === 0) return;
    yield cpu.pauseWhile(lock, 1);
  }
}

/** Releases a lock: one store, to be yielded. */
export function spinUnlock(cpu: X86Cpu, lock: number): number {
  return cpu.store32(lock, 0);
}

/** Turns interrupts off. Whether they were on (local_irq_save). */
export function* localIrqSave(cpu: X86Cpu): GuestValue<boolean> {
  yield cpu.pushf();
  const enabled = cpu.interruptsEnabled;
  yield cpu.cli();
  return enabled;
}

/** Turns interrupts on again where they were (local_irq_restore). */
export function* localIrqRestore(cpu: X86Cpu, enabled: boolean): Guest {
  if (enabled) yield cpu.sti();
}
