/**
 * The host's own memory, as far as hardware looks at it by physical address: posted-interrupt descriptors, the
 * PID-pointer table, AVIC's tables, the pages that control structures point to.
 *
 * @module
 */

import { hex } from "../../abi/mod.ts";

/** A piece of the host's memory. */
export interface HostBlock {
  /** Its physical address. */
  readonly address: number;
  /** Its bytes, as 32-bit words. */
  readonly words: Uint32Array;
}

/** Where the first block is: above what a guest's addresses could be taken for. */
const FIRST = 0x10_0000_0000;
const LINE = 64;

/** Memory of the host that hardware reaches by address. */
export class HostMemory {
  readonly #blocks = new Map<number, HostBlock>();
  #next = FIRST;

  /** A zeroed block of `bytes` bytes, aligned to `alignment`, a power of two. */
  allocate(bytes: number, alignment: number = LINE): HostBlock {
    const address = Math.ceil(this.#next / alignment) * alignment;
    return this.#place(address, new Uint32Array(bytes / 4));
  }

  /** Gives existing words an address: a page that software keeps as an array. */
  adopt(words: Uint32Array, alignment: number = LINE): HostBlock {
    return this.#place(Math.ceil(this.#next / alignment) * alignment, words);
  }

  /** Puts words at an address. */
  #place(address: number, words: Uint32Array): HostBlock {
    const block = { address, words };
    this.#blocks.set(address, block);
    this.#next = address + Math.max(LINE, words.byteLength);
    return block;
  }

  /** Frees a block: nobody may use its address any more. */
  free(block: HostBlock): void {
    this.#blocks.delete(block.address);
  }

  /** The block at an address; undefined where there is none, or none any more. */
  find(address: number): HostBlock | undefined {
    return this.#blocks.get(address);
  }

  /** What hardware finds at an address that a control structure names. Throws where no block begins there. */
  at(address: number): Uint32Array {
    const block = this.#blocks.get(address);
    if (block === undefined) {
      throw new Error(`Cannot reach the host's memory at ${hex(address)}: nothing is there`);
    }
    return block.words;
  }
}
