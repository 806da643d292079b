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
  #generation = -1;

  /** A cache that points nowhere yet. */
  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Points the cache at a range. false, and the cache unchanged, where it is not backed. */
  init(gpa: number, length: number): boolean {
    if (!this.#memory.backed(gpa, length)) return false;
    this.gpa = gpa;
    this.length = length;
    this.#lookUp();
    return true;
  }

  /** The byte at `offset`; -1 where it cannot be read. */
  readByte(offset: number = 0): number {
    const slot = this.#current();
    if (slot !== undefined) return slot.u8[this.gpa + offset - slot.base];
    return this.#memory.backed(this.gpa + offset, 1) ? this.#memory.byte(this.gpa + offset) : -1;
  }

  /** Writes the byte at `offset`. false where it cannot be written. */
  writeByte(value: number, offset: number = 0): boolean {
    const slot = this.#current();
    if (slot !== undefined && !slot.readonly) {
      slot.u8[this.gpa + offset - slot.base] = value;
      this.#memory.stored(this.gpa + offset, 1);
      return true;
    }
    if (slot?.readonly || !this.#memory.backed(this.gpa + offset, 1)) return false;
    this.#memory.setByte(this.gpa + offset, value);
    this.#memory.stored(this.gpa + offset, 1);
    return true;
  }

  #current(): Slot | undefined {
    if (this.#generation !== this.#memory.generation) this.#lookUp();
    return this.#slot;
  }

  #lookUp(): void {
    this.#generation = this.#memory.generation;
    this.#slot = this.#memory.find(this.gpa, this.length);
  }
}
