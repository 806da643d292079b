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

/** A bus of devices. */
export class DeviceBus {
  readonly #name: string;
  readonly #devices: MmioDevice[] = [];

  /** An empty bus. */
  constructor(name: string) {
    this.#name = name;
  }

  /** Puts a device on the bus. Throws `RangeError` where it overlaps another. */
  add(device: MmioDevice): void {
    if (busIsFull(this.#devices)) {
      throw new RangeError(`Cannot add a device to the ${this.#name} bus: it holds ${BUS_DEVICE_LIMIT}`);
    }
    const end = device.base + device.length;
    const other = this.#devices.find((d) => device.base < d.base + d.length && end > d.base);
    if (other !== undefined) {
      throw new RangeError(
        `Cannot add a device at ${hex(device.base)} to the ${this.#name} bus: one at ${
          hex(other.base)
        } is in the way`,
      );
    }
    this.#devices.push(device);
  }

  #find(address: number, bytes: number): MmioDevice | undefined {
    return this.#devices.find((d) => address >= d.base && address + bytes <= d.base + d.length);
  }

  /** What a device answers; undefined where none does. */
  read(address: number, bytes: number): bigint | undefined {
    return this.#find(address, bytes)?.read(address, bytes);
  }

  /** Gives a write to a device. Whether one took it. */
  write(address: number, bytes: number, value: bigint): boolean {
    const device = this.#find(address, bytes);
    return device !== undefined && device.write(address, bytes, value) !== false;
  }
}
