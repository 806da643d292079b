/**
 * The split ring of a virtio queue (virtio 1.2, 2.7): descriptors, what the driver offers, what the device has used. All
 * little-endian, whatever the guest is.
 *
 * @module
 */

/** Bytes of a descriptor: address, length, flags, next. */
export const VRING_DESC_SIZE = 16;
/** Bytes of a used element: descriptor, length written. */
export const VRING_USED_ELEM_SIZE = 8;

/** Where the parts of a ring are. */
export interface SplitRing {
  /** Entries: a power of two. */
  readonly size: number;
  /** The address of a descriptor. */
  descriptor(index: number): number;
  /** The address of the driver's index: two bytes. */
  readonly availIdx: number;
  /** The address of an entry of what it offers: two bytes. */
  availRing(slot: number): number;
  /** The address of the device's index: two bytes. */
  readonly usedIdx: number;
  /** The address of an entry of what it has used. */
  usedRing(slot: number): number;
  /** One past the last byte. */
  readonly end: number;
}

/**
 * A ring at an address, its parts one behind the other. Throws `RangeError` for a size that is no power of two up to 32768,
 * or an address that is no multiple of 16.
 */
export function splitRing(base: number, size: number): SplitRing {
  if (!Number.isInteger(size) || size < 1 || size > 32768 || (size & (size - 1)) !== 0) {
    throw new RangeError(`Cannot lay out a ring of ${size}: allowed are powers of two up to 32768`);
  }
  if (!Number.isSafeInteger(base) || base < 0 || base % 16 !== 0) {
    throw new RangeError(`Cannot lay out a ring at ${base}: allowed are multiples of 16`);
  }
  const avail = base + VRING_DESC_SIZE * size;
  // Flags and index come first, and one field of the event feature last; the used part is aligned to 4.
  const used = Math.ceil((avail + 4 + 2 * size + 2) / 4) * 4;
  return {
    size,
    descriptor: (index) => base + VRING_DESC_SIZE * index,
    availIdx: avail + 2,
    availRing: (slot) => avail + 4 + 2 * slot,
    usedIdx: used + 2,
    usedRing: (slot) => used + 4 + VRING_USED_ELEM_SIZE * slot,
    end: used + 4 + VRING_USED_ELEM_SIZE * size + 2,
  };
}
