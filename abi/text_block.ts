/**
 * Text of the architectures whose instructions are words: generator functions with addresses in guest memory. A function
 * takes up one block. In it every instruction that guests can yield has one site, so that a program counter tells which
 * instruction of which function it means:
 *
 *     entry     what vectors and program starts point to
 *     sites     one for each row of the architecture's table, in order
 *     pad       the fixup pad: a handler that returns here throws into the function
 *
 * The bytes are the instructions' own. A processor fetches them from guest memory and executes what it finds there.
 *
 * @module
 */

import { hex } from "./bits.ts";
import { type ByteOrder, unitsToBytes } from "./instruction_format.ts";

/** A running guest function: each `yield` is one instruction, given by its opcode number. */
export type MachineGuest = Generator<number, void, void>;

/** A guest function as written: it gets the processor's handle and yields what that builds. */
export type MachineFunction<Cpu> = (cpu: Cpu) => MachineGuest;

/** An instruction, or a short sequence, that guests can yield. */
export interface SiteForm {
  /** What a guest yields: a small integer above 0. */
  readonly opcode: number;
  /** As an assembler spells it. */
  readonly text: string;
  /** Its units, in memory order. */
  readonly units: readonly number[];
}

/** What the blocks of an architecture are made of. */
export interface BlockOptions {
  /** Bytes of a unit: what byte order applies to. */
  readonly unitBytes: 1 | 2 | 4;
  /** Bytes of a block: a power of two. */
  readonly size: number;
  /** What stands at the entry: something that does nothing. */
  readonly entry: readonly number[];
  /** The instructions. */
  readonly forms: readonly SiteForm[];
  /** The opcode that ends a handler: it is executed when the handler's function returns. */
  readonly returns: number;
  /** What stands at the fixup pad and fills the rest: something that faults. */
  readonly pad: readonly number[];
}

/** The layout of an architecture's blocks. */
export class BlockLayout {
  /** Bytes of a unit. */
  readonly unitBytes: 1 | 2 | 4;
  /** Bytes of a block. */
  readonly size: number;
  /** By opcode: the offset of its site. */
  readonly site: Readonly<Uint16Array>;
  /** By opcode: the offset behind its site. */
  readonly behind: Readonly<Uint16Array>;
  /** The offset of the fixup pad. */
  readonly pad: number;
  /** The opcode that ends a handler. */
  readonly returns: number;
  /** The instructions. */
  readonly forms: readonly SiteForm[];
  readonly #units: readonly number[];

  /** Throws `RangeError` where the instructions do not fit. */
  constructor(options: BlockOptions) {
    const { unitBytes, size, entry, forms, pad } = options;
    const opcodes = 1 + Math.max(...forms.map(({ opcode }) => opcode));
    const site = new Uint16Array(opcodes);
    const behind = new Uint16Array(opcodes);
    const units = [...entry];
    for (const { opcode, units: own } of forms) {
      site[opcode] = units.length * unitBytes;
      units.push(...own);
      behind[opcode] = units.length * unitBytes;
    }
    this.pad = units.length * unitBytes;
    units.push(...pad);
    if (units.length * unitBytes > size) {
      throw new RangeError(`Cannot assemble a block of ${size} bytes: it needs ${units.length * unitBytes}`);
    }
    while (units.length * unitBytes < size) units.push(...pad);
    this.#units = units.slice(0, size / unitBytes);
    this.unitBytes = unitBytes;
    this.size = size;
    this.site = site;
    this.behind = behind;
    this.forms = forms;
    this.returns = options.returns;
  }

  /** The bytes of a block. */
  bytes(order: ByteOrder): Uint8Array {
    return unitsToBytes(this.#units, this.unitBytes, order);
  }

  /** An instruction as an assembler spells it; `opcode N` where there is none with that number. */
  instructionText(opcode: number): string {
    return this.forms.find((form) => form.opcode === opcode)?.text ?? `opcode ${opcode}`;
  }
}

/** A function in text. */
export interface MachineBlock<Cpu> {
  /** The address of its first byte. */
  readonly address: number;
  /** Its name, for traces and errors. */
  readonly name: string;
  /** The code. */
  readonly code: MachineFunction<Cpu>;
}

/** The functions of one guest image and their addresses. */
export class MachineText<Cpu> {
  /** The layout of the blocks. */
  readonly layout: BlockLayout;
  readonly #blocks = new Map<number, MachineBlock<Cpu>>();
  readonly #words = new Map<number, readonly number[]>();
  #next: number;

  /** Text whose functions stand one behind the other from `base`, a multiple of the block's size. */
  constructor(layout: BlockLayout, base: number) {
    this.layout = layout;
    this.#next = this.#aligned(base);
  }

  /** Appends a function and gives its address. */
  add(code: MachineFunction<Cpu>, name: string = code.name): number {
    const address = this.#next;
    this.#next += this.layout.size;
    return this.addAt(address, code, name);
  }

  /** Places a function at an address of its own. Throws `RangeError` where the address is not aligned, or taken. */
  addAt(address: number, code: MachineFunction<Cpu>, name: string = code.name): number {
    const number = this.#aligned(address) / this.layout.size;
    const taken = this.#blocks.get(number);
    if (taken !== undefined) {
      throw new RangeError(`Cannot place ${name || "a function"} at ${hex(address)}: ${taken.name} is there`);
    }
    this.#blocks.set(number, { address, name: name || `text_${address.toString(16)}`, code });
    return address;
  }

  /**
   * Puts words into the image that are no function's: an exception vector that jumps to its handler, a stub. Processors
   * execute them as they find them.
   */
  addWords(address: number, units: readonly number[]): void {
    this.#words.set(address, units);
  }

  /** The block that holds `address`; undefined where there is no text. */
  blockAt(address: number): MachineBlock<Cpu> | undefined {
    return this.#blocks.get(Math.floor(address / this.layout.size));
  }

  /** Every function. */
  get blocks(): readonly MachineBlock<Cpu>[] {
    return [...this.#blocks.values()];
  }

  /** Writes each block's bytes, and the words, through `write`: what a boot loader does with an image. */
  load(order: ByteOrder, write: (address: number, bytes: Readonly<Uint8Array>) => void): void {
    const { layout } = this;
    const bytes = layout.bytes(order);
    for (const { address } of this.#blocks.values()) write(address, bytes);
    for (const [address, units] of this.#words) write(address, unitsToBytes(units, layout.unitBytes, order));
  }

  #aligned(address: number): number {
    const { size } = this.layout;
    if (!Number.isSafeInteger(address) || address < 0 || address % size !== 0) {
      throw new RangeError(`Cannot place text at ${address}: allowed are multiples of ${size}`);
    }
    return address;
  }
}
