/**
 * An ioeventfd: a doorbell in the kernel. A guest write to it is signalled to somebody who waits, and costs no exit to
 * user space.
 *
 * @module
 */

import type { MmioDevice } from "./bus.ts";

/** A doorbell at an address or port. */
export class IoEventFd implements MmioDevice {
  /** First address or port. */
  readonly base: number;
  /** Addresses or ports. */
  readonly length: number;
  /** {@linkcode MmioDevice.ioeventfd}. */
  readonly ioeventfd = true;
  /** How often it was rung. */
  rung = 0;
  readonly #signal: (value: bigint) => void;

  /** A doorbell that calls `signal` with what was written. */
  constructor(base: number, length: number, signal: (value: bigint) => void = () => {}) {
    this.base = base;
    this.length = length;
    this.#signal = signal;
  }

  /** Reads are user space's. */
  read(): undefined {
    return undefined;
  }

  /** Rings, at a write of its own width to its own address; others are user space's (ioeventfd_in_range). */
  write(address: number, bytes: number, value: bigint): boolean {
    if (address !== this.base || bytes !== this.length) return false;
    this.rung++;
    this.#signal(value);
    return true;
  }
}
