/**
 * A guest's early look at its flattened device tree, in guest memory and word by word (drivers/of/fdt.c,
 * of_scan_flat_dt).
 *
 * @module
 */

import {
  type ByteOrder,
  FDT_BEGIN_NODE,
  FDT_END,
  FDT_END_NODE,
  FDT_HEADER,
  FDT_MAGIC,
  FDT_NOP,
  FDT_PROP,
  type PpcCpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";

/** A property: where its value is, and how many bytes it has. */
export interface FlatProperty {
  /** Address of the value. */
  readonly address: number;
  /** Bytes. */
  readonly length: number;
}

/** A node: its name, and where its properties begin. */
export interface FlatNode {
  /** The name, unit address included. */
  readonly name: string;
  /** How many nodes it is below: 0 for the root. */
  readonly depth: number;
  /** Address of the first token behind the name. */
  readonly body: number;
}

/** A tree in guest memory. */
export class FlatTree {
  readonly #cpu: PpcCpu;
  readonly #order: ByteOrder;
  readonly #fdt: number;
  #struct = 0;
  #strings = 0;

  /** The tree at `fdt`, for a guest that runs in `order`. */
  constructor(cpu: PpcCpu, fdt: number, order: ByteOrder) {
    this.#cpu = cpu;
    this.#fdt = fdt;
    this.#order = order;
  }

  /** Looks at the header. false where there is no tree. */
  *open(): GuestValue<boolean> {
    const fields = FDT_HEADER.fields;
    if ((yield* this.cell(this.#fdt + fields.magic.offset)) !== FDT_MAGIC) return false;
    this.#struct = this.#fdt + (yield* this.cell(this.#fdt + fields.off_dt_struct.offset));
    this.#strings = this.#fdt + (yield* this.cell(this.#fdt + fields.off_dt_strings.offset));
    return true;
  }

  /** A cell: trees are big-endian, whatever the guest is. */
  *cell(address: number): GuestValue<number> {
    yield this.#order === "big" ? this.#cpu.lwz(address) : this.#cpu.lwbrx(address);
    return Number(this.#cpu.r3);
  }

  /** A text that a zero byte closes. */
  *text(address: number): GuestValue<string> {
    let text = "";
    for (let at = address;; at++) {
      yield this.#cpu.lbz(at);
      if (this.#cpu.r3 === 0n) return text;
      text += String.fromCharCode(Number(this.#cpu.r3));
    }
  }

  /** The first node in the tree's order for which `wanted` says so; undefined where there is none. */
  *find(wanted: (node: FlatNode) => GuestValue<boolean>): GuestValue<FlatNode | undefined> {
    let depth = 0;
    for (let at = this.#struct;;) {
      const token = yield* this.cell(at);
      at += 4;
      switch (token) {
        case FDT_BEGIN_NODE: {
          const name = yield* this.text(at);
          at += (name.length + 4) & ~3;
          const node = { name, depth, body: at };
          depth++;
          if (yield* wanted(node)) return node;
          break;
        }
        case FDT_PROP:
          at += 8 + (((yield* this.cell(at)) + 3) & ~3);
          break;
        case FDT_NOP:
          break;
        case FDT_END_NODE:
          depth--;
          break;
        case FDT_END:
        default:
          return undefined;
      }
    }
  }

  /** A property of a node; undefined where it has none of that name. */
  *property(node: FlatNode, name: string): GuestValue<FlatProperty | undefined> {
    for (let at = node.body;;) {
      const token = yield* this.cell(at);
      at += 4;
      if (token === FDT_NOP) continue;
      if (token !== FDT_PROP) return undefined;
      const length = yield* this.cell(at);
      const nameOffset = yield* this.cell(at + 4);
      if ((yield* this.text(this.#strings + nameOffset)) === name) return { address: at + 8, length };
      at += 8 + ((length + 3) & ~3);
    }
  }
}
