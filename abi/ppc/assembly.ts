/**
 * PowerPC assembly: a disassembler that speaks the usual extended mnemonics, and an assembler for short sequences
 * with labels.
 *
 * @module
 */

import { hex } from "../bits.ts";
import { decodePpc, encodePpc, PPC_INSTRUCTIONS, type PpcInstruction } from "./instructions.ts";
import { sprName } from "./registers.ts";

/** `nop`: ori r0,r0,0. */
export const PPC_NOP = 0x6000_0000;
/** `blr`: back to the caller. */
export const PPC_BLR = 0x4e80_0020;
/** `bctrl`: calls what CTR points to. */
export const PPC_BCTRL = 0x4e80_0421;
/** `sc`: a system call; on a PR host with the magic in r0, a hypercall. */
export const PPC_SC = 0x4400_0002;
/** `sc 1`: a call to the hypervisor. */
export const PPC_SC1 = 0x4400_0022;

/** BO: branch where the CR bit is set. */
export const BO_TRUE = 12;
/** BO: branch where the CR bit is clear. */
export const BO_FALSE = 4;
/** BO: branch always. */
export const BO_ALWAYS = 20;
/** BO: decrement CTR and branch while it is not 0. */
export const BO_COUNT = 16;
/** BI: the EQ bit of CR0. */
export const BI_CR0_EQ = 2;

/** How far a relative branch reaches: from -2^25 to 2^25 - 4. */
export const BRANCH_REACH: number = 2 ** 25;

/** Words by the mnemonics that programmers write and the manual derives from others. */
export const ppcAsm = {
  /** `li RT,value`. */
  li: (RT: number, value: number): number => encodePpc("addi", { RT, RA: 0, SI: value }),
  /** `lis RT,value`, whose operand may be written as unsigned. */
  lis: (RT: number, value: number): number => encodePpc("addis", { RT, RA: 0, SI: (value << 16) >> 16 }),
  /** `mr RA,RS`. */
  mr: (RA: number, RS: number): number => encodePpc("or", { RA, RS, RB: RS }),
  /** `mfspr RT,SPR`. */
  mfspr: (RT: number, SPR: number): number => encodePpc("mfspr", { RT, SPR }),
  /** `mtspr SPR,RS`. */
  mtspr: (SPR: number, RS: number): number => encodePpc("mtspr", { SPR, RS }),
  /** `mtcr RS`. */
  mtcr: (RS: number): number => encodePpc("mtcrf", { FXM: 0xff, RS }),
  /** `b target`, seen from `from`. Throws `RangeError` where the target is out of {@linkcode BRANCH_REACH}. */
  b: (from: number, target: number): number => encodePpc("b", { LI: target - from }),
} as const;

/**
 * The word as an assembler spells it at `address`; `.long 0x…` where it is no instruction. Numbers that make up one
 * half of another, or a mask, are in hexadecimal: `lis r0,0x4b56`.
 */
export function disassemblePpc(word: number, address: number = 0): string {
  const instruction = decodePpc(word);
  if (instruction === undefined) return `.long ${hex(word)}`;
  return extended(instruction, address) ?? plain(instruction, address);
}

function extended(i: PpcInstruction, address: number): string | undefined {
  if (i.word === PPC_NOP) return "nop";
  if (i.word === PPC_BLR) return "blr";
  if (i.word === PPC_BCTRL) return "bctrl";
  if (i.word === PPC_SC) return "sc";
  switch (i.name) {
    case "addi":
      return i.RA === 0 ? `li r${i.RT},${i.SI}` : undefined;
    case "addis": {
      const half = hex(i.SI & 0xffff);
      return i.RA === 0 ? `lis r${i.RT},${half}` : `addis r${i.RT},r${i.RA},${half}`;
    }
    case "or":
      return i.RS === i.RB && i.RC === 0 ? `mr r${i.RA},r${i.RS}` : undefined;
    case "mfspr":
      return `mfspr r${i.RT},${sprName(i.SPR)}`;
    case "mtspr":
      return `mtspr ${sprName(i.SPR)},r${i.RS}`;
    case "mtcrf":
      return i.FXM === 0xff ? `mtcr r${i.RS}` : undefined;
    case "mtmsrd":
      return `mtmsrd r${i.RS},${i.L15}`;
    case "b":
      return `b${i.LK === 1 ? "l" : ""}${i.AA === 1 ? "a" : ""} ${
        hex(i.AA === 1 ? i.LI >>> 0 : address + i.LI)
      }`;
    case "bc":
      if (i.BI !== BI_CR0_EQ || i.AA === 1 || i.LK === 1) return undefined;
      if (i.BO !== BO_TRUE && i.BO !== BO_FALSE) return undefined;
      return `${i.BO === BO_TRUE ? "beq" : "bne"} ${hex(address + i.BD)}`;
    default:
      return undefined;
  }
}

const REGISTER_FIELDS = ["RT", "RS", "RA", "RB"];

function plain(i: PpcInstruction, address: number): string {
  const values = i as unknown as Readonly<Record<string, number>>;
  const fields: readonly string[] = PPC_INSTRUCTIONS[i.name].fields.split(" ").filter((field) =>
    field !== ""
  );
  const suffix = (fields.includes("RC") && values.RC === 1 ? "." : "") +
    (fields.includes("LK") && values.LK === 1 ? "l" : "");
  if (fields.includes("D") || fields.includes("DS")) {
    const [register, displacement] = fields;
    return `${i.name} r${values[register]},${values[displacement]}(${
      values.RA === 0 ? "0" : `r${values.RA}`
    })`;
  }
  const operands = fields.filter((field) => field !== "RC" && field !== "LK" && field !== "AA").map(
    (field) => {
      if (field === "BD") return hex(address + values[field]);
      if (field === "UI") return hex(values[field]);
      return REGISTER_FIELDS.includes(field) ? `r${values[field]}` : String(values[field]);
    },
  );
  return operands.length === 0 ? i.name + suffix : `${i.name}${suffix} ${operands.join(",")}`;
}
