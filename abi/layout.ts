/**
 * Structures in guest memory that a guest and a host share: one description gives size, offsets and byte order, and
 * both sides reach the fields through it.
 *
 * @module
 */

/** The scalar types of a field. */
export type FieldType = "u8" | "s8" | "u16" | "u32" | "u64" | "s64";

/** A scalar, or an array of `count` scalars. */
export type FieldSpec = FieldType | readonly [type: FieldType, count: number];

/** A field of a {@linkcode Layout}. */
export interface Field {
  /** Offset from the structure's first byte. */
  readonly offset: number;
  /** Bytes of the whole field. */
  readonly size: number;
  /** The scalar type. */
  readonly type: FieldType;
  /** Scalars in the field; 1 unless it is an array. */
  readonly count: number;
}

/** A structure: its size, byte order and fields. */
export interface Layout<Name extends string = string> {
  /** The structure's name, as its header spells it. */
  readonly name: string;
  /** Bytes, padding included. */
  readonly size: number;
  /** The alignment that the ABI asks for, in bytes. */
  readonly align: number;
  /** Byte order of every field. */
  readonly endian: "little" | "big";
  /** The fields by name, in memory order. */
  readonly fields: Readonly<Record<Name, Field>>;
}

/** How {@linkcode layout} places fields. */
export interface LayoutOptions {
  /** Bytes; throws if the fields need more. The fields' own end by default. */
  readonly size?: number;
  /** Alignment in bytes that the ABI asks for; 1 by default. */
  readonly align?: number;
  /** Byte order; little by default. */
  readonly endian?: "little" | "big";
}

const SCALAR_BYTES: Readonly<Record<FieldType, number>> = { u8: 1, s8: 1, u16: 2, u32: 4, u64: 8, s64: 8 };

/**
 * Lays fields out one behind the other, packed: padding is written as a field, as the kernel's headers do.
 * Throws `RangeError` where `size` is too small.
 *
 * @example A little-endian pair
 * ```ts
 * import { layout } from "@exitless/exitless/abi";
 * import { assertEquals } from "@std/assert";
 *
 * const pair = layout("pair", { lo: "u32", hi: "u32" });
 * assertEquals([pair.size, pair.fields.hi.offset], [8, 4]);
 * ```
 */
export function layout<const Specs extends Record<string, FieldSpec>>(
  name: string,
  specs: Specs,
  options: LayoutOptions = {},
): Layout<keyof Specs & string> {
  const fields: Record<string, Field> = {};
  let offset = 0;
  for (const [field, spec] of Object.entries(specs)) {
    const [type, count] = typeof spec === "string"
      ? [spec, 1] as const
      : spec as readonly [FieldType, number];
    const size = SCALAR_BYTES[type] * count;
    fields[field] = { offset, size, type, count };
    offset += size;
  }
  const size = options.size ?? offset;
  if (size < offset) {
    throw new RangeError(`Cannot lay out ${name} in ${size} bytes: its fields need ${offset}`);
  }
  return {
    name,
    size,
    align: options.align ?? 1,
    endian: options.endian ?? "little",
    fields: fields as Record<keyof Specs & string, Field>,
  };
}
