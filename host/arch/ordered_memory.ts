/**
 * Guest memory in a byte order: what a processor of that order, or a host on its behalf, reads and writes.
 *
 * @module
 */

import type { ByteOrder } from "../../abi/mod.ts";
import type { GuestMemory } from "../memory/mod.ts";

/** A number whose bytes are exchanged: the last is the first. */
export function byteSwapped(value: bigint, bytes: 1 | 2 | 4 | 8): bigint {
  let swapped = 0n;
  for (let i = 0; i < bytes; i++) swapped = (swapped << 8n) | ((value >> BigInt(8 * i)) & 0xffn);
  return swapped;
}

/** Memory whose words have a byte order. Accesses to what is not backed, or not writable, do nothing and say so. */
export class OrderedMemory {
  /** The bytes. */
  readonly memory: GuestMemory;
  /** The order of a word's bytes; a processor that changes its mode changes it. */
  order: ByteOrder;

  /** The words of `memory`. */
  constructor(memory: GuestMemory, order: ByteOrder) {
    this.memory = memory;
    this.order = order;
  }

  /** Whether all of a range can be read. */
  backed(address: number, bytes: number): boolean {
    return this.memory.backed(address, bytes);
  }

  /** The bytes of a range; undefined where not backed. */
  bytes(address: number, length: number): Uint8Array | undefined {
    if (!this.memory.backed(address, length)) return undefined;
    return Uint8Array.from({ length }, (_, i) => this.memory.byte(address + i));
  }

  /** An unsigned word of 1 to 4 bytes; undefined where not backed. */
  read(address: number, bytes: 1 | 2 | 4): number | undefined {
    if (!this.memory.backed(address, bytes)) return undefined;
    let value = 0;
    for (let i = 0; i < bytes; i++) {
      const at = this.order === "little" ? bytes - 1 - i : i;
      value = value * 0x100 + this.memory.byte(address + at);
    }
    return value;
  }

  /** 64 bits; undefined where not backed. */
  read64(address: number): bigint | undefined {
    const first = this.read(address, 4);
    const second = this.read(address + 4, 4);
    if (first === undefined || second === undefined) return undefined;
    return this.order === "little"
      ? (BigInt(second) << 32n) | BigInt(first)
      : (BigInt(first) << 32n) | BigInt(second);
  }

  /** Writes the low 1 to 8 bytes of a value. false where not writable: then nothing is written. */
  write(address: number, bytes: 1 | 2 | 4 | 8, value: number | bigint): boolean {
    const word = BigInt.asUintN(8 * bytes, BigInt(value));
    return this.memory.write(address, bytes, this.order === "big" ? byteSwapped(word, bytes) : word);
  }
}
