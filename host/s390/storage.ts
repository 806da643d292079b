/**
 * A CPU's storage, by real addresses: big-endian, with the first 8 KiB and those at the prefix in each other's place. A page
 * may be absent from the host's memory.
 *
 * @module
 */

import { LOWCORE_SIZE } from "../../abi/mod.ts";
import type { OrderedMemory } from "../arch/mod.ts";
import { PAGE_SIZE, type Residency } from "../memory/mod.ts";

/** Why an access cannot be. */
export type StorageFault =
  /** No memory is there. */
  | { readonly kind: "addressing" }
  /** The host has to bring a page in first, by its absolute address. */
  | { readonly kind: "absent"; readonly page: number };

/** Addresses from here on have no memory whatever the slots are. */
const ADDRESS_LIMIT = 2 ** 52;

/** The storage of one CPU. */
export class RealStorage {
  /** The prefix, a multiple of 8 KiB. */
  prefix = 0;
  /** Which pages are present; undefined where all are. */
  residency: Residency | undefined = undefined;
  readonly #words: OrderedMemory;

  /** Storage over a virtual machine's memory. */
  constructor(words: OrderedMemory) {
    this.#words = words;
  }

  /** The absolute address of a real one. */
  absolute(address: number): number {
    const { prefix } = this;
    if (address < LOWCORE_SIZE) return address + prefix;
    return address >= prefix && address < prefix + LOWCORE_SIZE ? address - prefix : address;
  }

  /** What an access would meet; undefined where it can be. */
  fault(address: bigint, bytes: number): StorageFault | undefined {
    if (address + BigInt(bytes) > BigInt(ADDRESS_LIMIT)) return { kind: "addressing" };
    const first = Number(address);
    for (let at = first; at < first + bytes; at = nextPage(at)) {
      const length = Math.min(nextPage(at), first + bytes) - at;
      const absolute = this.absolute(at);
      if (!this.#words.backed(absolute, length)) return { kind: "addressing" };
      const away = this.residency?.firstAway(absolute, length) ?? -1;
      if (away >= 0) return { kind: "absent", page: away };
    }
    return undefined;
  }

  /** Bytes; undefined where there is no memory. Absent pages do not count: for a host that can wait. */
  bytes(address: number, length: number): Uint8Array | undefined {
    const bytes = new Uint8Array(length);
    for (let at = address; at < address + length; at = nextPage(at)) {
      const part = this.#words.bytes(this.absolute(at), Math.min(nextPage(at), address + length) - at);
      if (part === undefined) return undefined;
      bytes.set(part, at - address);
    }
    return bytes;
  }

  /** Up to 8 bytes as a number. Throws `RangeError` where there is no memory. */
  read(address: number, bytes: 1 | 2 | 4 | 8): bigint {
    const found = this.bytes(address, bytes);
    if (found === undefined) {
      throw new RangeError(`Cannot read ${bytes} bytes at real 0x${address.toString(16)}: no memory`);
    }
    let value = 0n;
    for (const byte of found) value = (value << 8n) | BigInt(byte);
    return value;
  }

  /** Writes up to 8 bytes; `false` where there is no memory: then nothing is written. */
  write(address: number, bytes: 1 | 2 | 4 | 8, value: bigint): boolean {
    const whole = nextPage(address) >= address + bytes;
    if (whole) return this.#words.write(this.absolute(address), bytes, value);
    const image = new Uint8Array(bytes);
    for (let i = bytes - 1, rest = value; i >= 0; i--, rest >>= 8n) image[i] = Number(rest & 0xffn);
    return this.writeBytes(address, image);
  }

  /** Writes bytes; `false` where there is no memory: then nothing is written. */
  writeBytes(address: number, bytes: Readonly<Uint8Array>): boolean {
    const end = address + bytes.length;
    for (let at = address; at < end; at = nextPage(at)) {
      if (!this.#words.memory.writable(this.absolute(at), Math.min(nextPage(at), end) - at)) return false;
    }
    for (let at = address; at < end; at = nextPage(at)) {
      const part = bytes.subarray(at - address, Math.min(nextPage(at), end) - address);
      this.#words.memory.load(this.absolute(at), part);
    }
    return true;
  }
}

function nextPage(address: number): number {
  return (Math.floor(address / PAGE_SIZE) + 1) * PAGE_SIZE;
}
