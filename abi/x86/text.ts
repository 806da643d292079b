/**
 * A guest's text: generator functions with addresses in guest memory. What a linker does for a kernel image, `Text`
 * does here: IDT gates, SIPI vectors and instruction pointers hold the addresses it gives, and a processor that
 * fetches from one finds the function again.
 *
 * @module
 */

import type { Gva } from "../brand.ts";
import { hex } from "../bits.ts";
import { BLOCK, BLOCK_BYTES } from "./instructions.ts";
import type { X86Cpu } from "./cpu.ts";

/** A running guest function: each `yield` is one instruction, given by its opcode number. */
export type Guest = Generator<number, void, void>;

/** A guest function as written: it gets the processor's handle and yields what that builds. */
export type GuestFunction = (cpu: X86Cpu) => Guest;

/** A function in text. */
export interface TextBlock {
  /** The address of its first byte. */
  readonly address: Gva;
  /** Its name, for traces and errors. */
  readonly name: string;
  /** The code. */
  readonly code: GuestFunction;
}

/** Where a function is when paging maps it elsewhere than the loader puts it. */
export interface TextPlace {
  /** The address at which it runs: a linker's virtual memory address. */
  readonly address: Gva;
  /** The physical address that its bytes are written to: a linker's load memory address. */
  readonly load: number;
}

/** What a processor needs of text: the function whose block an address lies in. */
export interface CodeStore {
  /** The block that holds `address`; undefined where there is no text. */
  blockAt(address: number): TextBlock | undefined;
}

/** One past the last address that text may have: instruction pointers are small integers to V8 below it. */
export const TEXT_LIMIT: number = 2 ** 31;
const LAST = 0x7fff_ffff;

/** Where functions are placed when nothing else is said: 1 MiB, where a 64-bit kernel is loaded. */
export const TEXT_BASE: Gva = 0x10_0000 as Gva;

/**
 * The functions of one guest image and their addresses.
 *
 * @example A function has an address
 * ```ts
 * import { Text, type X86Cpu } from "@exitless/exitless/abi";
 * import { assertEquals } from "@std/assert";
 *
 * const text = new Text();
 * const address = text.add(function* idle(cpu: X86Cpu) {
 *   for (;;) yield cpu.hlt();
 * });
 * assertEquals(text.blockAt(address)?.name, "idle");
 * ```
 */
export class Text implements CodeStore {
  #next: number;
  readonly #order: TextBlock[] = [];
  /** Load addresses, where they are others than those at which functions run. */
  readonly #loads = new Map<TextBlock, number>();
  /** By block number: one more than the function's place in {@linkcode blocks}, 0 where there is none. */
  #places = new Int32Array(2 * TEXT_BASE / BLOCK);

  /** Text whose functions stand one behind the other from `base`, a multiple of 256. */
  constructor(base: Gva = TEXT_BASE) {
    this.#next = aligned(base);
  }

  /** Appends a function and gives its address. */
  add(code: GuestFunction, name: string = code.name): Gva {
    const address = aligned(this.#next) as Gva;
    this.#place(address, code, name);
    this.#next += BLOCK;
    return address;
  }

  /**
   * Places a function at an address of its own, a multiple of 256 (a SIPI's target is a multiple of 4096 below
   * 1 MiB). Throws `RangeError` where the address is not aligned, or taken.
   */
  addAt(address: Gva, code: GuestFunction, name: string = code.name): Gva {
    this.#place(aligned(address) as Gva, code, name);
    return address;
  }

  /** The same for a function that paging maps at its address: its bytes are loaded at another one. */
  addMapped({ address, load }: TextPlace, code: GuestFunction, name: string = code.name): Gva {
    this.#place(aligned(address) as Gva, code, name);
    this.#loads.set(this.#order[this.#order.length - 1], load);
    return address;
  }

  /** The block that holds `address`; undefined where there is no text. */
  blockAt(address: number): TextBlock | undefined {
    const number = address >>> 8;
    const places = this.#places;
    if (number >= places.length || address > LAST) return undefined;
    const place = places[number];
    return place === 0 ? undefined : this.#order[place - 1];
  }

  /** Every function, in the order in which they were added. */
  get blocks(): readonly TextBlock[] {
    return this.#order;
  }

  /** Writes each block's bytes through `write`, at its load address: what a boot loader does with an image. */
  load(write: (address: number, bytes: Readonly<Uint8Array>) => void): void {
    for (const block of this.#order) write(this.#loads.get(block) ?? block.address, BLOCK_BYTES);
  }

  #place(address: Gva, code: GuestFunction, name: string): void {
    const taken = this.blockAt(address);
    if (taken !== undefined) {
      throw new RangeError(`Cannot place ${name || "a function"} at ${hex(address)}: ${taken.name} is there`);
    }
    const block = { address, name: name || `text_${address.toString(16)}`, code };
    const number = address / BLOCK;
    if (number >= this.#places.length) {
      const grown = new Int32Array(2 * number);
      grown.set(this.#places);
      this.#places = grown;
    }
    this.#places[number] = this.#order.push(block);
  }
}

function aligned(address: number): number {
  if (!Number.isInteger(address) || address < 0 || address % BLOCK !== 0 || address >= TEXT_LIMIT) {
    throw new RangeError(
      `Cannot place text at ${address}: allowed are multiples of ${BLOCK} from 0 to 2^31 - ${BLOCK}`,
    );
  }
  return address;
}
