/**
 * The posted-interrupt descriptor (SDM 3C 30.6, table 30-1): 64 bytes, of which the first 40 are used.
 *
 *     0-31   PIR   a bit for each vector that was posted
 *     32     ON    bit 0: a notification is outstanding
 *            SN    bit 1: notifications are suppressed
 *     34     NV    the vector of the notification
 *     36-39  NDST  the APIC ID of the CPU that it goes to
 *
 * Senders, the hardware of the target's CPU and KVM on any CPU use it at the same time. Each method here is one access,
 * atomic as the processor's is: what needs several of them is a generator, with a `yield` between any two.
 *
 * @module
 */

import type { Steps } from "../core/mod.ts";

/** The vector that tells a CPU in guest mode to look at its descriptor (POSTED_INTR_VECTOR). */
export const POSTED_INTR_VECTOR = 0xf2;
/** The vector that tells a CPU of the host to wake a vCPU that sleeps (POSTED_INTR_WAKEUP_VECTOR). */
export const POSTED_INTR_WAKEUP_VECTOR = 0xf1;

/** A descriptor's size, and its alignment. */
export const PI_DESCRIPTOR_BYTES = 64;
/** The PIR is read and exchanged in quadwords: so many. */
export const PIR_QUADWORDS = 4;

const CONTROL = 8;
const NDST = 9;
const ON = 1 << 0;
const SN = 1 << 1;
const NV_SHIFT = 16;

/** The quadword behind the PIR. */
export interface PiControl {
  /** Outstanding notification. */
  readonly on: boolean;
  /** Suppress notification. */
  readonly sn: boolean;
  /** Notification vector. */
  readonly nv: number;
  /** Notification destination. */
  readonly ndst: number;
}

/** A posted-interrupt descriptor in the host's memory. */
export class PiDescriptor {
  /** Its words. */
  declare readonly words: Uint32Array;

  /** The descriptor that is in these words. */
  constructor(words: Uint32Array) {
    this.words = words;
  }

  /** As KVM makes it: notifications go to the vCPU's CPU, and are suppressed until it first has one. */
  init(): void {
    this.words.fill(0);
    this.words[CONTROL] = SN | (POSTED_INTR_VECTOR << NV_SHIFT);
  }

  /** Outstanding notification. */
  get on(): boolean {
    return (this.words[CONTROL] & ON) !== 0;
  }

  /** Suppress notification. */
  get sn(): boolean {
    return (this.words[CONTROL] & SN) !== 0;
  }

  /** Notification vector. */
  get nv(): number {
    return (this.words[CONTROL] >>> NV_SHIFT) & 0xff;
  }

  /** Notification destination. */
  get ndst(): number {
    return this.words[NDST];
  }

  /** The whole control quadword. */
  get control(): PiControl {
    const { on, sn, nv, ndst } = this;
    return { on, sn, nv, ndst };
  }

  // The PIR.

  /** Whether a vector was posted. */
  posted(vector: number): boolean {
    return ((this.words[vector >>> 5] >>> (vector & 31)) & 1) !== 0;
  }

  /** Posts a vector. Whether it was posted before. */
  testAndSetPir(vector: number): boolean {
    const before = this.posted(vector);
    this.words[vector >>> 5] |= 1 << (vector & 31);
    return before;
  }

  /** The vector that was posted, where it is the only one; -1 otherwise. For those whom nobody sees in between. */
  onlyPosted(): number {
    const { words } = this;
    let only = -1;
    for (let word = 0; word < CONTROL; word++) {
      const bits = words[word] | 0;
      if (bits === 0) continue;
      if (only !== -1 || (bits & (bits - 1)) !== 0) return -1;
      only = (word << 5) + 31 - Math.clz32(bits);
    }
    return only;
  }

  /** Whether nothing is posted in one quadword of the PIR. */
  pirIsEmpty(quadword: number): boolean {
    return (this.words[2 * quadword] | this.words[2 * quadword + 1]) === 0;
  }

  /** Exchanges one quadword of the PIR with zero; what was there goes to the same place of `harvest`. */
  takePir(quadword: number, harvest: Uint32Array): void {
    harvest[2 * quadword] = this.takeWord(2 * quadword);
    harvest[2 * quadword + 1] = this.takeWord(2 * quadword + 1);
  }

  /** Half of that: for those who take all quadwords, and whom nobody sees in between. */
  takeWord(word: number): number {
    const posted = this.words[word];
    if (posted !== 0) this.words[word] = 0;
    return posted;
  }

  // ON and SN.

  /** Sets ON. Whether it was set before. */
  testAndSetOn(): boolean {
    const before = this.on;
    this.words[CONTROL] |= ON;
    return before;
  }

  /** Clears ON. */
  clearOn(): void {
    this.words[CONTROL] &= ~ON;
  }

  /** Hardware sets ON unless it is set, or notifications are suppressed. Whether it did: somebody is to be notified. */
  requestNotification(): boolean {
    if (this.on || this.sn) return false;
    this.words[CONTROL] |= ON;
    return true;
  }

  /** Sets SN. */
  setSn(): void {
    this.words[CONTROL] |= SN;
  }

  /** Clears SN. Whether it was set. */
  testAndClearSn(): boolean {
    const before = this.sn;
    this.words[CONTROL] &= ~SN;
    return before;
  }

  // Several accesses.

  /** Whether nothing is posted at all: the quadwords are read one after another. */
  *isEmpty(): Steps<boolean> {
    for (let quadword = 0; quadword < PIR_QUADWORDS; quadword++) {
      if (quadword > 0) yield;
      if (!this.pirIsEmpty(quadword)) return false;
    }
    return true;
  }

  /** Changes fields of the control quadword, all at once or not at all: a loop around CMPXCHG. Answers with the result. */
  *update(changes: Partial<PiControl>): Steps<PiControl> {
    for (;;) {
      const low = this.words[CONTROL];
      const high = this.words[NDST];
      const wanted = { ...this.control, ...changes };
      yield;
      if (this.words[CONTROL] !== low || this.words[NDST] !== high) continue;
      this.words[CONTROL] = (wanted.on ? ON : 0) | (wanted.sn ? SN : 0) | (wanted.nv << NV_SHIFT);
      this.words[NDST] = wanted.ndst;
      return wanted;
    }
  }
}
