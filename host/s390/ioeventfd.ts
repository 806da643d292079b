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
  /** Bytes of a write that rings it; 0: any. 8, a notification's, by default. */
  readonly length?: number;
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
  readonly length: number;
  /** The value that rings it; undefined: any does. */
  readonly datamatch: bigint | undefined;
  /** How often it rang. */
  rung = 0;
  readonly #signal: () => void;

  /** {@linkcode IoBusDevice.ioeventfd}. */
  readonly ioeventfd = true;

  /** A doorbell that is on no bus yet: {@linkcode assignIoEventFd}. */
  constructor({ subchannel, queue, length = LENGTH, signal = () => {} }: CcwIoEventFdOptions) {
    this.address = subchannel;
    this.length = length;
    this.datamatch = queue === undefined ? undefined : BigInt(queue);
    this.#signal = signal;
  }

  /** Rings, at a write of its own length and value (ioeventfd_in_range). */
  write(address: number, length: number, value: bigint): boolean {
    if (address !== this.address) return false;
    if (this.length !== 0 && length !== this.length) return false;
    if (this.datamatch !== undefined && value !== this.datamatch) return false;
    this.rung++;
    this.#signal();
    return true;
  }
}

/**
 * Puts a doorbell on the bus (kvm_assign_ioeventfd). Throws `RangeError` for a value without a length (EINVAL), where one is
 * there that the same write rings (EEXIST), and for what {@linkcode IoBus.register} refuses.
 */
export function assignIoEventFd(bus: IoBus, doorbell: CcwIoEventFd): void {
  const { address, length, datamatch } = doorbell;
  const which = `${hex(address)}, queue ${datamatch ?? "any"}`;
  if (length === 0 && datamatch !== undefined) {
    throw new RangeError(`Cannot assign an ioeventfd to ${which}: without a length it takes any queue`);
  }
  if (bus.devices.some((other) => other instanceof CcwIoEventFd && collide(other, doorbell))) {
    throw new RangeError(`Cannot assign an ioeventfd to ${which}: it has one`);
  }
  bus.register(doorbell);
}

/** Whether one write rings both (ioeventfd_check_collision). */
function collide(one: CcwIoEventFd, other: CcwIoEventFd): boolean {
  if (one.address !== other.address) return false;
  if (one.length === 0 || other.length === 0) return true;
  return one.length === other.length &&
    (one.datamatch === undefined || other.datamatch === undefined || one.datamatch === other.datamatch);
}
