/**
 * Small arrays side by side.
 *
 * @module
 */

/** Bytes that arrays share. */
const CHUNK = 0x1_0000;
/** Bytes of a cache line, of which each array has some for itself. */
const LINE = 64;

let chunk = new ArrayBuffer(0);
let used = 0;

/**
 * An array of `length` 32-bit words, all 0, whose buffer it shares with others that are made at about the same time. An
 * array that has its own lies wherever there was room for it: among hundreds of processors, the pages that their
 * registers are spread over would be more than a host's TLB holds. Throws `RangeError` where `length` is not a whole
 * number, or is more than memory has.
 */
export function words(length: number): Uint32Array<ArrayBuffer> {
  if (!Number.isInteger(length) || length < 0) {
    throw new RangeError(`Cannot make an array of ${length} words: allowed are whole numbers from 0 on`);
  }
  const bytes = LINE * Math.ceil(4 * length / LINE);
  if (used + bytes > chunk.byteLength) {
    chunk = new ArrayBuffer(Math.max(CHUNK, bytes));
    used = 0;
  }
  const array = new Uint32Array(chunk, used, length);
  used += bytes;
  return array;
}
