/**
 * The 256-bit vector registers of an APIC page: IRR, ISR and TMR. Vector v is bit v mod 32 of the register at
 * base + 16 * (v / 32).
 *
 * @module
 */

/** The registers of an APIC page as words: 256 of them, a register every fourth. */
export type ApicPage = Uint32Array;

function word(base: number, vector: number): number {
  return (base >>> 2) + ((vector >>> 5) << 2);
}

/** Whether a vector's bit is set. */
export function testVector(page: ApicPage, base: number, vector: number): boolean {
  return ((page[word(base, vector)] >>> (vector & 31)) & 1) !== 0;
}

/** Sets a vector's bit. */
export function setVector(page: ApicPage, base: number, vector: number): void {
  page[word(base, vector)] |= 1 << (vector & 31);
}

/** Clears a vector's bit. */
export function clearVector(page: ApicPage, base: number, vector: number): void {
  page[word(base, vector)] &= ~(1 << (vector & 31));
}

/** The highest vector whose bit is set, -1 for none. */
export function highestVector(page: ApicPage, base: number): number {
  const first = base >>> 2;
  // Mostly a bit or two are set: two looks find the half, and that there are none.
  const upper = page[first + 28] | page[first + 24] | page[first + 20] | page[first + 16];
  if (upper === 0 && (page[first + 12] | page[first + 8] | page[first + 4] | page[first]) === 0) return -1;
  for (let register = upper !== 0 ? 7 : 3; register >= 0; register--) {
    const bits = page[first + (register << 2)];
    if (bits !== 0) return (register << 5) + 31 - Math.clz32(bits);
  }
  return -1;
}

/** How many vectors' bits are set. */
export function countVectors(page: ApicPage, base: number): number {
  let count = 0;
  for (let vector = 0; vector < 256; vector++) if (testVector(page, base, vector)) count++;
  return count;
}
