/**
 * A remembered guest address, as gfn_to_hva_cache is: looked up once, and again after the slots have changed.
 *
 * @module
 */

import type { GuestMemory } from "./guest_memory.ts";
import type { Slot } from "./slot.ts";

/** A range of guest memory that the host reads and writes often. */
export class GuestCache {
  /** First address. */
  gpa = 0;
  /** Bytes. */
  length = 0;
  readonly #memory: GuestMemory;
  #slot: Slot | undefined = undefined;
  #usable = false;
  #generation = -1;

  /** A cache that points nowhere yet. */
  constructor(memory: GuestMemory) {
    this.#memory = memory;
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
    return this.#usable ? this.#memory.byte(this.gpa + offset) : -1;
  }

  /** Writes the byte at `offset`. false where it cannot be written. */
  writeByte(value: number, offset: number = 0): boolean {
    const slot = this.#current();
    if (slot !== undefined) slot.u8[this.gpa + offset - slot.base] = value;
    else if (this.#usable) this.#memory.setByte(this.gpa + offset, value);
    else return false;
    this.#memory.stored(this.gpa + offset, 1);
    return true;
  }

  /** The slot that holds all of the range, where one does. */
  #current(): Slot | undefined {
    if (this.#generation !== this.#memory.generation) this.#lookUp(this.gpa, this.length);
    return this.#slot;
  }

  #lookUp(gpa: number, length: number): boolean {
    this.#generation = this.#memory.generation;
    this.#usable = this.#memory.writable(gpa, length);
    this.#slot = this.#usable ? this.#memory.find(gpa, length) : undefined;
    return this.#usable;
  }
}
