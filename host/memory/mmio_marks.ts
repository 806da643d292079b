/**
 * The pages that KVM has marked as MMIO in its page tables: a later access needs no look at the memory slots.
 *
 * @module
 */

import type { GuestMemory } from "./guest_memory.ts";
import { PAGE_SIZE } from "./slot.ts";

/** The marks of one virtual machine; they go when its slots change. */
export class MmioMarks {
  readonly #memory: GuestMemory;
  #pages = new Set<number>();
  #generation = -1;

  /** No marks in the page tables of `memory`. */
  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Whether an address's page is marked. */
  has(address: number): boolean {
    return this.#generation === this.#memory.generation && this.#pages.has(Math.floor(address / PAGE_SIZE));
  }

  /** Marks an address's page, if no memory backs it. */
  add(address: number): void {
    if (this.#generation !== this.#memory.generation) {
      this.#generation = this.#memory.generation;
      this.#pages = new Set();
    }
    if (!this.#memory.backed(address, 1)) this.#pages.add(Math.floor(address / PAGE_SIZE));
  }
}
