/**
 * Masks of processors in guest memory: arrays of 32-bit words.
 *
 * @module
 */

import { lowestBit, popcount, type X86Cpu } from "../../abi/mod.ts";

/** What guest code that computes something is: instructions, and then a value. */
export type GuestValue<T> = Generator<number, T, void>;

/** Words that masks of `cpus` processors use. */
export function maskWords(cpus: number): number {
  return (cpus + 31) >>> 5;
}

/** Loads a mask into registers. */
export function* loadMask(cpu: X86Cpu, mask: number, cpus: number): GuestValue<Uint32Array> {
  const words = new Uint32Array(maskWords(cpus));
  for (let i = 0; i < words.length; i++) {
    yield cpu.load32(mask + 4 * i);
    words[i] = cpu.eax;
  }
  return words;
}

/** Stores a mask. */
export function* storeMask(cpu: X86Cpu, mask: number, words: Readonly<Uint32Array>): GuestValue<void> {
  for (let i = 0; i < words.length; i++) yield cpu.store32(mask + 4 * i, words[i]);
}

/** Takes the lowest processor out of a loaded mask; -1 once it is empty. */
export function takeFirst(words: Uint32Array): number {
  for (let i = 0; i < words.length; i++) {
    if (words[i] === 0) continue;
    const bit = lowestBit(words[i]);
    words[i] &= words[i] - 1;
    return 32 * i + bit;
  }
  return -1;
}

/** Puts a processor into a loaded mask. */
export function addTo(words: Uint32Array, cpu: number): void {
  words[cpu >>> 5] |= 1 << (cpu & 31);
}

/** Takes a processor out of a loaded mask. */
export function removeFrom(words: Uint32Array, cpu: number): void {
  words[cpu >>> 5] &= ~(1 << (cpu & 31));
}

/** How many processors a loaded mask holds. */
export function weight(words: Readonly<Uint32Array>): number {
  return words.reduce((count, word) => count + popcount(word), 0);
}

/** Whether two loaded masks hold the same processors. */
export function equalMasks(a: Readonly<Uint32Array>, b: Readonly<Uint32Array>): boolean {
  return a.every((word, i) => word === b[i]);
}
