/**
 * A memory slot: a range of guest-physical addresses backed by bytes (KVM_SET_USER_MEMORY_REGION).
 *
 * @module
 */

import { type Gpa, hex, PHYSICAL_ADDRESS_LIMIT } from "../../abi/mod.ts";

/** Bytes of a page. */
export const PAGE_SIZE = 4096;
/** The most bytes that one slot may have. */
export const SLOT_SIZE_LIMIT: number = 4 * 2 ** 30;
/** The most slots that one machine may have. */
export const SLOT_LIMIT = 512;

/** How a slot is made. */
export interface SlotOptions {
  /** First address, a multiple of 4096. */
  readonly base: Gpa | number;
  /** Bytes, a multiple of 4096. */
  readonly size: number;
  /** Guest writes leave to user space as MMIO (KVM_MEM_READONLY). */
  readonly readonly?: boolean;
  /** The guest's own page tables map it read-only: a guest write raises #PF while CR0.WP is set. */
  readonly guestReadonly?: boolean;
}

/** A range of guest memory and its bytes. */
export class Slot {
  /** First address. */
  declare readonly base: number;
  /** Bytes. */
  declare readonly size: number;
  /** One past the last address. */
  declare readonly end: number;
  /** KVM_MEM_READONLY. */
  declare readonly readonly: boolean;
  /** Mapped read-only by the guest itself. */
  declare readonly guestReadonly: boolean;
  /** Where the slot begins in the host's physical memory; its own base unless it is placed there. */
  declare host: number;
  /** The bytes. */
  declare readonly u8: Uint8Array;
  /** The bytes as aligned little-endian words. */
  declare readonly u32: Uint32Array;
  /** The bytes for accesses of any alignment. */
  declare readonly view: DataView;

  /** Backs a range. Memory that is never touched costs nothing. Throws `RangeError` for a range that cannot be. */
  constructor(options: SlotOptions) {
    const { base, size } = options;
    if (!Number.isInteger(base) || base < 0 || base % PAGE_SIZE !== 0 || base >= PHYSICAL_ADDRESS_LIMIT) {
      throw new RangeError(
        `Cannot create a memory slot at ${base}: its base must be a multiple of ${PAGE_SIZE} below 2^52`,
      );
    }
    if (base + size > PHYSICAL_ADDRESS_LIMIT) {
      throw new RangeError(
        `Cannot create a memory slot of ${size} bytes at ${hex(base)}: it ends above 2^52`,
      );
    }
    if (!Number.isInteger(size) || size <= 0 || size % PAGE_SIZE !== 0 || size > SLOT_SIZE_LIMIT) {
      throw new RangeError(
        `Cannot create a memory slot of ${size} bytes: allowed are multiples of ${PAGE_SIZE} up to ${SLOT_SIZE_LIMIT}`,
      );
    }
    this.base = base;
    this.size = size;
    this.end = base + size;
    this.host = base;
    this.readonly = options.readonly ?? false;
    this.guestReadonly = options.guestReadonly ?? false;
    const buffer = new ArrayBuffer(size);
    this.u8 = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.view = new DataView(buffer);
  }

  /** `[base, end)`, for messages. */
  toString(): string {
    return `[${hex(this.base)}, ${hex(this.end)})`;
  }
}
