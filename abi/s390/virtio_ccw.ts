/**
 * virtio-ccw: how devices are named in notifications (asm/schid.h, asm/virtio-ccw.h).
 *
 *     31     24 23   20 19 18 17 16 15                0
 *     +--------+-------+--+-----+--+------------------+
 *     | cssid  |   0   | m| ssid| 1| subchannel number|
 *     +--------+-------+--+-----+--+------------------+
 *
 * @module
 */

import { hex } from "../bits.ts";

/** The subcode of DIAGNOSE 0x500 that notifies a queue. */
export const KVM_S390_VIRTIO_CCW_NOTIFY = 3;
/** The alignment of a legacy ring. */
export const KVM_VIRTIO_CCW_RING_ALIGN = 4096;
/** The most queues of a device that QEMU has. */
export const VIRTIO_QUEUE_MAX = 1024;
/** Feature bit: notifications tell how far the ring is filled. */
export const VIRTIO_F_NOTIFICATION_DATA = 38;

/** A subchannel's identification. */
export interface SubchannelId {
  /** The channel subsystem, 0 to 255; other than 0 only with {@linkcode SubchannelId.m}. */
  readonly cssid: number;
  /** Whether the channel subsystem is told. */
  readonly m: boolean;
  /** The subchannel set, 0 to 3. */
  readonly ssid: number;
  /** The subchannel's number, 0 to 0xffff. */
  readonly number: number;
}

/** The word of a subchannel. Throws `RangeError` for what has no place in it. */
export function encodeSubchannelId({ cssid = 0, m = false, ssid = 0, number }: Partial<SubchannelId> & {
  readonly number: number;
}): number {
  const word = (field(cssid, 0xff, "cssid") << 24) | (m ? 1 << 19 : 0) | (field(ssid, 3, "ssid") << 17) |
    (1 << 16) | field(number, 0xffff, "number");
  return word >>> 0;
}

function field(value: number, most: number, name: string): number {
  if (Number.isInteger(value) && value >= 0 && value <= most) return value;
  throw new RangeError(`Cannot encode a subchannel with ${name} ${value}: allowed are 0 to ${hex(most)}`);
}

/**
 * The subchannel of a word; undefined where the word names none: its bit 16 is 0, or it has a channel subsystem without
 * saying so (ioinst_disassemble_sch_ident, which does not look at bits 23:20).
 */
export function decodeSubchannelId(word: number): SubchannelId | undefined {
  if ((word & (1 << 16)) === 0) return undefined;
  const m = (word & (1 << 19)) !== 0;
  const cssid = word >>> 24;
  if (!m && cssid !== 0) return undefined;
  return { cssid, m, ssid: (word >>> 17) & 3, number: word & 0xffff };
}

/** A notification's parameter: the queue, and where the device has the feature, what the guest will fill next. */
export function encodeNotification(queue: number, next: number = 0): bigint {
  return (BigInt(next & 0xffff) << 16n) | BigInt(queue & 0xffff);
}
