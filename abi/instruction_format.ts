/**
 * Instructions as data: fixed bits, and named fields among them. Bytes are assembled from a format, and a format is found
 * again in bytes; nothing else knows an encoding.
 *
 * @module
 */

/** The order in which the bytes of a word stand in memory. */
export type ByteOrder = "little" | "big";

/** Bits of an instruction that its encoding leaves open. */
export interface BitField {
  /** Which unit of the instruction holds it; the first by default. */
  readonly unit?: number;
  /** Its lowest bit, counted from the unit's least significant one. */
  readonly low: number;
  /** How many bits. */
  readonly bits: number;
  /** What it means. */
  readonly meaning: string;
}

/** An instruction, or a fixed sequence of some. */
export interface InstructionFormat<Field extends string = string> {
  /** As its architecture's manual names it. */
  readonly name: string;
  /** As an assembler spells it, with the fields as {@linkcode units} has them. */
  readonly text: string;
  /** Bytes of a unit: what byte order applies to. 1 where instructions are strings of bytes. */
  readonly unitBytes: 1 | 2 | 4;
  /** The units in memory order, with the fields that this use of the instruction has. */
  readonly units: readonly number[];
  /** The open fields by name; none where everything is fixed. */
  readonly fields: Readonly<Record<Field, BitField>>;
}

/** Values of fields. */
export type FieldValues<Field extends string = string> = Readonly<Record<Field, number>>;

/** The bytes that an instruction takes up. */
export function instructionBytes(format: InstructionFormat): number {
  return format.unitBytes * format.units.length;
}

/**
 * The bytes of an instruction, with other values in some fields. Throws `RangeError` for a value that a field cannot hold.
 *
 * @example MIPS' HYPCALL with code 5
 * ```ts
 * import { assembleInstruction, MIPS_HYPCALL } from "@exitless/exitless/abi";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals([...assembleInstruction(MIPS_HYPCALL, "big", { code: 5 })], [0x42, 0x00, 0x28, 0x28]);
 * ```
 */
export function assembleInstruction<Field extends string>(
  format: InstructionFormat<Field>,
  order: ByteOrder,
  values: Partial<FieldValues<Field>> = {},
): Uint8Array {
  const units = [...format.units];
  for (const [name, value] of Object.entries(values) as [Field, number][]) {
    const { unit = 0, low, bits } = format.fields[name];
    if (!Number.isInteger(value) || value < 0 || value >= 2 ** bits) {
      throw new RangeError(
        `Cannot assemble ${format.name} with ${name} = ${value}: allowed are 0 to ${2 ** bits - 1}`,
      );
    }
    units[unit] = ((units[unit] & ~mask(low, bits)) | (value << low)) >>> 0;
  }
  return unitsToBytes(units, format.unitBytes, order);
}

/** The fields of an instruction that stands in bytes; undefined where another one does. */
export function disassembleInstruction<Field extends string>(
  format: InstructionFormat<Field>,
  order: ByteOrder,
  bytes: Readonly<Uint8Array>,
): FieldValues<Field> | undefined {
  if (bytes.length < instructionBytes(format)) return undefined;
  const fields = Object.entries(format.fields) as [Field, BitField][];
  const units = bytesToUnits(bytes, format, order);
  for (const [index, unit] of units.entries()) {
    let open = 0;
    for (const [, field] of fields) if ((field.unit ?? 0) === index) open |= mask(field.low, field.bits);
    if (((unit ^ format.units[index]) & ~open) !== 0) return undefined;
  }
  return Object.fromEntries(
    fields.map(([name, { unit = 0, low, bits }]) => [name, (units[unit] & mask(low, bits)) >>> low]),
  ) as Record<Field, number>;
}

/** Units as bytes. */
export function unitsToBytes(units: readonly number[], unitBytes: number, order: ByteOrder): Uint8Array {
  const bytes = new Uint8Array(units.length * unitBytes);
  for (const [index, unit] of units.entries()) {
    for (let i = 0; i < unitBytes; i++) {
      const at = order === "little" ? i : unitBytes - 1 - i;
      bytes[index * unitBytes + at] = unit >>> (8 * i);
    }
  }
  return bytes;
}

function bytesToUnits(bytes: Readonly<Uint8Array>, format: InstructionFormat, order: ByteOrder): number[] {
  const { unitBytes } = format;
  return format.units.map((_, index) => {
    let unit = 0;
    for (let i = 0; i < unitBytes; i++) {
      const at = order === "little" ? unitBytes - 1 - i : i;
      unit = (unit << 8) | bytes[index * unitBytes + at];
    }
    return unit >>> 0;
  });
}

function mask(low: number, bits: number): number {
  return bits === 32 ? -1 : ((1 << bits) - 1) << low;
}
