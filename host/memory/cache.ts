/**
 * A remembered guest address, as gfn_to_hva_cache is: looked up once, and again after the slots have changed.
 *
 * @module
 */

import type { GuestMemory } from "./guest_memory.ts";
import type { Slot } from "./slot.ts";

/** What has to be done besides, where the host accesses guest memory. */
export interface GuestAccess {
  /** Whether anything has. It may change only with the memory's generation. */
  readonly watched: boolean;
  /** The host is about to read a range. Whether it can. */
  reads(address: number, bytes: number): boolean;
  /** The host is about to write a range. Whether it can. */
  writes(address: number, bytes: number): boolean;
}

/** A range of guest memory that the host reads and writes often. */
export class GuestCache {
  /** First address. */
  gpa = 0;
  /** Bytes. */
  length = 0;
  readonly #memory: GuestMemory;
  readonly #access: GuestAccess | undefined;
  #slot: Slot | undefined = undefined;
  #usable = false;
  #generation = -1;

  /** A cache that points nowhere yet. */
  constructor(memory: GuestMemory, access?: GuestAccess) {
    this.#memory = memory;
    this.#access = access;
  }

  /**
   * Points the cache at a range. false where the host may not write there: the cache keeps its address then, and fails
   * until the slots change (__kvm_gfn_to_hva_cache_init).
   */
  init(gpa: number, length: number): boolean {
    if (!this.#lookUp(gpa, length)) return false;
    this.gpa = gpa;
    this.length = length;
    return true;
  }

  /** The byte at `offset`; -1 where the host may not write: it does not read there either. */
  readByte(offset: number = 0): number {
    const slot = this.#current();
    if (slot !== undefined) return slot.u8[this.gpa + offset - slot.base];
    if (!this.#usable || !this.#permits("reads", offset)) return -1;
    return this.#memory.byte(this.gpa + offset);
  }

  /** Writes the byte at `offset`. false where it cannot be written. */
  writeByte(value: number, offset: number = 0): boolean {
    const slot = this.#current();
    if (slot !== undefined) slot.u8[this.gpa + offset - slot.base] = value;
    else if (this.#usable && this.#permits("writes", offset)) this.#memory.setByte(this.gpa + offset, value);
    else return false;
    this.#memory.stored(this.gpa + offset, 1);
    return true;
  }

  /** Whether an access of one byte that goes the long way can be made. */
  #permits(access: "reads" | "writes", offset: number): boolean {
    const to = this.#access;
    return to === undefined || !to.watched || to[access](this.gpa + offset, 1);
  }

  /** The slot that holds all of the range, where one does and nobody watches: the short way. */
  #current(): Slot | undefined {
    if (this.#generation !== this.#memory.generation) this.#lookUp(this.gpa, this.length);
    return this.#slot;
  }

  #lookUp(gpa: number, length: number): boolean {
    this.#generation = this.#memory.generation;
    this.#usable = this.#memory.writable(gpa, length);
    const short = this.#usable && this.#access?.watched !== true;
    this.#slot = short ? this.#memory.find(gpa, length) : undefined;
    return this.#usable;
  }
}
