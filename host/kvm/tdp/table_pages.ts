/**
 * The host's pages that page tables are made of. One that is freed is used again, the last one first, as the host's
 * allocator does: a translation that somebody remembers of the old table would be one of the new.
 *
 * @module
 */

import type { HostBlock, HostMemory } from "../../memory/mod.ts";

const BYTES = 4096;
const PAGES = new WeakMap<HostMemory, TablePages>();

/** The pages of one host. */
export class TablePages {
  readonly #memory: HostMemory;
  readonly #free: HostBlock[] = [];

  /** No pages yet. */
  private constructor(memory: HostMemory) {
    this.#memory = memory;
  }

  /** The same for all who ask with the same memory. */
  static of(memory: HostMemory): TablePages {
    let pages = PAGES.get(memory);
    if (pages === undefined) PAGES.set(memory, pages = new TablePages(memory));
    return pages;
  }

  /** A page of zeroes. */
  allocate(): HostBlock {
    return this.#free.pop() ?? this.#memory.allocate(BYTES, BYTES);
  }

  /** Nobody uses a page any more. */
  free(page: HostBlock): void {
    page.words.fill(0);
    this.#free.push(page);
  }
}
