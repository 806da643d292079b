/**
 * ioeventfds on the bus of virtio-ccw notifications (KVM_IOEVENTFD with KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY): a doorbell
 * for each queue, at the subchannel's word, that rings when the queue's number is written.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";
import type { IoBus, IoBusDevice } from "./io_bus.ts";

/** How a doorbell is made. */
export interface CcwIoEventFdOptions {
  /** The subchannel-identification word. */
  readonly subchannel: number;
  /** The queue: the value that rings it, all 64 bits of it; undefined: any does. */
  readonly queue?: number;
  /** Called when it rings. */
  readonly signal?: () => void;
}

/** Bytes of a notification. */
const LENGTH = 8;

/** A doorbell of one queue. */
export class CcwIoEventFd implements IoBusDevice {
  /** The subchannel's word. */
  readonly address: number;
  /** Bytes of what is written to it. */
  readonly length: number = LENGTH;
  /** The value that rings it; undefined: any does. */
  readonly datamatch: bigint | undefined;
  /** How often it rang. */
  rung = 0;
  readonly #signal: () => void;

  /** A doorbell that is on no bus yet: {@linkcode assignIoEventFd}. */
  constructor({ subchannel, queue, signal = () => {} }: CcwIoEventFdOptions) {
    this.address = subchannel;
    this.datamatch = queue === undefined ? undefined : BigInt(queue);
    this.#signal = signal;
  }

  /** Rings, at a write of its own length and value (ioeventfd_in_range). */
  write(address: number, length: number, value: bigint): boolean {
    if (address !== this.address || length !== this.length) return false;
    if (this.datamatch !== undefined && value !== this.datamatch) return false;
    this.rung++;
    this.#signal();
    return true;
  }
}

/** Puts a doorbell on the bus. Throws `RangeError` where one is there that the same write rings (EEXIST). */
export function assignIoEventFd(bus: IoBus, doorbell: CcwIoEventFd): void {
  const taken = bus.devices.some((other) =>
    other instanceof CcwIoEventFd && other.address === doorbell.address &&
    (other.datamatch === undefined || doorbell.datamatch === undefined ||
      other.datamatch === doorbell.datamatch)
  );
  if (taken) {
    throw new RangeError(
      `Cannot assign an ioeventfd to ${hex(doorbell.address)}, queue ${
        doorbell.datamatch ?? "any"
      }: it has one`,
    );
  }
  bus.register(doorbell);
}
