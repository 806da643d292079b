/**
 * The fields of PowerPC instruction words (Power ISA 3.0B, I 1.6): where each stands, and how its value is read. Bit
 * 0 is the most significant bit of the word.
 *
 * @module
 */

/** Where a field stands in a word, and what its bits mean. */
export interface InstructionField {
  /** Its pieces from the value's most significant bit down: first bit in the word, and how many. */
  readonly pieces: readonly (readonly [bit: number, width: number])[];
  /** Zero bits that follow the value's written ones: 2 where it counts in words. */
  readonly scale: number;
  /** Whether it is a two's complement number. */
  readonly signed: boolean;
  /** What it names. */
  readonly meaning: string;
}

function field(
  bit: number,
  width: number,
  meaning: string,
  options: { readonly scale?: number; readonly signed?: boolean } = {},
): InstructionField {
  return pieces([[bit, width]], meaning, options);
}

function pieces(
  list: InstructionField["pieces"],
  meaning: string,
  options: { readonly scale?: number; readonly signed?: boolean } = {},
): InstructionField {
  return { pieces: list, scale: options.scale ?? 0, signed: options.signed ?? false, meaning };
}

/** The name of a field. */
export type InstructionFieldName =
  | "RT"
  | "RS"
  | "RA"
  | "RB"
  | "SI"
  | "UI"
  | "D"
  | "DS"
  | "SPR"
  | "SR"
  | "LI"
  | "BD"
  | "BO"
  | "BI"
  | "AA"
  | "LK"
  | "BF"
  | "L"
  | "FXM"
  | "SH"
  | "MB"
  | "ME"
  | "SH6"
  | "MB6"
  | "ME6"
  | "RC"
  | "TO"
  | "LEV"
  | "L15"
  | "E";

/** Every field that the instructions of this project have. */
export const INSTRUCTION_FIELDS: Readonly<Record<InstructionFieldName, InstructionField>> = {
  RT: field(6, 5, "the register that is written"),
  RS: field(6, 5, "the register that is read"),
  RA: field(11, 5, "a register; 0 is the number zero in addresses"),
  RB: field(16, 5, "a register"),
  SI: field(16, 16, "a signed number", { signed: true }),
  UI: field(16, 16, "a number"),
  D: field(16, 16, "displacement", { signed: true }),
  DS: field(16, 14, "displacement in words", { signed: true, scale: 2 }),
  SPR: pieces([[16, 5], [11, 5]], "a special-purpose register, its halves exchanged"),
  SR: field(12, 4, "a segment register"),
  LI: field(6, 24, "the branch's target", { signed: true, scale: 2 }),
  BD: field(16, 14, "the branch's target", { signed: true, scale: 2 }),
  BO: field(6, 5, "the branch's condition"),
  BI: field(11, 5, "a bit of the condition register"),
  AA: field(30, 1, "the target is absolute"),
  LK: field(31, 1, "the link register gets the next address"),
  BF: field(6, 3, "a field of the condition register"),
  L: field(10, 1, "the operands have 64 bits"),
  FXM: field(12, 8, "fields of the condition register"),
  SH: field(16, 5, "how far to rotate"),
  MB: field(21, 5, "the mask's first bit"),
  ME: field(26, 5, "the mask's last bit"),
  SH6: pieces([[30, 1], [16, 5]], "how far to rotate"),
  MB6: pieces([[26, 1], [21, 5]], "the mask's first bit"),
  ME6: pieces([[26, 1], [21, 5]], "the mask's last bit"),
  RC: field(31, 1, "CR0 gets the result's sign"),
  TO: field(6, 5, "when to trap"),
  LEV: field(20, 7, "who is called: 0 the supervisor, 1 the hypervisor"),
  L15: field(15, 1, "only EE and RI are written"),
  E: field(16, 1, "the new EE"),
};

/** The bits of a word that a field takes up. */
export function fieldMask(name: InstructionFieldName): number {
  let mask = 0;
  for (const [bit, width] of INSTRUCTION_FIELDS[name].pieces) mask |= (2 ** width - 1) << (32 - bit - width);
  return mask >>> 0;
}

/** The value of a field in a word. */
export function extractField(word: number, name: InstructionFieldName): number {
  const { pieces, scale, signed } = INSTRUCTION_FIELDS[name];
  let value = 0;
  let bits = 0;
  for (const [bit, width] of pieces) {
    value = (value << width) | ((word >>> (32 - bit - width)) & (2 ** width - 1));
    bits += width;
  }
  if (signed && value >= 2 ** (bits - 1)) value -= 2 ** bits;
  return value * 2 ** scale;
}

/** A word's bits with a value in a field. Throws `RangeError` for a value that the field cannot hold. */
export function insertField(word: number, name: InstructionFieldName, value: number): number {
  const { pieces, scale, signed } = INSTRUCTION_FIELDS[name];
  const bits = pieces.reduce((sum, [, width]) => sum + width, 0);
  const step = 2 ** scale;
  const least = signed ? -(2 ** (bits - 1)) * step : 0;
  const most = (signed ? 2 ** (bits - 1) - 1 : 2 ** bits - 1) * step;
  if (!Number.isInteger(value / step) || value < least || value > most) {
    const what = step === 1 ? "whole numbers" : `multiples of ${step}`;
    throw new RangeError(`Cannot encode ${name} ${value}: allowed are ${what} from ${least} to ${most}`);
  }
  let result = word & ~fieldMask(name);
  let left = bits;
  const written = value / step;
  for (const [bit, width] of pieces) {
    left -= width;
    result |= (Math.floor(written / 2 ** left) & (2 ** width - 1)) << (32 - bit - width);
  }
  return result >>> 0;
}
