/**
 * The instructions of the tables as assemblers are asked for them: every form that guests and hosts use, with operands that
 * tell its fields apart.
 *
 * @module
 */

import {
  assembleInstruction,
  type ByteOrder,
  disassemblePpc,
  encodePpc,
  HCALL_STUB,
  type InstructionFieldName,
  type InstructionFormat,
  INSTRUCTIONS,
  MIPS_BLOCK,
  MIPS_CONVENTION,
  MIPS_HYPCALL,
  PPC_BCTRL,
  PPC_BLR,
  PPC_BOOKE_HV_CONVENTION,
  PPC_INSTRUCTIONS,
  PPC_NOP,
  PPC_PR_CONVENTION,
  PPC_SC,
  PPC_SC1,
  type PpcMnemonic,
  S390_BLOCK,
  S390_DIAG,
  S390_FORMATS,
  type S390Mnemonic,
  type SiteForm,
  unitsToBytes,
  X86_CONVENTION,
} from "../../abi/mod.ts";

/** An instruction: what an assembler is given, and the bytes that the tables have. */
export interface Sample {
  /** A line of assembly. */
  readonly line: string;
  /** Bytes in hexadecimal. */
  readonly bytes: string;
}

function hexBytes(bytes: Uint8Array): string {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function formats(list: readonly InstructionFormat[], order: ByteOrder): Sample[] {
  return list.map((format) => ({ line: format.text, bytes: hexBytes(assembleInstruction(format, order)) }));
}

/** What guests yield. A sequence is one sample an instruction: there its units are words. */
function sites(
  forms: readonly Pick<SiteForm, "text" | "units">[],
  unitBytes: 2 | 4,
  order: ByteOrder,
): Sample[] {
  return forms.flatMap(({ text, units }) => {
    const lines = text.split("; ");
    return lines.map((line, index) => ({
      line,
      bytes: hexBytes(unitsToBytes(lines.length === 1 ? units : [units[index]], unitBytes, order)),
    }));
  });
}

/** Values that differ in every field of an instruction, and reach its ends. */
const PPC_VALUES: Readonly<Record<InstructionFieldName, readonly number[]>> = {
  RT: [3, 31],
  RS: [4, 30],
  RA: [5, 1],
  RB: [6, 29],
  SI: [-4096, 0x7fff],
  UI: [0x4d21, 0xffff],
  D: [-4096 + 0x58, 0x7ffc],
  DS: [-4096 + 0x58, 0x7ffc],
  SPR: [272, 26],
  SR: [9, 15],
  LI: [0x1fffffc, -0x2000000],
  BD: [0x7ffc, -0x8000],
  BO: [12, 4],
  BI: [2, 7],
  AA: [0, 0],
  LK: [0, 1],
  BF: [7, 0],
  L: [0, 1],
  FXM: [0xff, 0x10],
  SH: [16, 31],
  MB: [17, 0],
  ME: [20, 31],
  SH6: [48, 1],
  MB6: [49, 0],
  ME6: [47, 63],
  RC: [0, 1],
  TO: [31, 4],
  LEV: [0, 1],
  L15: [0, 1],
  E: [0, 1],
};

/** Where the sampled branches stand: a disassembler prints targets, and assemblers are given distances. */
const SITE = 0x1000_0000;

/** Words that have names of their own, and those of the device tree's sequences. */
const PPC_WORDS: readonly Pick<SiteForm, "text" | "units">[] = [
  ...PPC_PR_CONVENTION.instructions,
  ...PPC_BOOKE_HV_CONVENTION.instructions,
  ...[PPC_NOP, PPC_BLR, PPC_BCTRL, PPC_SC, PPC_SC1, ...HCALL_STUB].map((word) => ({
    text: disassemblePpc(word),
    units: [word],
  })),
];

function ppc(order: ByteOrder): Sample[] {
  return [...sites(PPC_WORDS, 4, order), ...ppcInstructions(order)];
}

function ppcInstructions(order: ByteOrder): Sample[] {
  return (Object.keys(PPC_INSTRUCTIONS) as PpcMnemonic[]).flatMap((name) => {
    const fields = PPC_INSTRUCTIONS[name].fields.split(" ").filter((field) => field !== "");
    const rounds = fields.length === 0 ? [0] : [0, 1];
    return rounds.map((round) => {
      const operands = Object.fromEntries(
        fields.map((field) => [field, PPC_VALUES[field as InstructionFieldName][round]]),
      );
      if (name === "mftb") operands.SPR = [268, 269][round]; // it reads nothing else
      const word = encodePpc(name, operands as Parameters<typeof encodePpc<typeof name>>[1]);
      // Assemblers have their own opinions on the names of registers, but none on their numbers.
      const text = disassemblePpc(word, SITE).replace(/\b(?:[A-Z]\w+|spr \d+)\b/, String(operands.SPR));
      const line = fields.includes("LI") || fields.includes("BD")
        ? text.replace(/0x[0-9a-f]+$/, (target) => {
          const distance = Number(target) - SITE;
          return distance < 0 ? `.${distance}` : `.+${distance}`;
        })
        : text;
      const bytes = new Uint8Array(4);
      new DataView(bytes.buffer).setUint32(0, word, order === "little");
      return { line, bytes: hexBytes(bytes) };
    });
  });
}

function mips(order: ByteOrder): Sample[] {
  return [
    ...formats(MIPS_CONVENTION.instructions, order),
    ...sites(MIPS_BLOCK.forms, 4, order),
    ...[1, 5, 0x3ff].map((code) => ({
      line: `hypcall ${code}`,
      bytes: hexBytes(assembleInstruction(MIPS_HYPCALL, order, { code })),
    })),
  ];
}

/** DIAGNOSE with the codes of its functions and with others, and with every field filled. */
const DIAGNOSE_LINES: readonly (readonly [r1: number, r3: number, code: number])[] = [
  [2, 4, 0x500],
  [2, 4, 0x501],
  [0, 0, 0x500],
  [0, 0, 0x44],
  [1, 2, 0x258],
  [3, 1, 0x308],
  [5, 7, 0x10],
  [15, 14, 0xfff],
];

/** A different number in every field of a format. Displacements of 20 bits are in two pieces. */
const S390_FIELDS: readonly (readonly [S390Mnemonic, line: string, Readonly<Record<string, number>>])[] = [
  ["DIAG", "diag %r1, %r3, 0x123(%r9)", { r1: 1, r3: 3, b2: 9, d2: 0x123 }],
  ["STC", "stc %r3, 0x123(%r4,%r5)", { r1: 3, x2: 4, b2: 5, d2: 0x123 }],
  ["LG", "lg %r3, 0x12345(%r4,%r5)", { r1: 3, x2: 4, b2: 5, d2: 0x345, dh2: 0x12 }],
  ["CS", "cs %r3, %r4, 0x123(%r5)", { r1: 3, r3: 4, b2: 5, d2: 0x123 }],
  ["LCTLG", "lctlg %c3, %c4, 0x12345(%r5)", { r1: 3, r3: 4, b2: 5, d2: 0x345, dh2: 0x12 }],
  ["STCTG", "stctg %c3, %c4, -1(%r5)", { r1: 3, r3: 4, b2: 5, d2: 0xfff, dh2: 0xff }],
  ["LGR", "lgr %r3, %r4", { r1: 3, r2: 4 }],
  ["STOSM", "stosm 0x123(%r5), 0x4f", { i2: 0x4f, b2: 5, d2: 0x123 }],
  ["STSI", "stsi 0x123(%r5)", { b2: 5, d2: 0x123 }],
  ["SVC", "svc 0x4f", { i: 0x4f }],
  ["BCR", "bcr 3, %r4", { r1: 3, r2: 4 }],
];

function s390(): Sample[] {
  return [
    ...formats(Object.values(S390_FORMATS), "big"),
    ...sites(S390_BLOCK.forms, 2, "big"),
    ...DIAGNOSE_LINES.map(([r1, r3, code]) => ({
      line: `diag %r${r1}, %r${r3}, ${code}`,
      bytes: hexBytes(assembleInstruction(S390_DIAG, "big", { r1, r3, d2: code })),
    })),
    ...S390_FIELDS.map(([name, line, fields]) => ({
      line,
      bytes: hexBytes(assembleInstruction(S390_FORMATS[name], "big", fields)),
    })),
  ];
}

/** The samples of each of the assemblers' targets. */
export const SAMPLES: Readonly<Record<string, readonly Sample[]>> = {
  x86: [
    ...formats(X86_CONVENTION.instructions, "little"),
    ...INSTRUCTIONS.map(({ text, bytes }) => ({ line: text, bytes: hexBytes(Uint8Array.from(bytes)) })),
  ],
  s390: s390(),
  ppc: ppc("big"),
  ppcle: ppc("little"),
  mips: mips("big"),
  mipsel: mips("little"),
};
