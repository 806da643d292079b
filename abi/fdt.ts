/**
 * Flattened device trees (Devicetree Specification v0.4, chapter 5): the blob by which firmware, or user space in its
 * place, tells a kernel what machine it runs on. Everything in it is big-endian.
 *
 *     +0                  header
 *     +off_mem_rsvmap     memory reservations: pairs of 64-bit address and size, closed by a pair of zeros
 *     +off_dt_struct      the tree, as tokens of 32 bits
 *     +off_dt_strings     names of properties, each closed by a zero byte
 *
 * @module
 */

import { type Layout, layout } from "./layout.ts";

/** The first word of a blob. */
export const FDT_MAGIC = 0xd00d_feed;
/** A node begins; its name follows, closed by a zero byte. */
export const FDT_BEGIN_NODE = 1;
/** The innermost node ends. */
export const FDT_END_NODE = 2;
/** A property of the innermost node: length, offset of its name, value. */
export const FDT_PROP = 3;
/** Nothing. */
export const FDT_NOP = 4;
/** The tree ends. */
export const FDT_END = 9;
/** The version that blobs have today, and the oldest that can read them. */
export const FDT_VERSION = 17;
/** The oldest version that is compatible with {@linkcode FDT_VERSION}. */
export const FDT_LAST_COMPATIBLE = 16;

/** struct fdt_header. */
export const FDT_HEADER: Layout<
  | "magic"
  | "totalsize"
  | "off_dt_struct"
  | "off_dt_strings"
  | "off_mem_rsvmap"
  | "version"
  | "last_comp_version"
  | "boot_cpuid_phys"
  | "size_dt_strings"
  | "size_dt_struct"
> = layout("fdt_header", {
  magic: "u32",
  totalsize: "u32",
  off_dt_struct: "u32",
  off_dt_strings: "u32",
  off_mem_rsvmap: "u32",
  version: "u32",
  last_comp_version: "u32",
  boot_cpuid_phys: "u32",
  size_dt_strings: "u32",
  size_dt_struct: "u32",
}, { endian: "big", align: 8 });

/** A node: its properties as bytes, and the nodes below it. */
export interface FdtNode {
  /** Properties by name, in the blob's order. */
  readonly properties: Readonly<Record<string, Readonly<Uint8Array>>>;
  /** Nodes by name, unit address included, in the blob's order. */
  readonly children: Readonly<Record<string, FdtNode>>;
}

/** A blob's content. */
export interface FdtTree {
  /** The root node, whose name is empty. */
  readonly root: FdtNode;
  /** Memory that the kernel must leave alone; none by default. */
  readonly reserved?: readonly { readonly address: bigint; readonly size: bigint }[];
  /** The boot CPU's physical ID; 0 by default. */
  readonly bootCpu?: number;
}

/** A property that holds strings, each closed by a zero byte. */
export function fdtStrings(...strings: readonly string[]): Uint8Array {
  return new TextEncoder().encode(strings.map((s) => s + "\0").join(""));
}

/** A property that holds 32-bit cells. */
export function fdtCells(...cells: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(4 * cells.length);
  const view = new DataView(bytes.buffer);
  cells.forEach((cell, i) => view.setUint32(4 * i, cell));
  return bytes;
}

/** The strings of a property. */
export function fdtStringsOf(value: Readonly<Uint8Array>): string[] {
  const text = new TextDecoder().decode(value as Uint8Array);
  return text === "" ? [] : text.replace(/\0$/, "").split("\0");
}

/** The 32-bit cells of a property. Throws `RangeError` where its length is no multiple of 4. */
export function fdtCellsOf(value: Readonly<Uint8Array>): number[] {
  if (value.length % 4 !== 0) {
    throw new RangeError(`Cannot read cells from ${value.length} bytes: allowed are multiples of 4`);
  }
  const view = new DataView(value.buffer as ArrayBuffer, value.byteOffset, value.length);
  return Array.from({ length: value.length / 4 }, (_, i) => view.getUint32(4 * i));
}

/**
 * Writes a tree as a blob. Throws `RangeError` for names that a blob cannot hold.
 *
 * @example A tree and its blob
 * ```ts
 * import { buildFdt, fdtCells, fdtCellsOf, parseFdt } from "@exitless/exitless/abi";
 * import { assertEquals } from "@std/assert";
 *
 * const blob = buildFdt({
 *   root: { properties: {}, children: { hypervisor: { properties: { "reg": fdtCells(7) }, children: {} } } },
 * });
 * assertEquals(fdtCellsOf(parseFdt(blob).root.children.hypervisor.properties.reg), [7]);
 * ```
 */
export function buildFdt(tree: FdtTree): Uint8Array {
  const strings = new Strings();
  const body = new Writer();
  writeNode(body, strings, "", tree.root);
  body.cell(FDT_END);
  const reserved = tree.reserved ?? [];
  const reservations = new Writer();
  for (const { address, size } of [...reserved, { address: 0n, size: 0n }]) {
    reservations.cell(Number(BigInt.asUintN(32, address >> 32n)));
    reservations.cell(Number(BigInt.asUintN(32, address)));
    reservations.cell(Number(BigInt.asUintN(32, size >> 32n)));
    reservations.cell(Number(BigInt.asUintN(32, size)));
  }
  const offReserved = FDT_HEADER.size;
  const offStruct = offReserved + reservations.length;
  const offStrings = offStruct + body.length;
  const blob = new Writer();
  const header: Record<keyof typeof FDT_HEADER.fields, number> = {
    magic: FDT_MAGIC,
    totalsize: offStrings + strings.bytes.length,
    off_dt_struct: offStruct,
    off_dt_strings: offStrings,
    off_mem_rsvmap: offReserved,
    version: FDT_VERSION,
    last_comp_version: FDT_LAST_COMPATIBLE,
    boot_cpuid_phys: tree.bootCpu ?? 0,
    size_dt_strings: strings.bytes.length,
    size_dt_struct: body.length,
  };
  for (const name of Object.keys(FDT_HEADER.fields) as (keyof typeof header)[]) blob.cell(header[name]);
  for (const part of [reservations.bytes, body.bytes, strings.bytes]) blob.raw(part);
  return Uint8Array.from(blob.bytes);
}

function writeNode(out: Writer, strings: Strings, name: string, node: FdtNode): void {
  out.cell(FDT_BEGIN_NODE);
  out.padded(nameBytes(name));
  for (const [property, value] of Object.entries(node.properties)) {
    out.cell(FDT_PROP);
    out.cell(value.length);
    out.cell(strings.offset(property));
    out.padded([...value]);
  }
  for (const [child, below] of Object.entries(node.children)) {
    if (child === "") throw new RangeError("Cannot build a device tree: a node below the root has no name");
    writeNode(out, strings, child, below);
  }
  out.cell(FDT_END_NODE);
}

function nameBytes(name: string): number[] {
  if (/[^\x21-\x7e]/.test(name)) {
    throw new RangeError(
      `Cannot build a device tree: ${JSON.stringify(name)} holds characters that names may not`,
    );
  }
  return [...new TextEncoder().encode(name), 0];
}

/** Bytes that grow; cells are big-endian. */
class Writer {
  readonly bytes: number[] = [];
  get length(): number {
    return this.bytes.length;
  }
  cell(value: number): void {
    this.bytes.push(value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff);
  }
  raw(bytes: readonly number[]): void {
    for (const byte of bytes) this.bytes.push(byte);
  }
  padded(bytes: readonly number[]): void {
    this.raw(bytes);
    while (this.bytes.length % 4 !== 0) this.bytes.push(0);
  }
}

/** The strings block: each name once. */
class Strings {
  readonly bytes: number[] = [];
  readonly #offsets = new Map<string, number>();
  offset(name: string): number {
    let offset = this.#offsets.get(name);
    if (offset === undefined) {
      if (name === "") throw new RangeError("Cannot build a device tree: a property has no name");
      offset = this.bytes.length;
      this.#offsets.set(name, offset);
      for (const byte of nameBytes(name)) this.bytes.push(byte);
    }
    return offset;
  }
}
