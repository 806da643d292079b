/**
 * Accesses whose width is the kernel's: a long has 64 bits or 32, and outside 64-bit mode no instruction has an operand
 * of 64.
 *
 * @module
 */

import { HIGH, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "./cpumask.ts";

/** The width of a long. */
export type LongBits = 64 | 32;

/** Loads a long into RAX. */
export function loadLong(cpu: X86Cpu, bits: LongBits, address: number): number {
  return bits === 64 ? cpu.load64(address) : cpu.load32(address);
}

/** Stores a long that 32 bits hold. */
export function storeLong(cpu: X86Cpu, bits: LongBits, address: number, value: number): number {
  return bits === 64 ? cpu.store64(address, value) : cpu.store32(address, value);
}

/** Exchanges a long with one that 32 bits hold; the old one comes in RAX. */
export function xchgLong(cpu: X86Cpu, bits: LongBits, address: number, value: number): number {
  return bits === 64 ? cpu.xchg64(address, value) : cpu.xchg32(address, value);
}

/** What CMPXCHG is given. */
export interface Exchange {
  /** What memory must hold. */
  readonly expected: number;
  /** What is stored then. */
  readonly value: number;
}

/** Stores a long if memory holds the expected one; ZF says so. */
export function cmpxchgLong(cpu: X86Cpu, bits: LongBits, address: number, exchange: Exchange): number {
  const { expected, value } = exchange;
  return bits === 64 ? cpu.cmpxchg64(address, expected, value) : cpu.cmpxchg32(address, expected, value);
}

/** Loads a 64-bit variable, in two pieces in a 32-bit kernel; exact below 2^53. */
export function* loadU64(cpu: X86Cpu, bits: LongBits, address: number): GuestValue<number> {
  if (bits === 64) {
    yield cpu.load64(address);
    return cpu.raxHigh * HIGH + cpu.eax;
  }
  yield cpu.load32(address);
  const low = cpu.eax;
  yield cpu.load32(address + 4);
  return cpu.eax * HIGH + low;
}

/** Stores a whole number below 2^53 into a 64-bit variable, in two pieces in a 32-bit kernel. */
export function* storeU64(cpu: X86Cpu, bits: LongBits, address: number, value: number): GuestValue<void> {
  if (bits === 64) {
    yield cpu.store64(address, value, value / HIGH);
    return;
  }
  yield cpu.store32(address, value);
  yield cpu.store32(address + 4, value / HIGH);
}
