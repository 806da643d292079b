/**
 * The kernel's device buses: what serves port and memory-mapped accesses without leaving to user space.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";

/** A device in a range of addresses or ports. */
export interface MmioDevice {
  /** First address. */
  readonly base: number;
  /** Addresses. */
  readonly length: number;
  /** Whether it is an ioeventfd, of which a bus holds any number; false by default. */
  readonly ioeventfd?: boolean;
  /** Serves a read; undefined leaves it to user space. */
  read(address: number, bytes: number): bigint | undefined;
  /** Serves a write; `false` leaves it to user space. */
  write(address: number, bytes: number, value: bigint): boolean | void;
}

/** The most devices on a bus, ioeventfds aside: files limit those (NR_IOBUS_DEVS in include/linux/kvm_host.h). */
export const BUS_DEVICE_LIMIT = 1000;

/** Whether a bus with these devices takes no more, not even an ioeventfd (kvm_io_bus_register_dev). */
export function busIsFull(devices: readonly { readonly ioeventfd?: boolean }[]): boolean {
  return devices.filter(({ ioeventfd = false }) => !ioeventfd).length >= BUS_DEVICE_LIMIT;
}

/** A range of addresses. */
export interface IoRange {
  /** First address. */
  readonly address: number;
  /** Addresses; of a device, 0 stands for any. */
  readonly length: number;
}

/**
 * How a write's range stands to a device's: below it, above it, or within it (kvm_io_bus_cmp). The lengths count only where
 * the device has one.
 */
export function compareRanges(write: IoRange, device: IoRange): -1 | 0 | 1 {
  if (write.address < device.address) return -1;
  const [writeEnd, deviceEnd] = device.length === 0
    ? [write.address, device.address]
    : [write.address + write.length, device.address + device.length];
  return writeEnd > deviceEnd ? 1 : 0;
}

/** A bus of devices. */
export class DeviceBus {
  readonly #name: string;
  readonly #devices: MmioDevice[] = [];

  /** An empty bus. */
  constructor(name: string) {
    this.#name = name;
  }

  /**
   * Puts a device on the bus: in front of the first one at a higher range, as kvm_io_bus_register_dev does. Throws `RangeError`
   * where the bus is full, where it overlaps another device, and for an ioeventfd that the same writes ring as another
   * (ioeventfd_check_collision). Those may be where a device is, and of several widths at one address.
   */
  add(device: MmioDevice): void {
    if (busIsFull(this.#devices)) {
      throw new RangeError(`Cannot add a device to the ${this.#name} bus: it holds ${BUS_DEVICE_LIMIT}`);
    }
    const other = this.#devices.find((other) => excludes(other, device));
    if (other !== undefined) {
      throw new RangeError(
        `Cannot add a device at ${hex(device.base)} to the ${this.#name} bus: one at ${
          hex(other.base)
        } is in the way`,
      );
    }
    const place = this.#devices.findIndex((other) => compareRanges(rangeOf(other), rangeOf(device)) > 0);
    this.#devices.splice(place < 0 ? this.#devices.length : place, 0, device);
  }

  /** What the first device answers that does; undefined where none does. */
  read(address: number, bytes: number): bigint | undefined {
    for (const device of this.#devices) {
      const value = holds(device, address, bytes) ? device.read(address, bytes) : undefined;
      if (value !== undefined) return value;
    }
    return undefined;
  }

  /** Gives a write to the first device that takes it. Whether one did. */
  write(address: number, bytes: number, value: bigint): boolean {
    return this.#devices.some((device) =>
      holds(device, address, bytes) && device.write(address, bytes, value) !== false
    );
  }
}

function rangeOf({ base: address, length }: MmioDevice): IoRange {
  return { address, length };
}

function holds(device: MmioDevice, address: number, bytes: number): boolean {
  return compareRanges({ address, length: bytes }, rangeOf(device)) === 0;
}

/** Whether two cannot be on one bus. */
function excludes(one: MmioDevice, other: MmioDevice): boolean {
  if (one.ioeventfd && other.ioeventfd) return one.base === other.base && one.length === other.length;
  if (one.ioeventfd || other.ioeventfd) return false;
  return one.base < other.base + other.length && one.base + one.length > other.base;
}
