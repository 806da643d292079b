/**
 * The instructions that PowerPC guest functions yield, and the blocks of text in which they stand. Operands are in
 * fixed registers: data and results in r3, addresses in r4, the targets of calls and the length of computations in
 * CTR.
 *
 * @module
 */

import { BlockLayout, MachineText } from "../text_block.ts";
import type { PpcCpu } from "./cpu.ts";
import { BO_COUNT, disassemblePpc, PPC_BCTRL, PPC_NOP, PPC_SC, ppcAsm } from "./assembly.ts";
import { encodePpc, type PpcCore } from "./instructions.ts";
import { type SprName, SPRS } from "./registers.ts";

const ALL: readonly PpcCore[] = ["book3s-64", "book3s-32", "booke"];
const BOOK3S: readonly PpcCore[] = ["book3s-64", "book3s-32"];
const BOOK3S_64: readonly PpcCore[] = ["book3s-64"];
const BOOK3S_32: readonly PpcCore[] = ["book3s-32"];
const BOOKE: readonly PpcCore[] = ["booke"];
const WIDTH_32: readonly PpcCore[] = ["book3s-32", "booke"];

type Row = readonly [name: string, cores: readonly PpcCore[], word: number];

const TARGET = { RA: 4 } as const;

const FORMS: readonly Row[] = [
  ["lbz", ALL, encodePpc("lbz", { RT: 3, D: 0, ...TARGET })],
  ["lhz", ALL, encodePpc("lhz", { RT: 3, D: 0, ...TARGET })],
  ["lwz", ALL, encodePpc("lwz", { RT: 3, D: 0, ...TARGET })],
  ["ld", BOOK3S_64, encodePpc("ld", { RT: 3, DS: 0, ...TARGET })],
  ["lwbrx", ALL, encodePpc("lwbrx", { RT: 3, RA: 0, RB: 4 })],
  ["stb", ALL, encodePpc("stb", { RS: 3, D: 0, ...TARGET })],
  ["sth", ALL, encodePpc("sth", { RS: 3, D: 0, ...TARGET })],
  ["stw", ALL, encodePpc("stw", { RS: 3, D: 0, ...TARGET })],
  ["std", BOOK3S_64, encodePpc("std", { RS: 3, DS: 0, ...TARGET })],
  ["stwbrx", ALL, encodePpc("stwbrx", { RS: 3, RA: 0, RB: 4 })],
  ["dcbst", ALL, encodePpc("dcbst", { RA: 0, RB: 4 })],
  ["icbi", ALL, encodePpc("icbi", { RA: 0, RB: 4 })],
  ["sync", ALL, encodePpc("sync", {})],
  ["isync", ALL, encodePpc("isync", {})],
  ["bctrl", ALL, PPC_BCTRL],
  ["work", ALL, encodePpc("bc", { BO: BO_COUNT, BI: 0, BD: 0 })],
  ["sc", ALL, PPC_SC],
  ["rfi", WIDTH_32, encodePpc("rfi", {})],
  ["rfid", BOOK3S_64, encodePpc("rfid", {})],
  ["mftb", ALL, encodePpc("mftb", { RT: 3, SPR: SPRS.TBRL })],
  ["mfmsr", ALL, encodePpc("mfmsr", { RT: 3 })],
  ["mtmsr", ALL, encodePpc("mtmsr", { RS: 3 })],
  ["mtmsrd", BOOK3S_64, encodePpc("mtmsrd", { RS: 3 })],
  ["mtmsrd 1", BOOK3S_64, encodePpc("mtmsrd", { RS: 3, L15: 1 })],
  ["wrtee", BOOKE, encodePpc("wrtee", { RS: 3 })],
  ["wrteei 0", BOOKE, encodePpc("wrteei", { E: 0 })],
  ["wrteei 1", BOOKE, encodePpc("wrteei", { E: 1 })],
  ["tlbsync", ALL, encodePpc("tlbsync", {})],
  ["mtsrin", BOOK3S_32, encodePpc("mtsrin", { RS: 3, RB: 4 })],
  ["mfsrin", BOOK3S_32, encodePpc("mfsrin", { RT: 3, RB: 4 })],
  ...accesses(ALL, "rw", "SPRG0", "SPRG1", "SPRG2", "SPRG3", "SRR0", "SRR1", "DEC"),
  ...accesses(ALL, "r", "PVR"),
  ...accesses(BOOK3S, "rw", "DAR", "DSISR"),
  ...accesses(BOOK3S, "r", "PIR"),
  ...accesses(BOOKE, "rw", "DEAR", "ESR", "TSR", "TCR", "SPRG4", "SPRG5", "SPRG6", "SPRG7"),
  ...accesses(BOOKE, "rw", "MAS0", "MAS1", "MAS2", "MAS3", "MAS4", "MAS6", "MAS7"),
  ...accesses(BOOKE, "r", "BOOKE_PIR", "SPRG4R", "SPRG5R", "SPRG6R", "SPRG7R"),
  ...accesses(BOOKE, "w", "IVPR", "IVOR2", "IVOR3", "IVOR4", "IVOR6", "IVOR8", "IVOR10"),
];

function accesses(cores: readonly PpcCore[], how: "r" | "w" | "rw", ...names: readonly SprName[]): Row[] {
  const rows: Row[] = [];
  for (const name of names) {
    if (how !== "w") rows.push([`mf ${name}`, cores, ppcAsm.mfspr(3, SPRS[name])]);
    if (how !== "r") rows.push([`mt ${name}`, cores, ppcAsm.mtspr(SPRS[name], 3)]);
  }
  return rows;
}

const OPCODES: ReadonlyMap<string, number> = new Map(FORMS.map(([name], index) => [name, index + 1]));

/** The opcode of an instruction that guests yield. Throws `RangeError` where there is none with that name. */
export function ppcOpcode(name: string): number {
  const opcode = OPCODES.get(name);
  if (opcode === undefined) {
    throw new RangeError(`Cannot build ${name}: guest functions have no site for it`);
  }
  return opcode;
}

/** A trap that always traps: what fills a block. */
const TRAP = encodePpc("tw", { TO: 31, RA: 0, RB: 0 });

function layoutOf(core: PpcCore): BlockLayout {
  const forms = FORMS.flatMap(([, cores, word], index) =>
    cores.includes(core) ? [{ opcode: index + 1, text: disassemblePpc(word), units: [word] }] : []
  );
  return new BlockLayout({
    unitBytes: 4,
    // Book3S has its vectors 256 bytes apart; BookE puts them where the guest wants them, and has more instructions.
    size: core === "booke" ? 0x200 : 0x100,
    entry: [PPC_NOP],
    forms,
    returns: ppcOpcode(core === "book3s-64" ? "rfid" : "rfi"),
    pad: [TRAP],
  });
}

/** The layout of a block of text, by core. */
export const PPC_BLOCKS: Readonly<Record<PpcCore, BlockLayout>> = {
  "book3s-64": layoutOf("book3s-64"),
  "book3s-32": layoutOf("book3s-32"),
  booke: layoutOf("booke"),
};

/** Where functions are placed when nothing else is said: 64 KiB, above every vector. */
export const PPC_TEXT_BASE = 0x1_0000;

/** Text for a core, whose functions stand one behind the other from `base`. */
export function ppcText(core: PpcCore, base: number = PPC_TEXT_BASE): MachineText<PpcCpu> {
  return new MachineText(PPC_BLOCKS[core], base);
}
