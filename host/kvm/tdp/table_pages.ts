/**
 * The host's pages that page tables are made of. One that is freed is used again, the last one first, as the host's
 * allocator does: a translation that somebody remembers of the old table would be one of the new.
 *
 * @module
 */

import type { HostBlock, HostMemory } from "../../memory/mod.ts";
import { perOwner } from "../per_owner.ts";

const BYTES = 4096;

/** The pages of one host. */
export class TablePages {
  readonly #memory: HostMemory;
  readonly #free: HostBlock[] = [];

  /** No pages yet. */
  constructor(memory: HostMemory) {
    this.#memory = memory;
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

/** The pages of a memory: the same for all who ask. */
export const tablePages: (memory: HostMemory) => TablePages = perOwner((memory) => new TablePages(memory));
