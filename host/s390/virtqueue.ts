/**
 * A virtio device that takes what it is given: a host thread for each queue, which a doorbell or user space wakes.
 *
 * @module
 */

import { type SplitRing, splitRing } from "../../abi/mod.ts";
import { Thread } from "../core/mod.ts";
import type { OrderedMemory } from "../arch/mod.ts";
import type { S390Vm } from "./vm.ts";

/** A queue, as the driver has set it up (CCW_CMD_SET_VQ). */
export interface SinkQueueOptions {
  /** Entries. */
  readonly size: number;
  /** Where its ring is. */
  readonly ring: number;
  /** Cycles that the device takes for a buffer; 1000 by default. */
  readonly cyclesPerBuffer?: number;
}

/** Takes buffers off a queue, and says so in its ring. */
export class SinkQueue extends Thread {
  /** Buffers taken. */
  taken = 0;
  /** Their bytes. */
  bytes = 0;
  /** How often it was notified. */
  notified = 0;
  readonly #ring: SplitRing;
  readonly #words: OrderedMemory;
  readonly #cycles: number;
  #seen = 0;

  /** A queue of a device of `vm`. */
  constructor(vm: S390Vm, name: string, { size, ring, cyclesPerBuffer = 1000 }: SinkQueueOptions) {
    super(vm.engine, name);
    this.#ring = splitRing(ring, size);
    this.#words = vm.words;
    this.#cycles = cyclesPerBuffer;
  }

  /** It was notified. */
  notify(): void {
    this.notified++;
    if (!this.queued) this.engine.wake(this, this.engine.now + this.#cycles);
  }

  /** Takes one buffer; rests where there is none. */
  override step(): void {
    const ring = this.#ring;
    if (this.#seen === this.#half(ring.availIdx)) {
      this.engine.park(this);
      return;
    }
    const slot = this.#seen % ring.size;
    const index = this.#half(ring.availRing(slot)) % ring.size;
    const length = this.#little(ring.descriptor(index) + 8, 4);
    this.#setLittle(ring.usedRing(slot), 4, index);
    this.#setLittle(ring.usedRing(slot) + 4, 4, 0);
    this.#seen = (this.#seen + 1) & 0xffff;
    this.#setLittle(ring.usedIdx, 2, this.#seen);
    this.taken++;
    this.bytes += length;
    this.charge(this.#cycles);
  }

  #half(address: number): number {
    return this.#little(address, 2);
  }

  #little(address: number, bytes: number): number {
    const found = this.#words.bytes(address, bytes);
    if (found === undefined) {
      throw new RangeError(`Cannot read a ring at 0x${address.toString(16)}: no memory`);
    }
    return found.reduceRight((value, byte) => 0x100 * value + byte, 0);
  }

  #setLittle(address: number, bytes: number, value: number): void {
    // Guest memory's own words are little-endian.
    this.#words.memory.write(address, bytes, BigInt(value));
  }
}
