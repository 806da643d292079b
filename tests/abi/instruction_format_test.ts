import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  assembleInstruction,
  disassembleInstruction,
  instructionBytes,
  type InstructionFormat,
  MIPS_HYPCALL,
  X86_VMCALL,
  X86_VMMCALL,
} from "../../abi/mod.ts";
import { CONVENTIONS } from "../support/conventions.ts";

const FORMATS: readonly InstructionFormat[] = CONVENTIONS.flatMap(({ instructions }) => instructions);
const ORDERS = ["little", "big"] as const;

describe("instructions as formats", () => {
  it("x86's are strings of bytes: no byte order changes them", () => {
    for (const order of ORDERS) {
      assertEquals([...assembleInstruction(X86_VMCALL, order)], [0x0f, 0x01, 0xc1]);
      assertEquals([...assembleInstruction(X86_VMMCALL, order)], [0x0f, 0x01, 0xd9]);
    }
  });

  it("MIPS' HYPCALL is a word of the processor's byte order, and its code is bits 20 to 11", () => {
    assertEquals([...assembleInstruction(MIPS_HYPCALL, "big")], [0x42, 0x00, 0x00, 0x28]);
    assertEquals([...assembleInstruction(MIPS_HYPCALL, "little")], [0x28, 0x00, 0x00, 0x42]);
    assertEquals([...assembleInstruction(MIPS_HYPCALL, "big", { code: 5 })], [0x42, 0x00, 0x28, 0x28]);
    assertEquals([...assembleInstruction(MIPS_HYPCALL, "big", { code: 0x3ff })], [0x42, 0x1f, 0xf8, 0x28]);
  });

  it("a field refuses what it cannot hold", () => {
    for (const code of [-1, 0x400, 0.5, NaN]) {
      assertThrows(
        () => assembleInstruction(MIPS_HYPCALL, "big", { code }),
        RangeError,
        `Cannot assemble HYPCALL with code = ${code}: allowed are 0 to 1023`,
      );
    }
  });

  it("whatever fields are assembled come back, in both byte orders", () => {
    for (const format of FORMATS) {
      const fields = Object.fromEntries(
        Object.entries(format.fields).map((
          [name, { bits }],
        ) => [name, fc.integer({ min: 0, max: 2 ** bits - 1 })]),
      );
      fc.assert(fc.property(fc.record(fields), fc.constantFrom(...ORDERS), (values, order) => {
        const bytes = assembleInstruction(format, order, values);
        assertEquals(bytes.length, instructionBytes(format));
        assertEquals(disassembleInstruction(format, order, bytes), { ...values });
      }));
    }
  });

  it("one flipped bit is another instruction, unless a field holds it", () => {
    for (const format of FORMATS) {
      const bytes = assembleInstruction(format, "big");
      const open = Object.values(format.fields).reduce((sum, { bits }) => sum + bits, 0);
      let accepted = 0;
      for (let bit = 0; bit < 8 * bytes.length; bit++) {
        const flipped = bytes.slice();
        flipped[bit >> 3] ^= 1 << (bit & 7);
        if (disassembleInstruction(format, "big", flipped) !== undefined) accepted++;
      }
      assertEquals(accepted, open, format.name);
    }
  });

  it("the other byte order, or too few bytes, are no instruction", () => {
    const bytes = assembleInstruction(MIPS_HYPCALL, "big");
    assertEquals(disassembleInstruction(MIPS_HYPCALL, "little", bytes), undefined);
    assertEquals(disassembleInstruction(MIPS_HYPCALL, "big", bytes.subarray(0, 3)), undefined);
    assertEquals(disassembleInstruction(MIPS_HYPCALL, "big", bytes), { code: 0 });
  });
});
