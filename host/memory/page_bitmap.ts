/**
 * One bit a page of a memory slot, laid out as KVM's dirty bitmaps are: page n of the slot is bit n, little-endian, and
 * the length is rounded up to 64 pages (kvm_dirty_bitmap_bytes).
 *
 * @module
 */

import { PAGE_SIZE, type Slot } from "./slot.ts";

/** Pages of one unit: of the kernel's BITS_PER_LONG bits. */
export const PAGES_PER_UNIT = 64;

const PAGE_SHIFT = 12;

/** Bits for the pages of a slot. */
export class PageBitmap {
  /** Pages. */
  readonly pages: number;
  /** The bits, in 32-bit words: two a unit. Those behind the last page are 0. */
  readonly words: Uint32Array;

  /** Bits for `pages` pages, all 0 or all 1. */
  constructor(pages: number, set: boolean = false) {
    this.pages = pages;
    this.words = new Uint32Array(2 * Math.ceil(pages / PAGES_PER_UNIT));
    if (set) this.fill();
  }

  /** Whether page `n`'s bit is 1. */
  has(n: number): boolean {
    return (this.words[n >>> 5] & (1 << (n & 31))) !== 0;
  }

  /** Sets page `n`'s bit. Whether it was 0. */
  set(n: number): boolean {
    const was = this.words[n >>> 5];
    this.words[n >>> 5] = was | (1 << (n & 31));
    return (was & (1 << (n & 31))) === 0;
  }

  /** Clears page `n`'s bit. Whether it was 1. */
  clear(n: number): boolean {
    const was = this.words[n >>> 5];
    this.words[n >>> 5] = was & ~(1 << (n & 31));
    return (was & (1 << (n & 31))) !== 0;
  }

  /** Sets every page's bit. */
  fill(): void {
    const whole = this.pages >>> 5;
    this.words.fill(0xffff_ffff, 0, whole);
    if ((this.pages & 31) !== 0) this.words[whole] = (1 << (this.pages & 31)) - 1;
  }

  /** How many bits are 1. */
  count(): number {
    let count = 0;
    for (const word of this.words) {
      for (let rest = word; rest !== 0; rest &= rest - 1) count++;
    }
    return count;
  }
}

/** Pages of a slot. */
export function pagesOf(slot: Slot): number {
  return slot.size / PAGE_SIZE;
}

/** The number, within its slot, of the page that holds an address. */
export function pageIn(slot: Slot, address: number): number {
  return (address - slot.base) >>> PAGE_SHIFT;
}
