import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  decodePpc,
  disassemblePpc,
  encodePpc,
  extractField,
  fieldMask,
  insertField,
  INSTRUCTION_FIELDS,
  type InstructionFieldName,
  isPrivilegedPpc,
  PPC_INSTRUCTIONS,
  ppcAsm,
  type PpcMnemonic,
  type PpcOperands,
  SPRS,
} from "../../../abi/mod.ts";

const mnemonics = Object.keys(PPC_INSTRUCTIONS) as PpcMnemonic[];
const fieldsOf = (name: PpcMnemonic) =>
  PPC_INSTRUCTIONS[name].fields.split(" ").filter((field) => field !== "") as InstructionFieldName[];

/** Any value that a field can hold. */
function valueOf(name: InstructionFieldName): fc.Arbitrary<number> {
  const { pieces, scale, signed } = INSTRUCTION_FIELDS[name];
  const bits = pieces.reduce((sum, [, width]) => sum + width, 0);
  const [min, max] = signed ? [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] : [0, 2 ** bits - 1];
  return fc.integer({ min, max }).map((value) => value * 2 ** scale);
}

describe("PowerPC instruction words", () => {
  it("are what an assembler makes of their text", () => {
    // Words that an independent assembler made of these texts.
    const golden: readonly (readonly [word: number, text: string])[] = [
      [0x4400_0002, "sc"],
      [0x4400_0022, "sc 1"],
      [0x6000_0000, "nop"],
      [0x3c00_4b56, "lis r0,0x4b56"],
      [0x6000_4d21, "ori r0,r0,0x4d21"],
      [0x3fe0_ffff, "lis r31,0xffff"],
      [0x3ca1_f000, "addis r5,r1,0xf000"],
      [0x73de_8002, "andi. r30,r30,0x8002"],
      [0x4e80_0020, "blr"],
      [0x3860_ffff, "li r3,-1"],
      [0x7c60_00a6, "mfmsr r3"],
      [0x7c70_42a6, "mfspr r3,SPRG0"],
      [0x7c73_43a6, "mtspr SPRG3,r3"],
      [0x7fda_02a6, "mfspr r30,SRR0"],
      [0x7c7b_03a6, "mtspr SRR1,r3"],
      [0x7c1d_0aa6, "mfspr r0,DEAR"],
      [0x7c7e_0ba6, "mtspr ESR,r3"],
      [0x7c01_0164, "mtmsrd r0,1"],
      [0x7c00_0164, "mtmsrd r0,0"],
      [0x7c00_0124, "mtmsr r0"],
      [0x7c00_0106, "wrtee r0"],
      [0x7c00_8146, "wrteei 1"],
      [0x7c00_0146, "wrteei 0"],
      [0x7c00_01e4, "mtsrin r0,r0"],
      [0x7c00_046c, "tlbsync"],
      [0xe860_f058, "ld r3,-4008(0)"],
      [0x4c00_0024, "rfid"],
      [0x4c00_0064, "rfi"],
      [0x7863_07c6, "rldicr r3,r3,32,31"],
      [0x57ff_0420, "rlwinm r31,r31,0,16,16"],
    ];
    for (const [word, text] of golden) assertEquals(disassemblePpc(word), text);
  });

  it("come out of the decoder as they went into the encoder, whatever their operands", () => {
    const instruction = fc.constantFrom(...mnemonics).chain((name) =>
      fc.record(Object.fromEntries(fieldsOf(name).map((field) => [field, valueOf(field)])))
        .map((operands) => ({ name, operands }))
    );
    fc.assert(fc.property(instruction, ({ name, operands }) => {
      const word = encodePpc(name, operands as unknown as PpcOperands<typeof name>);
      const decoded = decodePpc(word)! as unknown as Record<string, number | string>;
      assertEquals(decoded, { name, word, ...operands });
    }));
  });

  it("of any value decode to what encodes to them, or to nothing", () => {
    fc.assert(
      fc.property(fc.nat(0xffff_ffff), (word) => {
        const decoded = decodePpc(word);
        if (decoded === undefined) return disassemblePpc(word).startsWith(".long");
        return encodePpc(decoded.name, decoded as unknown as PpcOperands<typeof decoded.name>) === word;
      }),
      { numRuns: 5000 },
    );
  });

  it("mean one instruction each: no two rows of the table share a word", () => {
    for (const a of mnemonics) {
      for (const b of mnemonics) {
        if (a >= b) continue;
        const open = (name: PpcMnemonic) => fieldsOf(name).reduce((bits, f) => bits | fieldMask(f), 0);
        const fixed = ~(open(a) | open(b));
        const differ = ((PPC_INSTRUCTIONS[a].word ^ PPC_INSTRUCTIONS[b].word) & fixed) !== 0;
        assertStrictEquals(differ, true, `${a} and ${b}`);
      }
    }
  });

  it("with reserved bits set are no instructions", () => {
    assertEquals(decodePpc(0x7c00_00a7), undefined); // mfmsr with Rc
    assertEquals(decodePpc(0x7c00_0464 | 0x0020_0000), undefined);
    assertEquals(decodePpc(0x0200_0044), undefined); // sc, its bytes reversed
    assertEquals(decodePpc(0), undefined);
    assertEquals(decodePpc(0x4400_0000), undefined); // scv's opcode without its bit
  });

  it("refuse operands that their fields cannot hold", () => {
    assertThrows(() => encodePpc("ld", { RT: 3, DS: 6, RA: 0 }), RangeError, "multiples of 4");
    assertThrows(() => encodePpc("addi", { RT: 32, RA: 0, SI: 0 }), RangeError, "Cannot encode RT 32");
    assertThrows(() => encodePpc("addi", { RT: 3, RA: 0, SI: 0x8000 }), RangeError, "-32768 to 32767");
    assertThrows(() => encodePpc("ori", { RA: 3, RS: 0, UI: -1 }), RangeError, "Cannot encode UI -1");
    assertThrows(() => ppcAsm.b(0, 2 ** 25), RangeError, "Cannot encode LI");
    assertEquals(ppcAsm.b(2 ** 25, 0), 0x4a00_0000);
    // @ts-expect-error mfmsr has no RS
    assertThrows(() => encodePpc("mfmsr", { RS: 3 }) && encodePpc("mfmsr", { RT: -1 }), RangeError);
  });

  it("that touch supervisor registers are privileged, by bit 4 of the register's number", () => {
    const privileged = (word: number) => isPrivilegedPpc(decodePpc(word)!);
    for (const spr of [SPRS.SPRG0, SPRS.SRR0, SPRS.DAR, SPRS.MAS0, SPRS.PIR]) {
      assertEquals([privileged(ppcAsm.mfspr(3, spr)), privileged(ppcAsm.mtspr(spr, 3))], [true, true]);
    }
    for (const spr of [SPRS.LR, SPRS.CTR, SPRS.XER, SPRS.USPRG3, SPRS.SPRG4R]) {
      assertEquals(privileged(ppcAsm.mfspr(3, spr)), false);
    }
    assertEquals(privileged(encodePpc("tlbsync", {})), true);
    assertEquals(privileged(encodePpc("sc", { LEV: 1 })), false);
  });
});

describe("a field of an instruction word", () => {
  it("is read as it was written, and leaves the other bits alone", () => {
    const names = Object.keys(INSTRUCTION_FIELDS) as InstructionFieldName[];
    const field = fc.constantFrom(...names).chain((name) => fc.tuple(fc.constant(name), valueOf(name)));
    fc.assert(fc.property(field, fc.nat(0xffff_ffff), ([name, value], word) => {
      const written = insertField(word, name, value);
      assertEquals(extractField(written, name), value);
      assertEquals(((written ^ word) & ~fieldMask(name)) >>> 0, 0);
    }));
  });

  it("holds a special-purpose register's number with its halves exchanged", () => {
    assertEquals(insertField(0, "SPR", 0x110), (0x10 << 16) | (0x8 << 11));
    assertEquals(extractField(0x7c1d_0aa6, "SPR"), SPRS.DEAR);
  });
});
