/**
 * The bus of virtio-ccw notifications (KVM_VIRTIO_CCW_NOTIFY_BUS): devices in an array that is sorted by address. A caller
 * that knows a device's place there, its cookie, spares KVM the search (kvm_io_bus_write_cookie in virt/kvm/kvm_main.c).
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";
import { BUS_DEVICE_LIMIT, busIsFull, compareRanges, type IoRange } from "../devices/bus.ts";

/** A device, or a doorbell, on the bus. */
export interface IoBusDevice {
  /** First address. */
  readonly address: number;
  /** Addresses; 0: this one alone, whatever a write's length. */
  readonly length: number;
  /** Whether it is a doorbell, of which a bus holds any number; false by default. */
  readonly ioeventfd?: boolean;
  /** Whether it takes a write. */
  write(address: number, length: number, value: bigint): boolean;
}

/** What the bus has done, all told: each step is a line of the kernel's that was executed. */
export interface IoBusCounters {
  /** Writes that came. */
  writes: number;
  /** Those that the device at their cookie took. */
  cookieHits: number;
  /** Those that had to be searched for. */
  searches: number;
  /** Ranges that were compared with a write's. */
  comparisons: number;
  /** Devices that were asked to take a write. */
  offers: number;
}

/** The largest address plus one: notifications have 32 bits. */
const ADDRESS_LIMIT = 2 ** 32;

/** A bus. */
export class IoBus {
  /** What it has done. */
  readonly counters: IoBusCounters = { writes: 0, cookieHits: 0, searches: 0, comparisons: 0, offers: 0 };
  readonly #devices: IoBusDevice[] = [];

  /** The devices, in the order in which they are searched: a device's cookie is its place here. */
  get devices(): readonly IoBusDevice[] {
    return this.#devices;
  }

  /**
   * Puts a device on the bus: in front of the first one with a higher range, behind those with the same one
   * (kvm_io_bus_register_dev). Cookies of those behind it become wrong. Throws `RangeError` for an address that cannot be,
   * and where the bus is full (ENOSPC).
   */
  register(device: IoBusDevice): void {
    const { address, length } = device;
    if (!Number.isInteger(address) || address < 0 || address >= ADDRESS_LIMIT) {
      throw new RangeError(
        `Cannot register a device at ${address}: allowed are 0 to ${hex(ADDRESS_LIMIT - 1)}`,
      );
    }
    if (![0, 1, 2, 4, 8].includes(length)) {
      throw new RangeError(`Cannot register a device of ${length} bytes: allowed are 0, 1, 2, 4, 8`);
    }
    if (busIsFull(this.#devices)) {
      throw new RangeError(`Cannot register a device at ${hex(address)}: the bus holds ${BUS_DEVICE_LIMIT}`);
    }
    const place = this.#devices.findIndex((other) => compareRanges(other, device) > 0);
    this.#devices.splice(place < 0 ? this.#devices.length : place, 0, device);
  }

  /** Takes a device off the bus. Throws `RangeError` where it is not there. */
  unregister(device: IoBusDevice): void {
    const place = this.#devices.indexOf(device);
    if (place < 0) {
      throw new RangeError(`Cannot unregister a device at ${hex(device.address)}: it is not on the bus`);
    }
    this.#devices.splice(place, 1);
  }

  /**
   * A write of `length` bytes. `cookie` is where its device may be: a hint that is looked at and not believed. Answers with
   * the place of the device that took it; undefined where none did (-EOPNOTSUPP).
   */
  write(address: number, length: number, value: bigint, cookie: bigint): number | undefined {
    const { counters } = this;
    const devices = this.#devices;
    const range = { address, length };
    counters.writes++;
    if (cookie >= 0n && cookie < BigInt(devices.length)) {
      const place = Number(cookie);
      if (this.#compare(range, place) === 0 && this.#offer(place, range, value)) {
        counters.cookieHits++;
        return place;
      }
    }
    counters.searches++;
    for (let place = this.#first(range); place >= 0 && place < devices.length; place++) {
      if (this.#compare(range, place) !== 0) break;
      if (this.#offer(place, range, value)) return place;
    }
    return undefined;
  }

  /** The first device with a range; -1 where there is none: a binary search, and back from where it ended. */
  #first(range: IoRange): number {
    let base = 0;
    for (let count = this.#devices.length; count > 0; count >>= 1) {
      const pivot = base + (count >> 1);
      const order = this.#compare(range, pivot);
      if (order === 0) return this.#backFrom(pivot, range);
      if (order > 0) {
        base = pivot + 1;
        count--;
      }
    }
    return -1;
  }

  #backFrom(place: number, range: IoRange): number {
    let first = place;
    while (first > 0 && this.#compare(range, first - 1) === 0) first--;
    return first;
  }

  #compare(range: IoRange, place: number): number {
    this.counters.comparisons++;
    return compareRanges(range, this.#devices[place]);
  }

  #offer(place: number, { address, length }: IoRange, value: bigint): boolean {
    this.counters.offers++;
    return this.#devices[place].write(address, length, value);
  }
}
