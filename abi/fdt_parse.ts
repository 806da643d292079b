/**
 * Reading a flattened device tree's blob: whatever its bytes are, the answer is a tree or an {@linkcode FdtError}.
 *
 * @module
 */

import { hex } from "./bits.ts";
import {
  FDT_BEGIN_NODE,
  FDT_END,
  FDT_END_NODE,
  FDT_HEADER,
  FDT_LAST_COMPATIBLE,
  FDT_MAGIC,
  FDT_NOP,
  FDT_PROP,
  FDT_VERSION,
  type FdtNode,
  type FdtTree,
} from "./fdt.ts";

/** A blob breaks the format. */
export class FdtError extends Error {
  /** The error's name. */
  override readonly name = "FdtError";
}

/** Reads a blob. Throws {@linkcode FdtError} where it breaks the format, whatever its bytes are. */
export function parseFdt(blob: Readonly<Uint8Array>): Required<FdtTree> {
  return new Parser(blob).tree();
}

class Parser {
  readonly #view: DataView;
  readonly #header = {} as Record<keyof typeof FDT_HEADER.fields, number>;
  #at = 0;

  constructor(blob: Readonly<Uint8Array>) {
    this.#view = new DataView(blob.buffer as ArrayBuffer, blob.byteOffset, blob.byteLength);
    for (const [name, { offset }] of Object.entries(FDT_HEADER.fields)) {
      this.#header[name as keyof typeof FDT_HEADER.fields] = this.#u32(offset);
    }
    const { magic, totalsize, version, last_comp_version } = this.#header;
    if (magic !== FDT_MAGIC) throw new FdtError(`Cannot read a device tree: its magic is ${hex(magic)}`);
    if (totalsize > blob.length) {
      throw new FdtError(`Cannot read a device tree of ${totalsize} bytes: there are ${blob.length}`);
    }
    if (version < FDT_LAST_COMPATIBLE || last_comp_version > FDT_VERSION) {
      throw new FdtError(
        `Cannot read a device tree of version ${version}: allowed are ${FDT_LAST_COMPATIBLE} and ${FDT_VERSION}`,
      );
    }
  }

  tree(): Required<FdtTree> {
    const reserved = this.#reserved();
    this.#at = this.#header.off_dt_struct;
    if (this.#token() !== FDT_BEGIN_NODE) throw new FdtError("Cannot read a device tree: it has no root");
    const name = this.#string();
    if (name !== "") throw new FdtError(`Cannot read a device tree: its root is called ${name}`);
    const root = this.#node(0);
    if (this.#token() !== FDT_END) {
      throw new FdtError("Cannot read a device tree: something follows its root");
    }
    return { root, reserved, bootCpu: this.#header.boot_cpuid_phys };
  }

  #reserved(): { address: bigint; size: bigint }[] {
    const list = [];
    for (let at = this.#header.off_mem_rsvmap;; at += 16) {
      this.#within(at, 16);
      const address = this.#view.getBigUint64(at);
      const size = this.#view.getBigUint64(at + 8);
      if (address === 0n && size === 0n) return list;
      list.push({ address, size });
    }
  }

  #node(depth: number): FdtNode {
    if (depth === MAX_DEPTH) {
      throw new FdtError(`Cannot read a device tree: it has more than ${MAX_DEPTH} levels`);
    }
    const properties: Record<string, Uint8Array> = Object.create(null);
    const children: Record<string, FdtNode> = Object.create(null);
    for (;;) {
      const token = this.#token();
      if (token === FDT_END_NODE) return { properties, children };
      if (token === FDT_PROP) {
        if (Object.keys(children).length > 0) {
          throw new FdtError("Cannot read a device tree: a property follows a node");
        }
        const length = this.#cell();
        const name = this.#name(this.#cell());
        this.#within(this.#at, length);
        properties[name] = new Uint8Array(this.#view.buffer, this.#view.byteOffset + this.#at, length)
          .slice();
        this.#at += (length + 3) & ~3;
      } else if (token === FDT_BEGIN_NODE) {
        const name = this.#string();
        if (name === "" || name in children) {
          throw new FdtError(
            `Cannot read a device tree: a node's name ${JSON.stringify(name)} is empty or twice there`,
          );
        }
        children[name] = this.#node(depth + 1);
      } else {
        throw new FdtError(`Cannot read a device tree: token ${hex(token)} inside a node`);
      }
    }
  }

  #token(): number {
    for (;;) {
      const token = this.#cell();
      if (token !== FDT_NOP) return token;
    }
  }

  #cell(): number {
    const value = this.#u32(this.#at);
    this.#at += 4;
    return value;
  }

  #string(): string {
    const text = this.#text(this.#at, this.#header.totalsize);
    this.#at += (text.length + 4) & ~3;
    return text;
  }

  #name(offset: number): string {
    const { off_dt_strings, size_dt_strings } = this.#header;
    return this.#text(off_dt_strings + offset, off_dt_strings + size_dt_strings);
  }

  #text(from: number, limit: number): string {
    let text = "";
    for (let at = from;; at++) {
      if (at >= limit) throw new FdtError("Cannot read a device tree: a name does not end");
      this.#within(at, 1);
      const byte = this.#view.getUint8(at);
      if (byte === 0) return text;
      text += String.fromCharCode(byte);
    }
  }

  #u32(at: number): number {
    this.#within(at, 4);
    return this.#view.getUint32(at);
  }

  #within(at: number, bytes: number): void {
    if (at + bytes > this.#view.byteLength) {
      throw new FdtError(
        `Cannot read a device tree: ${bytes} bytes at ${hex(at)} are outside its ${this.#view.byteLength}`,
      );
    }
  }
}

/** How deep a tree may be: Linux's own limit (drivers/of/fdt.c, FDT_MAX_DEPTH). */
const MAX_DEPTH = 64;
