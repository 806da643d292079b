/**
 * A virtio queue over the channel subsystem (drivers/s390/virtio/virtio_ccw.c): a split ring in guest memory, little-endian
 * as virtio 1 has it on every architecture, and notifications by DIAGNOSE 0x500. What the host answers is the queue's place
 * on its bus, which the driver keeps and passes along the next time.
 *
 * @module
 */

import {
  encodeNotification,
  type S390Cpu,
  type S390Guest,
  type SplitRing,
  splitRing,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { s390Hypercall } from "./hypercall.ts";

/** A queue. */
export interface CcwQueueOptions {
  /** The device's subchannel-identification word. */
  readonly subchannel: number;
  /** Its number. */
  readonly index: number;
  /** Entries of the ring: a power of two. */
  readonly size: number;
  /** Where the ring is. */
  readonly ring: number;
  /** 8 bytes for the cookie. */
  readonly cookie: number;
  /** Whether notifications tell how far the ring is filled (VIRTIO_F_NOTIFICATION_DATA). */
  readonly notificationData?: boolean;
  /** Whether the cookie is passed along; true by default. Without it, 0 is. */
  readonly useCookie?: boolean;
}

/** The driver's half of a queue. Its state is in guest memory: the ring, and the cookie. */
export class CcwQueue {
  /** Where the ring's parts are. */
  readonly ring: SplitRing;
  readonly #options: CcwQueueOptions;

  /** A queue whose ring the host has been told of. */
  constructor(options: CcwQueueOptions) {
    this.ring = splitRing(options.ring, options.size);
    this.#options = options;
  }

  /** Offers a buffer to the device. */
  *add(cpu: S390Cpu, address: number, length: number): S390Guest {
    const { ring } = this;
    const { size } = this.#options;
    yield cpu.loadReversed16(ring.availIdx);
    const next = cpu.number & 0xffff;
    const slot = next % size;
    const descriptor = ring.descriptor(slot);
    yield cpu.storeReversed64(descriptor, address);
    yield cpu.storeReversed32(descriptor + 8, length);
    yield cpu.storeReversed16(descriptor + 12, 0);
    yield cpu.storeReversed16(ring.availRing(slot), slot);
    yield cpu.storeReversed16(ring.availIdx, next + 1);
  }

  /** Notifies the device (virtio_ccw_kvm_notify). `false` where the host answers with an error. */
  *notify(cpu: S390Cpu): GuestValue<boolean> {
    const { subchannel, index, notificationData = false, useCookie = true, cookie } = this.#options;
    let queue = BigInt(index);
    if (notificationData) {
      yield cpu.loadReversed16(this.ring.availIdx);
      queue = encodeNotification(index, cpu.number);
    }
    yield cpu.load64(cookie);
    const hint = useCookie ? cpu.value : 0n;
    const answer = yield* s390Hypercall(cpu, "KVM_S390_VIRTIO_CCW_NOTIFY", {
      subchannel,
      queue,
      cookie: hint,
    });
    yield cpu.store64(cookie, answer);
    return answer >= 0n;
  }

  /** How many buffers the device has used, modulo 2^16. */
  *used(cpu: S390Cpu): GuestValue<number> {
    yield cpu.loadReversed16(this.ring.usedIdx);
    return cpu.number & 0xffff;
  }
}
