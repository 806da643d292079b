/**
 * Chains of a TLB array's valid slots by VPID and PCID, so that a change of address spaces finds the entries that it
 * drops without a look at all the others.
 *
 * @module
 */

/** Chains of a VPID's lowest bits, and of a PCID's: 16 each. Kernels use few PCIDs on a processor, Linux six. */
const CHAINS = 16;
const CHAIN_MASK = CHAINS - 1;
const NONE = -1;

/** Bits of a context that are the PCID; the VPID is above. */
export const PCID_BITS = 12;

/** Slots by context: each is in one chain while it is valid. */
export class ContextChains {
  readonly #heads = new Int32Array(CHAINS * CHAINS).fill(NONE);
  readonly #after: Int32Array;
  readonly #before: Int32Array;

  /** Chains of `size` slots, none of which is valid. */
  constructor(size: number) {
    this.#after = new Int32Array(size);
    this.#before = new Int32Array(size);
  }

  /** A slot became valid. */
  add(slot: number, context: number): void {
    const chain = chainOf(context);
    const head = this.#heads[chain];
    this.#after[slot] = head;
    this.#before[slot] = NONE;
    if (head !== NONE) this.#before[head] = slot;
    this.#heads[chain] = slot;
  }

  /** A slot is valid no more. */
  remove(slot: number, context: number): void {
    const after = this.#after[slot];
    const before = this.#before[slot];
    if (after !== NONE) this.#before[after] = before;
    if (before !== NONE) this.#after[before] = after;
    else this.#heads[chainOf(context)] = after;
  }

  /**
   * Visits all slots of a VPID and a PCID, and some of others: who is visited must be looked at. Negative stands for any.
   * A visit may remove the slot that it is about.
   */
  visit(vpid: number, pcid: number, visit: (slot: number) => void): void {
    for (let v = vpid < 0 ? 0 : vpid & CHAIN_MASK; v < CHAINS; v = vpid < 0 ? v + 1 : CHAINS) {
      for (let p = pcid < 0 ? 0 : pcid & CHAIN_MASK; p < CHAINS; p = pcid < 0 ? p + 1 : CHAINS) {
        for (let slot = this.#heads[v * CHAINS + p], after = NONE; slot !== NONE; slot = after) {
          after = this.#after[slot];
          visit(slot);
        }
      }
    }
  }
}

function chainOf(context: number): number {
  return ((context >>> PCID_BITS) & CHAIN_MASK) * CHAINS + (context & CHAIN_MASK);
}
