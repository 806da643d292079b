/**
 * Guest-physical memory: slots, accesses to them, and watches on words that somebody spins on.
 *
 * The largest slot at address 0 is reached without a search: that is what instructions do all the time. Every other
 * access looks its slot up.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { hex } from "../../abi/mod.ts";
import type { PhysicalSpace } from "./physical_space.ts";
import { Slot, SLOT_LIMIT, type SlotOptions } from "./slot.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { HIGH, PHYSICAL_ADDRESS_LIMIT } = abi;

/** Somebody who waits for a store to a 32-bit word. */
export interface Watcher {
  /** The word's address. */
  readonly address: number;
  /** A store touched the word. It does not begin or end a watch. */
  stored(): void;
}

/** The memory of one virtual machine. Words are little-endian. */
export class GuestMemory {
  /** The slots, by address. */
  readonly slots: Slot[] = [];
  /** Counts changes to the slots: what was looked up before a change must be looked up again. */
  generation = 0;
  /** Words that are watched. */
  watched = 0;

  /** Bytes that the slot at address 0 has for direct access; 0 where there is none, or it is not plain memory. */
  flat = 0;
  /** The same in 32-bit words: a small integer. */
  flatWords = 0;
  /** That slot's bytes. */
  u8: Uint8Array = new Uint8Array(0);
  /** That slot's words. */
  u32: Uint32Array = new Uint32Array(0);

  readonly #watchers: Watcher[] = [];
  readonly #filter = new Uint16Array(FILTER);
  readonly #space: PhysicalSpace | undefined;

  /** Memory without slots. `space` is the host's physical memory that its slots take up. */
  constructor(space?: PhysicalSpace) {
    this.#space = space;
  }

  /** Adds a slot. Throws `RangeError` where it overlaps another, or there are too many. */
  addSlot(options: SlotOptions): Slot {
    if (this.slots.length >= SLOT_LIMIT) {
      throw new RangeError(`Cannot add a memory slot: there are ${SLOT_LIMIT} already, the most allowed`);
    }
    const { base, size } = options;
    const other = this.slots.find((s) => base < s.end && base + size > s.base);
    if (other !== undefined) {
      throw new RangeError(
        `Cannot add a memory slot at [${hex(base)}, ${hex(base + size)}): it overlaps ${other}`,
      );
    }
    const slot = new Slot(options);
    this.#space?.place(this, slot);
    this.slots.push(slot);
    this.slots.sort((a, b) => a.base - b.base);
    this.#changed();
    return slot;
  }

  /** Removes a slot: its addresses are not backed any more. */
  removeSlot(slot: Slot): void {
    const index = this.slots.indexOf(slot);
    if (index < 0) throw new RangeError(`Cannot remove memory slot ${slot}: it is not in use`);
    this.slots.splice(index, 1);
    this.#space?.remove(slot);
    this.#changed();
  }

  #changed(): void {
    this.generation++;
    const first = this.slots[0];
    const direct = first !== undefined && first.base === 0 && !first.readonly && !first.guestReadonly;
    this.flat = direct ? first.size : 0;
    this.flatWords = this.flat / 4;
    this.u8 = direct ? first.u8 : new Uint8Array(0);
    this.u32 = direct ? first.u32 : new Uint32Array(0);
  }

  /** The slot that backs all of `[address, address + bytes)`; undefined where none does. */
  find(address: number, bytes: number): Slot | undefined {
    for (const slot of this.slots) {
      if (address >= slot.base && address < slot.end) {
        return address + bytes <= slot.end ? slot : undefined;
      }
    }
    return undefined;
  }

  /** Whether every byte of a range is backed, by one slot or by several that touch. */
  backed(address: number, bytes: number): boolean {
    if (address >= PHYSICAL_ADDRESS_LIMIT) return false; // Where numbers have gaps, the loop would see nothing.
    for (let at = address; at < address + bytes;) {
      const slot = this.find(at, 1);
      if (slot === undefined) return false;
      at = slot.end;
    }
    return true;
  }

  /** Whether every byte of a range is backed and none of it is KVM_MEM_READONLY. */
  writable(address: number, bytes: number): boolean {
    if (address >= PHYSICAL_ADDRESS_LIMIT) return false;
    for (let at = address; at < address + bytes;) {
      const slot = this.find(at, 1);
      if (slot === undefined || slot.readonly) return false;
      at = slot.end;
    }
    return true;
  }

  /** Reads `bytes` bytes as one little-endian number (up to 8 bytes as a bigint). undefined where not backed. */
  read(address: number, bytes: number): bigint | undefined {
    if (!this.backed(address, bytes)) return undefined;
    let value = 0n;
    for (let i = bytes - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.byte(address + i));
    return value;
  }

  /** Writes the low `bytes` bytes of `value`. false where not writable: then nothing is written. */
  write(address: number, bytes: number, value: bigint): boolean {
    if (!this.writable(address, bytes)) return false;
    for (let i = 0; i < bytes; i++) this.setByte(address + i, Number((value >> BigInt(8 * i)) & 0xffn));
    this.stored(address, bytes);
    return true;
  }

  /** Copies bytes in. false where not backed: then nothing is written. */
  load(address: number, bytes: Readonly<Uint8Array>): boolean {
    if (!this.backed(address, bytes.length)) return false;
    for (let i = 0; i < bytes.length; i++) this.setByte(address + i, bytes[i]);
    this.stored(address, bytes.length);
    return true;
  }

  /** One byte. Throws `RangeError` where not backed. */
  byte(address: number): number {
    if (address < this.flat) return this.u8[address];
    const slot = this.#must(address, "read");
    return slot.u8[address - slot.base];
  }

  /** Sets one byte. Throws `RangeError` where not backed. Watchers are not told; see {@linkcode stored}. */
  setByte(address: number, value: number): void {
    if (address < this.flat) {
      this.u8[address] = value;
    } else {
      const slot = this.#must(address, "write");
      slot.u8[address - slot.base] = value;
    }
  }

  /** 32 bits of any alignment. Throws `RangeError` where not backed. */
  word(address: number): number {
    if ((address & 3) === 0 && address < this.flat) return this.u32[address >>> 2];
    const slot = this.find(address, 4);
    if (slot !== undefined) return slot.view.getUint32(address - slot.base, true);
    return (this.byte(address) | (this.byte(address + 1) << 8) | (this.byte(address + 2) << 16) |
      (this.byte(address + 3) << 24)) >>> 0;
  }

  /** Sets 32 bits of any alignment. Throws `RangeError` where not backed. Tells watchers. */
  setWord(address: number, value: number): void {
    for (let i = 0; i < 4; i++) this.setByte(address + i, (value >>> (8 * i)) & 0xff);
    if (this.watched !== 0) this.stored(address, 4);
  }

  /** 64 bits as a number. Throws `RangeError` where not backed, or at 2^53 and above. */
  quad(address: number): number {
    const value = this.word(address + 4) * HIGH + this.word(address);
    if (value > Number.MAX_SAFE_INTEGER) {
      throw new RangeError(`Cannot read 64 bits at ${hex(address)} as a number: they hold more than 2^53`);
    }
    return value;
  }

  #must(address: number, verb: string): Slot {
    const slot = this.find(address, 1);
    if (slot === undefined) {
      throw new RangeError(`Cannot ${verb} guest memory at ${hex(address)}: not backed`);
    }
    return slot;
  }

  /** Watches the 32-bit word at the watcher's address. */
  watch(watcher: Watcher): void {
    this.#watchers.push(watcher);
    this.#filter[filterOf(watcher.address)]++;
    this.#filter[filterOf(watcher.address + 3)]++;
    this.watched++;
  }

  /** Ends a watch. */
  unwatch(watcher: Watcher): void {
    const watchers = this.#watchers;
    const index = watchers.indexOf(watcher);
    const last = watchers.pop()!;
    if (index < watchers.length) watchers[index] = last;
    this.#filter[filterOf(watcher.address)]--;
    this.#filter[filterOf(watcher.address + 3)]--;
    this.watched--;
  }

  /** Tells the watchers of a range that a store happened there. They look for themselves what it changed. */
  stored(address: number, bytes: number): void {
    if (this.watched === 0) return;
    // Most stores are to lines that nobody watches.
    if (bytes <= 8 && this.#filter[filterOf(address)] + this.#filter[filterOf(address + bytes - 1)] === 0) {
      return;
    }
    const watchers = this.#watchers;
    for (let i = 0; i < watchers.length; i++) {
      const watcher = watchers[i];
      if (watcher.address < address + bytes && watcher.address + 4 > address) watcher.stored();
    }
  }
}

const FILTER = 4096;

/** Where the filter counts watches of an address's cache line. */
function filterOf(address: number): number {
  return (address >>> 6) & (FILTER - 1);
}
