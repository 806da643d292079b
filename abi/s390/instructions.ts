/**
 * The instructions of an s390 guest: their formats, by which a CPU decodes whatever stands in memory, and those of them
 * that guest functions yield, each with one site in a block of text. Storage operands are at gpr 1, what is loaded or
 * stored is in gpr 0, which no address uses.
 *
 * @module
 */

import { type BitField, disassembleInstruction, type InstructionFormat } from "../instruction_format.ts";
import { BlockLayout, type SiteForm } from "../text_block.ts";
import { S390_DIAG } from "./diagnose.ts";

const R1: BitField = { low: 4, bits: 4, meaning: "the first operand's register" };
const R3: BitField = { low: 0, bits: 4, meaning: "the third operand's register" };
const X2: BitField = { low: 0, bits: 4, meaning: "the index register; 0: none" };
const B2: BitField = { unit: 1, low: 12, bits: 4, meaning: "the base register; 0: none" };
const D2: BitField = { unit: 1, low: 0, bits: 12, meaning: "the displacement" };
const DH2: BitField = { unit: 2, low: 8, bits: 8, meaning: "the displacement's upper, signed part" };
const I2: BitField = { low: 0, bits: 8, meaning: "an immediate byte" };
const I2_HALF: BitField = {
  unit: 1,
  low: 0,
  bits: 16,
  meaning: "where the branch goes, in signed halfwords from here",
};
const RR1: BitField = { unit: 1, low: 4, bits: 4, meaning: "the first operand's register" };
const RR2: BitField = { unit: 1, low: 0, bits: 4, meaning: "the second operand's register" };

type Format = InstructionFormat<string>;

function format(
  name: string,
  text: string,
  units: readonly number[],
  fields: Record<string, BitField>,
): Format {
  return { name, text, unitBytes: 2, units, fields };
}
const rx = (name: string, op: number): Format =>
  format(name, `${name.toLowerCase()} %r0, 0(%r1)`, [op << 8, 0x1000], { r1: R1, x2: X2, b2: B2, d2: D2 });
const rxy = (name: string, op: number): Format =>
  format(name, `${name.toLowerCase()} %r0, 0(%r1)`, [0xe300, 0x1000, op], {
    r1: R1,
    x2: X2,
    b2: B2,
    d2: D2,
    dh2: DH2,
  });
const s = (name: string, text: string, op: number, storage: number): Format =>
  format(name, text, [op, storage], { b2: B2, d2: D2 });

/** An instruction's name in the Principles of Operation. */
export type S390Mnemonic =
  | "BCR"
  | "SVC"
  | "DIAG"
  | "STC"
  | "STH"
  | "ST"
  | "STG"
  | "LLGC"
  | "LLGH"
  | "LLGF"
  | "LG"
  | "LRVH"
  | "LRV"
  | "LRVG"
  | "STRVH"
  | "STRV"
  | "STRVG"
  | "CS"
  | "BRCTG"
  | "LGR"
  | "STSI"
  | "STAP"
  | "SPX"
  | "STPX"
  | "LPSWE"
  | "STOSM"
  | "STNSM"
  | "LCTLG"
  | "STCTG";

/** Every instruction that a CPU knows. */
export const S390_FORMATS: Readonly<Record<S390Mnemonic, InstructionFormat<string>>> = {
  BCR: format("BCR", "nopr", [0x0700], { r1: R1, r2: R3 }),
  SVC: format("SVC", "svc 0", [0x0a00], { i: I2 }),
  DIAG: S390_DIAG as Format,
  STC: rx("STC", 0x42),
  STH: rx("STH", 0x40),
  ST: rx("ST", 0x50),
  STG: rxy("STG", 0x24),
  LLGC: rxy("LLGC", 0x90),
  LLGH: rxy("LLGH", 0x91),
  LLGF: rxy("LLGF", 0x16),
  LG: rxy("LG", 0x04),
  LRVH: rxy("LRVH", 0x1f),
  LRV: rxy("LRV", 0x1e),
  LRVG: rxy("LRVG", 0x0f),
  STRVH: rxy("STRVH", 0x3f),
  STRV: rxy("STRV", 0x3e),
  STRVG: rxy("STRVG", 0x2f),
  CS: format("CS", "cs %r0, %r2, 0(%r1)", [0xba02, 0x1000], { r1: R1, r3: R3, b2: B2, d2: D2 }),
  BRCTG: format("BRCTG", "brctg %r0, .", [0xa707, 0x0000], { r1: R1, i2: I2_HALF }),
  LGR: format("LGR", "lgr %r15, %r14", [0xb904, 0x00fe], { r1: RR1, r2: RR2 }),
  STSI: s("STSI", "stsi 0(%r3)", 0xb27d, 0x3000),
  STAP: s("STAP", "stap 0(%r1)", 0xb212, 0x1000),
  SPX: s("SPX", "spx 0(%r1)", 0xb210, 0x1000),
  STPX: s("STPX", "stpx 0(%r1)", 0xb211, 0x1000),
  LPSWE: s("LPSWE", "lpswe 0(%r1)", 0xb2b2, 0x1000),
  STOSM: format("STOSM", "stosm 0(%r1), 3", [0xad03, 0x1000], { i2: I2, b2: B2, d2: D2 }),
  STNSM: format("STNSM", "stnsm 0(%r1), 252", [0xacfc, 0x1000], { i2: I2, b2: B2, d2: D2 }),
  LCTLG: format("LCTLG", "lctlg %c0, %c0, 0(%r1)", [0xeb00, 0x1000, 0x002f], {
    r1: R1,
    r3: R3,
    b2: B2,
    d2: D2,
    dh2: DH2,
  }),
  STCTG: format("STCTG", "stctg %c0, %c0, 0(%r1)", [0xeb00, 0x1000, 0x0025], {
    r1: R1,
    r3: R3,
    b2: B2,
    d2: D2,
    dh2: DH2,
  }),
};

/** A decoded instruction. */
export interface S390Instruction {
  /** Which. */
  readonly name: S390Mnemonic;
  /** Its bytes: 2, 4 or 6. */
  readonly length: number;
  /** Its fields. */
  readonly fields: Readonly<Record<string, number>>;
}

const BY_FIRST_BYTE: ReadonlyMap<number, readonly S390Mnemonic[]> = Map.groupBy(
  Object.keys(S390_FORMATS) as S390Mnemonic[],
  (name) => S390_FORMATS[name].units[0] >>> 8,
);

/** The bytes of an instruction that begins with a byte: its first two bits tell. */
export function s390InstructionLength(firstByte: number): 2 | 4 | 6 {
  return firstByte < 0x40 ? 2 : firstByte < 0xc0 ? 4 : 6;
}

/** The instruction that stands in bytes; undefined where it is none that a CPU knows here. */
export function decodeS390(bytes: Readonly<Uint8Array>): S390Instruction | undefined {
  for (const name of BY_FIRST_BYTE.get(bytes[0]) ?? []) {
    const fields = disassembleInstruction(S390_FORMATS[name], "big", bytes);
    if (fields !== undefined) return { name, length: s390InstructionLength(bytes[0]), fields };
  }
  return undefined;
}

/** DIAGNOSE 0x500, 2, 4: KVM's calls. */
export const S390_OP_DIAG_500 = 1;
/** DIAGNOSE 0x501: the breakpoint. */
export const S390_OP_DIAG_501 = 2;
/** DIAGNOSE 0x44: the time slice ends. */
export const S390_OP_DIAG_44 = 3;
/** DIAGNOSE 0x9c: directed yield to the CPU in gpr 2. */
export const S390_OP_DIAG_9C = 4;
/** DIAGNOSE 0x10: releases the pages from gpr 2 to gpr 3. */
export const S390_OP_DIAG_10 = 5;
/** DIAGNOSE 0x258: the block at gpr 2; the result comes in gpr 3. */
export const S390_OP_DIAG_258 = 6;
/** DIAGNOSE 0x308: the block at gpr 2, the subcode in gpr 4; the result comes in gpr 3. */
export const S390_OP_DIAG_308 = 7;
/** STORE SYSTEM INFORMATION: gpr 0 and 1 say which, at gpr 3. */
export const S390_OP_STSI = 8;
/** Loads a byte. */
export const S390_OP_LLGC = 9;
/** Loads 2 bytes. */
export const S390_OP_LLGH = 10;
/** Loads 4 bytes. */
export const S390_OP_LLGF = 11;
/** Loads 8 bytes. */
export const S390_OP_LG = 12;
/** Stores a byte. */
export const S390_OP_STC = 13;
/** Stores 2 bytes. */
export const S390_OP_STH = 14;
/** Stores 4 bytes. */
export const S390_OP_ST = 15;
/** Stores 8 bytes. */
export const S390_OP_STG = 16;
/** Loads 2 bytes, the low one first. */
export const S390_OP_LRVH = 17;
/** Loads 4 bytes, the low one first. */
export const S390_OP_LRV = 18;
/** Stores 2 bytes, the low one first. */
export const S390_OP_STRVH = 19;
/** Stores 4 bytes, the low one first. */
export const S390_OP_STRV = 20;
/** Stores 8 bytes, the low one first. */
export const S390_OP_STRVG = 21;
/** COMPARE AND SWAP: stores gpr 2 if memory holds gpr 0. */
export const S390_OP_CS = 22;
/** BRANCH ON COUNT to itself: computation of gpr 0 cycles. */
export const S390_OP_BRCTG = 23;
/** The stack switch: goes on with the frames of another task. */
export const S390_OP_SWITCH = 24;
/** SUPERVISOR CALL. */
export const S390_OP_SVC = 25;
/** STORE CPU ADDRESS. */
export const S390_OP_STAP = 26;
/** SET PREFIX. */
export const S390_OP_SPX = 27;
/** STORE PREFIX. */
export const S390_OP_STPX = 28;
/** LOAD PSW EXTENDED. */
export const S390_OP_LPSWE = 29;
/** STORE THEN OR SYSTEM MASK: enables I/O and external interruptions. */
export const S390_OP_STOSM = 30;
/** STORE THEN AND SYSTEM MASK: disables them. */
export const S390_OP_STNSM = 31;
/** Loads control register 0. */
export const S390_OP_LCTLG = 32;
/** Stores control register 0. */
export const S390_OP_STCTG = 33;
/** Does nothing. */
export const S390_OP_NOPR = 34;
/** LOAD PSW EXTENDED from {@linkcode S390_RETURN_PSW}: ends a handler. */
export const S390_OP_RETURN = 35;

/** Where in the lowcore a handler leaves the PSW that it returns to: storage that is software's, as Linux uses it. */
export const S390_RETURN_PSW = 0x290;

const { DIAG, STSI, LLGC, LLGH, LLGF, LG, STC, STH, ST, STG, LRVH, LRV, STRVH, STRV, STRVG } = S390_FORMATS;
const { CS, BRCTG, LGR, SVC, STAP, SPX, STPX, LPSWE, STOSM, STNSM, LCTLG, STCTG, BCR } = S390_FORMATS;

function own(opcode: number, { text, units }: Format): SiteForm {
  return { opcode, text, units };
}

/** DIAGNOSE with other registers, and another code. */
function diag(opcode: number, r1: number, r3: number, code: number): SiteForm {
  const text = `diag %r${r1}, %r${r3}, 0x${code.toString(16)}`;
  return { opcode, text, units: [(DIAG.units[0] & 0xff00) | (r1 << 4) | r3, code] };
}

/** What guest functions yield. */
export const S390_FORMS: readonly SiteForm[] = [
  own(S390_OP_DIAG_500, DIAG),
  diag(S390_OP_DIAG_501, 2, 4, 0x501),
  diag(S390_OP_DIAG_44, 0, 0, 0x44),
  diag(S390_OP_DIAG_9C, 2, 0, 0x9c),
  diag(S390_OP_DIAG_10, 2, 3, 0x10),
  diag(S390_OP_DIAG_258, 2, 3, 0x258),
  diag(S390_OP_DIAG_308, 2, 4, 0x308),
  own(S390_OP_STSI, STSI),
  own(S390_OP_LLGC, LLGC),
  own(S390_OP_LLGH, LLGH),
  own(S390_OP_LLGF, LLGF),
  own(S390_OP_LG, LG),
  own(S390_OP_STC, STC),
  own(S390_OP_STH, STH),
  own(S390_OP_ST, ST),
  own(S390_OP_STG, STG),
  own(S390_OP_LRVH, LRVH),
  own(S390_OP_LRV, LRV),
  own(S390_OP_STRVH, STRVH),
  own(S390_OP_STRV, STRV),
  own(S390_OP_STRVG, STRVG),
  own(S390_OP_CS, CS),
  own(S390_OP_BRCTG, BRCTG),
  own(S390_OP_SWITCH, LGR),
  own(S390_OP_SVC, SVC),
  own(S390_OP_STAP, STAP),
  own(S390_OP_SPX, SPX),
  own(S390_OP_STPX, STPX),
  own(S390_OP_LPSWE, LPSWE),
  own(S390_OP_STOSM, STOSM),
  own(S390_OP_STNSM, STNSM),
  own(S390_OP_LCTLG, LCTLG),
  own(S390_OP_STCTG, STCTG),
  own(S390_OP_NOPR, BCR),
  { opcode: S390_OP_RETURN, text: "lpswe 0x290", units: [LPSWE.units[0], S390_RETURN_PSW] },
];

/** A block of s390 text: 256 bytes. Its fixup pad, like all that is left, holds the operation code that never is one. */
export const S390_BLOCK: BlockLayout = new BlockLayout({
  unitBytes: 2,
  size: 0x100,
  entry: BCR.units,
  forms: S390_FORMS,
  returns: S390_OP_RETURN,
  pad: [0x0000],
});
