/**
 * The host's own memory, as far as hardware looks at it by physical address: posted-interrupt descriptors, the
 * PID-pointer table, AVIC's tables, the pages that control structures point to.
 *
 * @module
 */

import { hex, HIGH } from "../../abi/mod.ts";

/** A piece of the host's memory. */
export interface HostBlock {
  /** Its physical address. */
  readonly address: number;
  /** Its bytes, as 32-bit words. */
  readonly words: Uint32Array;
}

/** Where the first block is: above what a guest's addresses could be taken for. */
const FIRST = 0x10_0000_0000;
const FIRST_HIGH = FIRST / HIGH;
const LINE = 64;
const LINE_SHIFT = 6;
/** Upper halves, from the first one's on, whose lines have small integers as numbers. */
const LINES_HIGH = 16;

/** Memory of the host that hardware reaches by address. */
export class HostMemory {
  /** By the line that a block begins with: addresses are too big for small integers, and slow as a map's keys. */
  readonly #lines: (HostBlock | undefined)[] = [];
  #next = FIRST;
  /** Blocks that were freed. */
  freed = 0;

  /** A zeroed block of `bytes` bytes, aligned to `alignment`, a power of two, and a line at least. */
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
    this.#next = address + Math.ceil(words.byteLength / LINE) * LINE;
    while (this.#lines.length <= lineOf(address)) this.#lines.push(undefined);
    this.#lines[lineOf(address)] = block;
    return block;
  }

  /** Frees a block: nobody may use its address any more. */
  free(block: HostBlock): void {
    this.#lines[lineOf(block.address)] = undefined;
    this.freed++;
  }

  /** The block at an address; undefined where there is none, or none any more. */
  find(address: number): HostBlock | undefined {
    const block = this.findHalves(address >>> 0, Math.floor(address / HIGH));
    return block !== undefined && block.address === address ? block : undefined;
  }

  /** The same, of an address in halves, as an entry of a table has it: small integers. The bits within a line do not count. */
  findHalves(low: number, high: number): HostBlock | undefined {
    const above = high - FIRST_HIGH;
    const line = (above << (32 - LINE_SHIFT)) | (low >>> LINE_SHIFT);
    return above >>> 0 < LINES_HIGH && line < this.#lines.length ? this.#lines[line] : undefined;
  }

  /** What hardware finds at an address that a control structure names. Throws where no block begins there. */
  at(address: number): Uint32Array {
    const block = this.find(address);
    if (block === undefined) throw nothingAt(address);
    return block.words;
  }
}

/** The number of the line that a block's address is in. */
function lineOf(address: number): number {
  return (address - FIRST) >>> LINE_SHIFT;
}

function nothingAt(address: number): Error {
  return new Error(`Cannot reach the host's memory at ${hex(address)}: nothing is there`);
}
