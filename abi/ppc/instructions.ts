/**
 * The PowerPC instructions that this project's processor decodes and executes: those that the magic page's patches
 * read, write and jump to, those that hypercalls use, and what programs need around them (Power ISA 3.0B; BookE's
 * from the e500 Core Family Reference Manual). One row an instruction: its word with every field 0, and its fields.
 * Encoder, decoder and disassembler derive from it.
 *
 * @module
 */

import type { PpcFamily } from "./interrupts.ts";
import { extractField, fieldMask, insertField, type InstructionFieldName } from "./fields.ts";
import { sprIsPrivileged } from "./registers.ts";

/** The cores of this project: 64-bit and 32-bit Book3S, and 32-bit BookE (e500). */
export type PpcCore = "book3s-64" | "book3s-32" | "booke";

/** The family of a core's interrupts. */
export function ppcFamily(core: PpcCore): PpcFamily {
  return core === "booke" ? "booke" : "book3s";
}

/** One instruction. */
export interface PpcInstructionSpec {
  /** The word with every field 0. */
  readonly word: number;
  /** Its fields, in the order in which an assembler wants them, separated by spaces. */
  readonly fields: string;
  /** Whether problem state may not execute it; of MFSPR and MTSPR, the register's number says so. */
  readonly privileged?: true;
  /** The cores that alone have it. */
  readonly only?: "64-bit" | "32-bit" | "book3s" | "booke";
}

/** The instructions by mnemonic. */
export const PPC_INSTRUCTIONS = {
  // Arithmetic and logic.
  addi: { word: 0x3800_0000, fields: "RT RA SI" },
  addis: { word: 0x3c00_0000, fields: "RT RA SI" },
  subfic: { word: 0x2000_0000, fields: "RT RA SI" },
  add: { word: 0x7c00_0214, fields: "RT RA RB RC" },
  subf: { word: 0x7c00_0050, fields: "RT RA RB RC" },
  neg: { word: 0x7c00_00d0, fields: "RT RA RC" },
  "andi.": { word: 0x7000_0000, fields: "RA RS UI" },
  "andis.": { word: 0x7400_0000, fields: "RA RS UI" },
  ori: { word: 0x6000_0000, fields: "RA RS UI" },
  oris: { word: 0x6400_0000, fields: "RA RS UI" },
  xori: { word: 0x6800_0000, fields: "RA RS UI" },
  xoris: { word: 0x6c00_0000, fields: "RA RS UI" },
  and: { word: 0x7c00_0038, fields: "RA RS RB RC" },
  andc: { word: 0x7c00_0078, fields: "RA RS RB RC" },
  or: { word: 0x7c00_0378, fields: "RA RS RB RC" },
  xor: { word: 0x7c00_0278, fields: "RA RS RB RC" },
  nor: { word: 0x7c00_00f8, fields: "RA RS RB RC" },
  extsw: { word: 0x7c00_07b4, fields: "RA RS RC", only: "64-bit" },
  rlwinm: { word: 0x5400_0000, fields: "RA RS SH MB ME RC" },
  rlwimi: { word: 0x5000_0000, fields: "RA RS SH MB ME RC" },
  rldicl: { word: 0x7800_0000, fields: "RA RS SH6 MB6 RC", only: "64-bit" },
  rldicr: { word: 0x7800_0004, fields: "RA RS SH6 ME6 RC", only: "64-bit" },
  cmpi: { word: 0x2c00_0000, fields: "BF L RA SI" },
  cmpli: { word: 0x2800_0000, fields: "BF L RA UI" },
  cmp: { word: 0x7c00_0000, fields: "BF L RA RB" },
  cmpl: { word: 0x7c00_0040, fields: "BF L RA RB" },
  // Memory.
  lbz: { word: 0x8800_0000, fields: "RT D RA" },
  lhz: { word: 0xa000_0000, fields: "RT D RA" },
  lwz: { word: 0x8000_0000, fields: "RT D RA" },
  ld: { word: 0xe800_0000, fields: "RT DS RA", only: "64-bit" },
  stb: { word: 0x9800_0000, fields: "RS D RA" },
  sth: { word: 0xb000_0000, fields: "RS D RA" },
  stw: { word: 0x9000_0000, fields: "RS D RA" },
  std: { word: 0xf800_0000, fields: "RS DS RA", only: "64-bit" },
  lwbrx: { word: 0x7c00_042c, fields: "RT RA RB" },
  stwbrx: { word: 0x7c00_052c, fields: "RS RA RB" },
  dcbst: { word: 0x7c00_006c, fields: "RA RB" },
  icbi: { word: 0x7c00_07ac, fields: "RA RB" },
  sync: { word: 0x7c00_04ac, fields: "" },
  isync: { word: 0x4c00_012c, fields: "" },
  // Branches.
  b: { word: 0x4800_0000, fields: "LI AA LK" },
  bc: { word: 0x4000_0000, fields: "BO BI BD AA LK" },
  bclr: { word: 0x4c00_0020, fields: "BO BI LK" },
  bcctr: { word: 0x4c00_0420, fields: "BO BI LK" },
  tdi: { word: 0x0800_0000, fields: "TO RA SI", only: "64-bit" },
  twi: { word: 0x0c00_0000, fields: "TO RA SI" },
  tw: { word: 0x7c00_0008, fields: "TO RA RB" },
  sc: { word: 0x4400_0002, fields: "LEV" },
  // Registers.
  mfcr: { word: 0x7c00_0026, fields: "RT" },
  mtcrf: { word: 0x7c00_0120, fields: "FXM RS" },
  mfspr: { word: 0x7c00_02a6, fields: "RT SPR" },
  mtspr: { word: 0x7c00_03a6, fields: "SPR RS" },
  mftb: { word: 0x7c00_02e6, fields: "RT SPR" },
  mfmsr: { word: 0x7c00_00a6, fields: "RT", privileged: true },
  mtmsr: { word: 0x7c00_0124, fields: "RS", privileged: true },
  mtmsrd: { word: 0x7c00_0164, fields: "RS L15", privileged: true, only: "64-bit" },
  mtsr: { word: 0x7c00_01a4, fields: "SR RS", privileged: true, only: "book3s" },
  mtsrin: { word: 0x7c00_01e4, fields: "RS RB", privileged: true, only: "book3s" },
  mfsr: { word: 0x7c00_04a6, fields: "RT SR", privileged: true, only: "book3s" },
  mfsrin: { word: 0x7c00_0526, fields: "RT RB", privileged: true, only: "book3s" },
  tlbsync: { word: 0x7c00_046c, fields: "", privileged: true },
  rfi: { word: 0x4c00_0064, fields: "", privileged: true, only: "32-bit" },
  rfid: { word: 0x4c00_0024, fields: "", privileged: true, only: "64-bit" },
  wrtee: { word: 0x7c00_0106, fields: "RS", privileged: true, only: "booke" },
  wrteei: { word: 0x7c00_0146, fields: "E", privileged: true, only: "booke" },
} as const satisfies Record<string, PpcInstructionSpec>;

/** An instruction's mnemonic. */
export type PpcMnemonic = keyof typeof PPC_INSTRUCTIONS;

/** The words of a text that spaces separate. */
export type PpcWords<Text extends string> = Text extends `${infer First} ${infer Rest}`
  ? First | PpcWords<Rest>
  : Text extends "" ? never
  : Text;

/** The fields of an instruction. */
export type PpcFieldsOf<Name extends PpcMnemonic> = PpcWords<(typeof PPC_INSTRUCTIONS)[Name]["fields"]>;

/** Fields that are 0 unless an encoder is told otherwise. */
export type PpcOptionalField = "RC" | "AA" | "LK" | "L" | "LEV" | "L15";

/** The fields of an instruction with their values, as the encoder takes them. */
export type PpcOperands<Name extends PpcMnemonic> =
  & { readonly [Field in Exclude<PpcFieldsOf<Name>, PpcOptionalField>]: number }
  & { readonly [Field in Extract<PpcFieldsOf<Name>, PpcOptionalField>]?: number };

/** A decoded word: the instruction, and every field. */
export type PpcInstruction = {
  readonly [Name in PpcMnemonic]:
    & { readonly name: Name; readonly word: number }
    & { readonly [Field in PpcFieldsOf<Name>]: number };
}[PpcMnemonic];

interface Row {
  readonly name: PpcMnemonic;
  readonly word: number;
  /** The bits that belong to no field. */
  readonly mask: number;
  readonly fields: readonly InstructionFieldName[];
}

const ROWS: readonly Row[] = Object.entries(PPC_INSTRUCTIONS).map(([name, { word, fields }]) => {
  const names = fields.split(" ").filter((field) => field !== "") as InstructionFieldName[];
  const mask = ~names.reduce((bits, field) => bits | fieldMask(field), 0) >>> 0;
  return { name: name as PpcMnemonic, word, mask, fields: names };
});

/** By primary opcode, bits 0 to 5: the rows that share it. */
const BY_OPCODE: readonly (readonly Row[])[] = Array.from(
  { length: 64 },
  (_, opcode) => ROWS.filter((row) => row.word >>> 26 === opcode),
);

const ROW_OF: ReadonlyMap<PpcMnemonic, Row> = new Map(ROWS.map((row) => [row.name, row]));

/**
 * The word of an instruction. Throws `RangeError` for a value that its field cannot hold.
 *
 * @example What the magic page turns `mfmsr r3` into
 * ```ts
 * import { encodePpc } from "@exitless/exitless/abi";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(encodePpc("mfmsr", { RT: 3 }), 0x7c6000a6);
 * assertEquals(encodePpc("ld", { RT: 3, DS: -4096 + 0x58, RA: 0 }), 0xe860f058);
 * ```
 */
export function encodePpc<Name extends PpcMnemonic>(name: Name, operands: PpcOperands<Name>): number {
  const row = ROW_OF.get(name)!;
  const values = operands as Readonly<Record<string, number | undefined>>;
  let { word } = row;
  for (const field of row.fields) word = insertField(word, field, values[field] ?? 0);
  return word;
}

/** The instruction that a word is; undefined where the processor has none, reserved bits that are not 0 included. */
export function decodePpc(word: number): PpcInstruction | undefined {
  const row = BY_OPCODE[word >>> 26].find(({ mask, word: bits }) => (word & mask) >>> 0 === bits);
  if (row === undefined) return undefined;
  const instruction: Record<string, number | string> = { name: row.name, word: word >>> 0 };
  for (const field of row.fields) instruction[field] = extractField(word, field);
  return instruction as unknown as PpcInstruction;
}

/** Whether a core has an instruction. */
export function hasPpcInstruction(core: PpcCore, name: PpcMnemonic): boolean {
  const spec: PpcInstructionSpec = PPC_INSTRUCTIONS[name];
  switch (spec.only) {
    case "64-bit":
      return core === "book3s-64";
    case "32-bit":
      return core !== "book3s-64";
    case "book3s":
      return core !== "booke";
    case "booke":
      return core === "booke";
    default:
      return true;
  }
}

/** Whether problem state may not execute an instruction. */
export function isPrivilegedPpc(instruction: PpcInstruction): boolean {
  if (instruction.name === "mfspr" || instruction.name === "mtspr") return sprIsPrivileged(instruction.SPR);
  return "privileged" in PPC_INSTRUCTIONS[instruction.name];
}
