/**
 * The host's physical addresses, as far as translations lead to them:
 *
 *     from 0x10_0000_0000   the host's own blocks, among them the tables of EPT and nested paging
 *     from 2^42             guests' memory: each slot in one piece, at a multiple of 1 GiB
 *
 * No address is used twice: what leads to a slot that is gone leads nowhere.
 *
 * @module
 */

import { hex, HIGH } from "../../abi/mod.ts";
import type { GuestMemory } from "./guest_memory.ts";
import type { HostMemory } from "./host_memory.ts";
import type { PageWindow } from "./page_window.ts";
import { PAGE_SIZE, type Slot } from "./slot.ts";

const FRAMES = 2 ** 42;
const UNIT = 2 ** 30;
/** One past the highest address: processors have 46 bits here. */
const END = 2 ** 46;
/** The same in units, in bits of an address's halves, and in words of a page. */
const UNIT_SHIFT = 30;
const FRAMES_UNIT = FRAMES / UNIT;
const END_HIGH = END / HIGH;
const PAGE_IN_UNIT = UNIT - PAGE_SIZE;
const WORDS = PAGE_SIZE / 4;

/** Guest memory at a place in the host's. */
export interface PlacedSlot {
  /** Whose it is. */
  readonly memory: GuestMemory;
  /** The slot. */
  readonly slot: Slot;
}

/** The host's physical memory. */
export class PhysicalSpace {
  readonly #own: HostMemory;
  /** By unit of 1 GiB. */
  readonly #units: (PlacedSlot | undefined)[] = [];
  #removed = 0;
  /** Where the last access was. */
  #last: PlacedSlot | undefined = undefined;

  /** A space in which no guest has memory. `own` is the host's. */
  constructor(own: HostMemory) {
    this.#own = own;
  }

  /** Gives a slot its place. Throws `RangeError` where none is left. */
  place(memory: GuestMemory, slot: Slot): void {
    const host = FRAMES + UNIT * this.#units.length;
    if (host + slot.size > END) {
      throw new RangeError(`Cannot place memory slot ${slot}: the host's physical addresses end at 2^46`);
    }
    slot.host = host;
    for (let unit = 0; unit * UNIT < slot.size; unit++) this.#units.push({ memory, slot });
  }

  /** A slot is gone: its addresses lead nowhere. */
  remove({ host, size }: Slot): void {
    const first = (host - FRAMES) / UNIT;
    for (let unit = first; (unit - first) * UNIT < size; unit++) this.#units[unit] = undefined;
    this.#last = undefined;
    this.#removed++;
  }

  /** The guest's memory at an address; undefined where there is none. */
  slotAt(address: number): PlacedSlot | undefined {
    const last = this.#last;
    if (last !== undefined && holds(last.slot, address)) return last;
    const placed = this.#units[Math.floor((address - FRAMES) / UNIT)];
    if (placed === undefined || !holds(placed.slot, address)) return undefined;
    return this.#last = placed;
  }

  /** Whether every byte of a range is there: it must not cross a page. */
  backed(address: number, bytes: number): boolean {
    if (address < FRAMES) return this.#page(address) !== undefined;
    const placed = this.slotAt(address);
    return placed !== undefined && address - placed.slot.host + bytes <= placed.slot.size;
  }

  /** An aligned 32-bit word. Throws `RangeError` where nothing is. */
  word(address: number): number {
    const placed = this.slotAt(address);
    if (placed !== undefined) return placed.slot.u32[(address - placed.slot.host) >>> 2];
    return this.#mustPage("read", address)[(address % PAGE_SIZE) >>> 2];
  }

  /** Sets an aligned 32-bit word. Throws `RangeError` where nothing is. */
  setWord(address: number, value: number): void {
    const placed = this.slotAt(address);
    if (placed === undefined) {
      this.#mustPage("write", address)[(address % PAGE_SIZE) >>> 2] = value;
      return;
    }
    const { memory, slot } = placed;
    slot.u32[(address - slot.host) >>> 2] = value;
    if (memory.watched !== 0) memory.stored(slot.base + address - slot.host, 4);
  }

  /** Sets two aligned words of a guest's memory, in one store. Throws `RangeError` where none is. */
  setQuad(address: number, low: number, high: number): void {
    const { memory, slot } = this.#mustSlot("write", address);
    const word = (address - slot.host) >>> 2;
    slot.u32[word] = low;
    slot.u32[word + 1] = high;
    if (memory.watched !== 0) memory.stored(slot.base + address - slot.host, 8);
  }

  /** Counts what has gone: what was found before must be looked for again. */
  get generation(): number {
    return this.#removed + this.#own.freed;
  }

  /** Finds the page of an address, given by bits 63:32 and 31:0, for a window. false where there is no such page. */
  find(window: PageWindow, high: number, low: number): boolean {
    const unit = ((high << 2) | (low >>> UNIT_SHIFT)) - FRAMES_UNIT;
    if (unit < 0) {
      const block = high >= 0 ? this.#own.findHalves(low >>> 0, high) : undefined;
      if (block === undefined || block.words.length < WORDS) return false;
      window.words = block.words;
      window.first = 0;
      window.memory = undefined;
      return true;
    }
    const placed = high < END_HIGH ? this.#units[unit] : undefined;
    if (placed === undefined) return false;
    const { memory, slot } = placed;
    // A slot has at most four units: the number of a word in it is a small integer.
    const before = unit - (slot.host / UNIT - FRAMES_UNIT);
    const first = (before << (UNIT_SHIFT - 2)) | ((low & PAGE_IN_UNIT) >>> 2);
    if (first >= slot.u32.length) return false;
    window.words = slot.u32;
    window.first = first;
    window.memory = memory;
    window.base = slot.base;
    return true;
  }

  /** A byte of a guest's memory. Throws `RangeError` where none is. */
  byte(address: number): number {
    const { slot } = this.#mustSlot("read", address);
    return slot.u8[address - slot.host];
  }

  /** Sets a byte of a guest's memory. Throws `RangeError` where none is. */
  setByte(address: number, value: number): void {
    const { memory, slot } = this.#mustSlot("write", address);
    slot.u8[address - slot.host] = value;
    if (memory.watched !== 0) memory.stored(slot.base + address - slot.host, 1);
  }

  #mustSlot(verb: string, address: number): PlacedSlot {
    const placed = this.slotAt(address);
    if (placed === undefined) throw nothingAt(verb, address);
    return placed;
  }

  /** A page of the host's own. */
  #page(address: number): Uint32Array | undefined {
    return this.#own.find(address - address % PAGE_SIZE)?.words;
  }

  #mustPage(verb: string, address: number): Uint32Array {
    const words = this.#page(address);
    if (words === undefined) throw nothingAt(verb, address);
    return words;
  }
}

function holds({ host, size }: Slot, address: number): boolean {
  return address >= host && address - host < size;
}

function nothingAt(verb: string, address: number): RangeError {
  return new RangeError(`Cannot ${verb} the host's memory at ${hex(address)}: nothing is there`);
}
