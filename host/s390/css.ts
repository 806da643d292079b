/**
 * The channel subsystem of QEMU's virtio-ccw devices, as far as notifications look at it (virtio_ccw_handle_notify in
 * hw/s390x), and the devices of the older s390-virtio transport.
 *
 * @module
 */

import { decodeSubchannelId, encodeSubchannelId, VIRTIO_QUEUE_MAX } from "../../abi/mod.ts";

/** The channel subsystem that virtual devices are in; guests that name none mean it. */
export const VIRTUAL_CSSID = 0xfe;

/** A virtio-ccw device. */
export interface CcwDevice {
  /** Its subchannel's number. */
  readonly number: number;
  /** Its subchannel set; 0 by default. */
  readonly ssid?: number;
  /** The sizes of its queues; one of size 0 is not there. */
  readonly queues: readonly number[];
  /** Whether its driver takes VIRTIO_F_NOTIFICATION_DATA. */
  readonly notificationData?: boolean;
  /** A queue was notified; with the feature, how far it is filled. */
  notified(queue: number, next: number | undefined): void;
  /** The subsystem is reset, and the device with it. */
  reset?(): void;
}

/** The word by which a guest names a device. */
export function subchannelOf({ number, ssid = 0 }: Pick<CcwDevice, "number" | "ssid">): number {
  return encodeSubchannelId({ ssid, number });
}

/** The subchannels. */
export class ChannelSubsystem {
  readonly #devices: CcwDevice[] = [];

  /** The devices. */
  get devices(): readonly CcwDevice[] {
    return this.#devices;
  }

  /** Adds a device. Throws `RangeError` where its subchannel is taken, or it has too many queues. */
  add(device: CcwDevice): void {
    if (device.queues.length > VIRTIO_QUEUE_MAX) {
      throw new RangeError(
        `Cannot add a device with ${device.queues.length} queues: allowed are up to ${VIRTIO_QUEUE_MAX}`,
      );
    }
    const word = subchannelOf(device);
    if (this.#devices.some((other) => subchannelOf(other) === word)) {
      throw new RangeError(`Cannot add a device at subchannel 0x${word.toString(16)}: it is taken`);
    }
    this.#devices.push(device);
  }

  /** Resets the devices (subsystem_reset). Their doorbells stay: no handshake is modelled that would bring them back. */
  reset(): void {
    for (const device of this.#devices) device.reset?.();
  }

  /** Notifies a queue. `false` where the word names no device, or the device has no such queue. */
  notify(word: number, data: bigint): boolean {
    const id = decodeSubchannelId(word);
    if (id === undefined) return false;
    const cssid = id.m ? id.cssid : VIRTUAL_CSSID;
    if (cssid !== VIRTUAL_CSSID) return false;
    const device = this.#devices.find(({ number, ssid = 0 }) => number === id.number && ssid === id.ssid);
    const queue = Number(data & 0xffffn);
    if (device === undefined || queue >= VIRTIO_QUEUE_MAX || !(device.queues[queue] > 0)) return false;
    device.notified(queue, device.notificationData ? Number((data >> 16n) & 0xffffn) : undefined);
    return true;
  }
}

/** The s390-virtio transport: devices and their queues by address, behind the end of memory. */
export interface LegacyTransport {
  /** Notifies the queue whose ring is at an address. Whether there is one. */
  notify(ring: bigint): boolean;
  /** Resets the device whose descriptor is at an address. Whether there is one. */
  reset(descriptor: bigint): boolean;
  /** Reads a device's status byte again. Whether there is one. */
  setStatus(descriptor: bigint): boolean;
}

/** No devices. */
export const NO_LEGACY_DEVICES: LegacyTransport = {
  notify: () => false,
  reset: () => false,
  setStatus: () => false,
};
