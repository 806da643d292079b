/**
 * Which pages of guest memory are in the host's memory. One that is not needs I/O before anybody can use it: the fault
 * that an asynchronous page fault is about.
 *
 *     absent --bringIn--> reading --the store has read it--> present --evict--> absent
 *                            \----the store could not----> absent
 *
 * A slot that nothing was evicted from is present as a whole, and costs nothing. (On a real host, memory that was never
 * touched is not there either, but needs no I/O: here, it is present.)
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";
import type { GuestMemory } from "./guest_memory.ts";
import { PageBitmap, pageIn, pagesOf } from "./page_bitmap.ts";
import { PAGE_SIZE, type Slot } from "./slot.ts";

/** Where a page is. */
export type PageState =
  /** In the store: using it needs I/O. */
  | "absent"
  /** In the store, and on its way. */
  | "reading"
  /** In the host's memory. */
  | "present";

/** Where absent pages are: a disk. */
export interface PageStore {
  /**
   * Begins to read a page. `done` is called once, later and never from within, with whether that went well. Throws where
   * it cannot begin; then `done` is not called.
   */
  read(page: number, done: (ok: boolean) => void): void;
  /** When a read of a page that has begun will be over, and whether it will go well: for those who wait in place. */
  expect(page: number): PageExpectation;
}

/** What comes of a read. */
export interface PageExpectation {
  /** When it is over, in cycles. */
  readonly clock: number;
  /** Whether the page is there then. */
  readonly ok: boolean;
}

/** Told when a page has come; `false` where it could not be read, or its slot is gone. */
export type Arrival = (ok: boolean) => void;

interface SlotPages {
  /** Pages that are not in the host's memory. */
  readonly away: PageBitmap;
  /** Those of them that are on their way. */
  readonly reading: PageBitmap;
  /** Who waits for those, by page. */
  readonly waiting: Map<number, Arrival[]>;
}

/** The residency of one virtual machine's pages. */
export class Residency {
  /**
   * Counts evictions: whoever remembers where a page is in the host, or maps it for a guest, must look again after one.
   * A fault that found the page before and would map it now tries again (as with mmu_invalidate_seq).
   */
  generation = 0;
  /** Pages that are not present, in all slots: while there are none, nobody needs to ask. */
  away = 0;

  readonly #memory: GuestMemory;
  readonly #store: PageStore;
  readonly #slots = new Map<Slot, SlotPages>();
  #slotGeneration: number;

  /** Every page of `memory` is present; those that are evicted go to `store`. */
  constructor(memory: GuestMemory, store: PageStore) {
    this.#memory = memory;
    this.#store = store;
    this.#slotGeneration = memory.generation;
  }

  /** Where an address's page is. Throws `RangeError` where no slot backs it. */
  state(address: number): PageState {
    const slot = this.#must("tell the state of", address);
    const pages = this.#slots.get(slot);
    const page = pageIn(slot, address);
    if (pages === undefined || !pages.away.has(page)) return "present";
    return pages.reading.has(page) ? "reading" : "absent";
  }

  /** The first page of a range that is not present, by its address; -1 where all that is backed is. */
  firstAway(address: number, bytes: number): number {
    this.#forgetSlots();
    if (this.away === 0) return -1;
    const first = Math.floor(address / PAGE_SIZE) * PAGE_SIZE;
    for (let at = first; at < address + bytes; at += PAGE_SIZE) {
      const slot = this.#memory.find(at, 1);
      const pages = slot && this.#slots.get(slot);
      if (pages?.away.has(pageIn(slot!, at))) return at;
    }
    return -1;
  }

  /**
   * Takes an address's page out of the host's memory. `false` where it is not there, or on its way: a page under I/O is
   * locked. Throws `RangeError` where no slot backs it.
   */
  evict(address: number): boolean {
    const slot = this.#must("evict", address);
    if (!this.#pagesOf(slot).away.set(pageIn(slot, address))) return false;
    this.away++;
    this.generation++;
    return true;
  }

  /** Takes every page of a range of addresses out that can be taken. How many those are. */
  evictRange(address: number, bytes: number): number {
    let count = 0;
    const first = Math.floor(address / PAGE_SIZE) * PAGE_SIZE;
    for (let at = first; at < address + bytes; at += PAGE_SIZE) if (this.evict(at)) count++;
    return count;
  }

  /**
   * Nobody wants what an address's page held: where it is absent, it is present from now on without having been read.
   * Whether that was so; a page that is on its way comes. Throws `RangeError` where no slot backs the address.
   */
  forget(address: number): boolean {
    const slot = this.#must("forget", address);
    const pages = this.#slots.get(slot);
    const page = pageIn(slot, address);
    if (pages === undefined || pages.reading.has(page) || !pages.away.has(page)) return false;
    pages.away.clear(page);
    this.away--;
    return true;
  }

  /**
   * Brings an address's page in, or waits for it where it is on its way already: `arrived` is called once. Answers with
   * the state that the page was in; where it is present, `arrived` is not called. Throws `RangeError` where no slot backs
   * the address, and whatever the store throws: the page is absent as before then.
   */
  bringIn(address: number, arrived: Arrival): PageState {
    const state = this.state(address);
    if (state === "present") return state;
    const slot = this.#must("bring in", address);
    const pages = this.#pagesOf(slot);
    const page = pageIn(slot, address);
    if (state === "reading") {
      pages.waiting.get(page)!.push(arrived);
      return state;
    }
    this.#store.read(Math.floor(address / PAGE_SIZE), (ok) => this.#read(slot, page, ok));
    pages.reading.set(page);
    pages.waiting.set(page, [arrived]);
    return state;
  }

  /**
   * Brings an address's page in for somebody who cannot be called back: who comes at that time finds it there. Throws as
   * {@linkcode bringIn} does, and where the page is present.
   */
  expect(address: number): PageExpectation {
    if (this.bringIn(address, () => {}) === "present") {
      throw new RangeError(`Cannot wait for the page at ${hex(address)}: it is present`);
    }
    return this.#store.expect(Math.floor(address / PAGE_SIZE));
  }

  /** The store is done with a page. */
  #read(slot: Slot, page: number, ok: boolean): void {
    this.#forgetSlots();
    const pages = this.#slots.get(slot);
    if (pages === undefined) return; // The slot went, and those who waited were told.
    const waiting = pages.waiting.get(page)!;
    pages.waiting.delete(page);
    pages.reading.clear(page);
    if (ok) {
      pages.away.clear(page);
      this.away--;
    }
    for (const arrived of waiting) arrived(ok);
  }

  #pagesOf(slot: Slot): SlotPages {
    let pages = this.#slots.get(slot);
    if (pages === undefined) {
      const count = pagesOf(slot);
      pages = { away: new PageBitmap(count), reading: new PageBitmap(count), waiting: new Map() };
      this.#slots.set(slot, pages);
    }
    return pages;
  }

  /** Forgets slots that were removed; tells those who waited for their pages. */
  #forgetSlots(): void {
    if (this.#slotGeneration === this.#memory.generation) return;
    this.#slotGeneration = this.#memory.generation;
    const waiting: Arrival[] = [];
    for (const [slot, pages] of this.#slots) {
      if (this.#memory.slots.includes(slot)) continue;
      this.#slots.delete(slot);
      this.away -= pages.away.count();
      for (const some of pages.waiting.values()) waiting.push(...some);
    }
    for (const arrived of waiting) arrived(false);
  }

  #must(verb: string, address: number): Slot {
    this.#forgetSlots();
    const slot = this.#memory.find(address, 1);
    if (slot === undefined) {
      throw new RangeError(`Cannot ${verb} the page at ${hex(address)}: no memory slot backs it`);
    }
    return slot;
  }
}
