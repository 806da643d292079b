import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { MIPS_GPR, MIPS_STATUS_CU1, mipsKseg0 } from "../../../abi/mod.ts";
import { floatingPointBranchOf } from "../../../host/mips/branches.ts";
import { MipsRig, ORDERS } from "../../support/mips.ts";

const STUB = mipsKseg0(0x6000);
const DATA = 0x4000;
const JR_RA = 0x03e0_0008;
const U64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
const IMMEDIATE = fc.integer({ min: -0x8000, max: 0x7fff });
const { s0, s1, s2, zero } = MIPS_GPR;

const s32 = (value: bigint) => BigInt.asUintN(64, BigInt.asIntN(32, value));
const u64 = (value: bigint) => BigInt.asUintN(64, value);

interface Registers {
  readonly s0: bigint;
  readonly s1: bigint;
}

/** Executes one word with s0 and s1 loaded, and gives s2. */
function execute(word: number, { s0: a, s1: b }: Registers): bigint {
  const rig = new MipsRig();
  rig.text.addWords(STUB, [word >>> 0, JR_RA, 0]);
  let result = 0n;
  rig.run(function* (cpu) {
    cpu.setRegister(s0, a);
    cpu.setRegister(s1, b);
    yield cpu.call(STUB);
    result = cpu.gpr("s2");
    assertEquals([cpu.gpr("s0"), cpu.gpr("s1")], [a, b]);
  });
  return result;
}

/** An instruction with an immediate: s0 to s2. */
function immediate(opcode: number, value: number): number {
  return (opcode << 26) | (s0 << 21) | (s2 << 16) | (value & 0xffff);
}

/** One with two registers: s0 and s1 to s2. */
function special(f: number): number {
  return (s0 << 21) | (s1 << 16) | (s2 << 11) | f;
}

/** By name: the word for an immediate, and what it comes to. */
const IMMEDIATES = {
  addiu: [(i) => immediate(0x09, i), (a, i) => s32(a + BigInt(i))],
  daddiu: [(i) => immediate(0x19, i), (a, i) => u64(a + BigInt(i))],
  andi: [(i) => immediate(0x0c, i), (a, i) => a & BigInt(i & 0xffff)],
  ori: [(i) => immediate(0x0d, i), (a, i) => a | BigInt(i & 0xffff)],
  lui: [(i) => (0x0f << 26) | (s2 << 16) | (i & 0xffff), (_, i) => s32(BigInt(i & 0xffff) << 16n)],
} satisfies Record<string, [(i: number) => number, (a: bigint, i: number) => bigint]>;

const THREES = {
  addu: [special(0x21), (a, b) => s32(a + b)],
  daddu: [special(0x2d), (a, b) => u64(a + b)],
  or: [special(0x25), (a, b) => a | b],
  "sll by 5": [(s1 << 16) | (s2 << 11) | (5 << 6), (_, b) => s32(b << 5n)],
} satisfies Record<string, [number, (a: bigint, b: bigint) => bigint]>;

describe("MIPS instructions", () => {
  for (const [name, [word, expected]] of Object.entries(IMMEDIATES)) {
    it(`${name}, for any register and immediate`, () => {
      fc.assert(
        fc.property(
          U64,
          IMMEDIATE,
          (a, i) => assertEquals(execute(word(i), { s0: a, s1: 0n }), expected(a, i)),
        ),
        { numRuns: 30 },
      );
    });
  }

  for (const [name, [word, expected]] of Object.entries(THREES)) {
    it(`${name}, for any registers`, () => {
      fc.assert(
        fc.property(U64, U64, (a, b) => assertEquals(execute(word, { s0: a, s1: b }), expected(a, b))),
        { numRuns: 30 },
      );
    });
  }

  it("drop what they write to register 0", () => {
    const rig = new MipsRig();
    rig.text.addWords(STUB, [(0x0d << 26) | (zero << 16) | 1, (zero << 21) | (s2 << 11) | 0x25, JR_RA, 0]);
    rig.run(function* (cpu) {
      cpu.setRegister(s2, 9);
      yield cpu.call(STUB); // ori zero, zero, 1; or s2, zero, zero
      assertEquals([cpu.gpr("zero"), cpu.gpr("s2")], [0n, 0n]);
    });
  });
});

describe("MIPS loads and stores", () => {
  const bytes = [0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7, 0xf8];
  const big = 0x8192_a3b4_c5d6_e7f8n;
  const little = 0xf8e7_d6c5_b4a3_9281n;
  const take = { big: (n: bigint) => big >> (64n - n), little: (n: bigint) => little & ((1n << n) - 1n) };
  const LOADS = [
    ["lb", 0x20, 8n, true],
    ["lbu", 0x24, 8n, false],
    ["lh", 0x21, 16n, true],
    ["lhu", 0x25, 16n, false],
    ["lw", 0x23, 32n, true],
    ["lwu", 0x27, 32n, false],
    ["ld", 0x37, 64n, false],
  ] as const;
  const STORES = [["sb", 0x28, 1], ["sh", 0x29, 2], ["sw", 0x2b, 4], ["sd", 0x3f, 8]] as const;

  for (const order of ORDERS) {
    for (const [name, opcode, width, signed] of LOADS) {
      it(`${name} takes ${width} bits, ${order}-endian, ${signed ? "sign" : "zero"}-extended, from a negative offset`, () => {
        const rig = new MipsRig({ order });
        rig.vm.memory.load(DATA, Uint8Array.from(bytes));
        rig.text.addWords(STUB, [immediate(opcode, -0x100), JR_RA, 0]);
        rig.run(function* (cpu) {
          cpu.setRegister(s0, 0xffff_ffff_8000_0000n + BigInt(DATA + 0x100));
          yield cpu.call(STUB);
          const value = take[order](width);
          const expected = signed ? u64(BigInt.asIntN(Number(width), value)) : value;
          assertEquals(cpu.gpr("s2"), expected);
        });
      });
    }

    for (const [name, opcode, size] of STORES) {
      it(`${name} writes ${size} bytes and no more, ${order}-endian`, () => {
        const rig = new MipsRig({ order });
        rig.text.addWords(STUB, [immediate(opcode, 0x10), JR_RA, 0]);
        rig.run(function* (cpu) {
          cpu.setRegister(s0, 0xffff_ffff_8000_0000n + BigInt(DATA));
          cpu.setRegister(s2, 0x1122_3344_5566_7788n);
          yield cpu.call(STUB);
        });
        const low = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88].slice(8 - size);
        if (order === "little") low.reverse();
        const around = [0, ...low, ...Array(9 - size).fill(0)];
        assertEquals([...rig.vm.words.bytes(DATA + 0xf, 10)!], around);
      });
    }
  }
});

describe("MIPS branches on the floating-point condition, which is false", () => {
  const AT = 0x8000_0000;
  const CASES = [
    ["bc1f", 0x4500_0004, AT + 4 + 16, false],
    ["bc1t", 0x4501_0004, AT + 8, false],
    ["bc1fl", 0x4502_0004, AT + 4 + 16, false],
    ["bc1tl", 0x4503_0004, AT + 8, true],
    ["bc1f backwards", 0x4500_fffe, AT + 4 - 8, false],
  ] as const;
  for (const [name, word, target, nullifies] of CASES) {
    it(name, () => assertEquals(floatingPointBranchOf(word, AT), { target, nullifies }));
  }

  it("are no other word of coprocessor 1, nor of another", () => {
    for (const word of [0x4400_0000, 0x4600_0000, 0x4520_0000, 0x4100_0000, 0x4900_0000, 0xc500_0000]) {
      assertEquals(floatingPointBranchOf(word, AT), undefined);
    }
  });

  it("nullify the delay slot of a likely one that is not taken: a HYPCALL there does not exit", () => {
    const rig = new MipsRig();
    rig.text.addWords(STUB, [0x4503_0004, 0x4200_0028, JR_RA, 0]);
    rig.run(function* (cpu) {
      yield cpu.mfc0Status();
      yield cpu.mtc0Status(cpu.value32 | MIPS_STATUS_CU1);
      yield cpu.call(STUB);
    });
    assertEquals([rig.vm.exits(), rig.vm.finished], [{}, true]);
  });
});
