import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  type MachineFunction,
  MIPS_GPR,
  MIPS_STATUS_CU1,
  type MipsCpu,
  type MipsGpr,
  mipsKseg0,
} from "../../../abi/mod.ts";
import { branchOf } from "../../../host/mod.ts";
import { MIPS_KVMS, MipsRig, ORDERS } from "../../support/mips.ts";

const NOP = 0;
const HYPCALL = 0x4200_0028;
const JR_RA = 0x03e0_0008;
/** ADDIU t2, zero, 1. */
const MARK = 0x240a_0001;
/** ADDIU t3, t3, 1. */
const COUNT = 0x256b_0001;

/** Where tests put words. */
const STUB = mipsKseg0(0x6000);

/**
 * A branch with HYPCALL in its delay slot, two words that only the way through executes, and a return:
 *
 *     0  branch to 16
 *     4  hypcall
 *     8  addiu t2, zero, 1
 *     12 nop
 *     16 addiu t3, t3, 1
 *     20 jr ra
 */
function stub(branch: number): number[] {
  return [branch, HYPCALL, MARK, NOP, COUNT, JR_RA, NOP];
}

interface Case {
  readonly name: string;
  readonly word: number;
  readonly registers: Partial<Record<MipsGpr, bigint>>;
  readonly taken: boolean;
  /** A branch-likely that is not taken: there is no call. */
  readonly nullified?: boolean;
  /** ra is what the branch links: there is no way back by it. */
  readonly links?: boolean;
}

const S0 = MIPS_GPR.s0 << 21;
const S1 = MIPS_GPR.s1 << 16;
const TO_16 = 3; // From the delay slot, in words.
const MINUS = 0xffff_ffff_ffff_fff0n;
const LARGE = 1n << 40n;

const CASES: readonly Case[] = [
  { name: "beq taken", word: 0x1000_0000 | S0 | S1 | TO_16, registers: { s0: 5n, s1: 5n }, taken: true },
  { name: "beq not taken", word: 0x1000_0000 | S0 | S1 | TO_16, registers: { s0: 5n, s1: 6n }, taken: false },
  {
    name: "beq: all 64 bits count",
    word: 0x1000_0000 | S0 | S1 | TO_16,
    registers: { s0: LARGE, s1: 0n },
    taken: false,
  },
  { name: "bne taken", word: 0x1400_0000 | S0 | S1 | TO_16, registers: { s0: 5n, s1: 6n }, taken: true },
  { name: "bne not taken", word: 0x1400_0000 | S0 | S1 | TO_16, registers: { s0: 5n, s1: 5n }, taken: false },
  { name: "blez of a negative", word: 0x1800_0000 | S0 | TO_16, registers: { s0: MINUS }, taken: true },
  { name: "blez of zero", word: 0x1800_0000 | S0 | TO_16, registers: { s0: 0n }, taken: true },
  { name: "blez of a positive", word: 0x1800_0000 | S0 | TO_16, registers: { s0: LARGE }, taken: false },
  { name: "bgtz of a positive", word: 0x1c00_0000 | S0 | TO_16, registers: { s0: LARGE }, taken: true },
  { name: "bgtz of zero", word: 0x1c00_0000 | S0 | TO_16, registers: { s0: 0n }, taken: false },
  { name: "bltz of a negative", word: 0x0400_0000 | S0 | TO_16, registers: { s0: MINUS }, taken: true },
  { name: "bltz of zero", word: 0x0400_0000 | S0 | TO_16, registers: { s0: 0n }, taken: false },
  { name: "bgez of zero", word: 0x0401_0000 | S0 | TO_16, registers: { s0: 0n }, taken: true },
  { name: "bgez of a negative", word: 0x0401_0000 | S0 | TO_16, registers: { s0: MINUS }, taken: false },
  { name: "beql taken", word: 0x5000_0000 | S0 | S1 | TO_16, registers: { s0: 5n, s1: 5n }, taken: true },
  {
    name: "beql not taken",
    word: 0x5000_0000 | S0 | S1 | TO_16,
    registers: { s0: 5n, s1: 6n },
    taken: false,
    nullified: true,
  },
  { name: "bnel taken", word: 0x5400_0000 | S0 | S1 | TO_16, registers: { s0: 5n, s1: 6n }, taken: true },
  {
    name: "bgezl not taken",
    word: 0x0403_0000 | S0 | TO_16,
    registers: { s0: MINUS },
    taken: false,
    nullified: true,
  },
  { name: "j", word: 0x0800_0000 | ((STUB + 16) >>> 2 & 0x03ff_ffff), registers: {}, taken: true },
  {
    name: "jr",
    word: 0x0000_0008 | S0,
    registers: { s0: BigInt.asUintN(64, BigInt((STUB + 16) | 0)) },
    taken: true,
  },
];

/** Calls the stub, and says whether t2 and t3 were reached. */
function callStub(set: Case["registers"], seen: (cpu: MipsCpu) => void): MachineFunction<MipsCpu> {
  return function* (cpu) {
    for (const [name, value] of Object.entries(set)) cpu.setRegister(MIPS_GPR[name as MipsGpr], value!);
    cpu.setRegister(MIPS_GPR.t2, 0);
    cpu.setRegister(MIPS_GPR.t3, 0);
    cpu.loadHypercall({ number: 6n, arguments: [] });
    yield cpu.call(STUB);
    seen(cpu);
  };
}

describe("HYPCALL in a branch delay slot", () => {
  for (const order of ORDERS) {
    for (const { name, word, registers, taken, nullified } of CASES) {
      it(`goes on where the branch goes: ${name}, ${order}-endian`, () => {
        for (const host of MIPS_KVMS) {
          const rig = new MipsRig({ host, order });
          rig.text.addWords(STUB, stub(word >>> 0));
          let found: unknown;
          rig.run(callStub(registers, (cpu) => found = [cpu.gpr("t2"), cpu.gpr("t3"), cpu.gpr("v0") === 6n]));
          assertEquals(found, [taken ? 0n : 1n, 1n, nullified === true]);
          assertEquals(rig.vm.exits(), nullified ? {} : { HC: 1 });
        }
      });
    }
  }

  it("traces the branch's PC at the exit, and the target's at the entry", () => {
    const rig = new MipsRig({ trace: 16 });
    rig.text.addWords(STUB, stub(0x1000_0000 | TO_16));
    rig.run(callStub({}, () => {}));
    const lines = rig.vm.traceText().map((line) => line.slice(line.indexOf(": ") + 2));
    assertEquals(lines.slice(1), [
      "kvm_exit: reason Guest Exit pc 0xffffffff80006000",
      "kvm_exit: reason HC pc 0xffffffff80006000",
      "kvm_reenter: pc 0xffffffff80006010",
    ]);
  });

  it("of a call that ends in user space goes on there all the same", () => {
    const rig = new MipsRig({ host: "imgtec" });
    rig.text.addWords(STUB, stub(0x1000_0000 | TO_16));
    let found: unknown;
    rig.run(function* (cpu) {
      yield cpu.sb(mipsKseg0(0x4000), 0x21);
      cpu.setRegister(MIPS_GPR.t2, 0);
      cpu.setRegister(MIPS_GPR.t3, 0);
      cpu.loadHypercall({ number: 8n, arguments: [0n, 0xffff_ffff_8000_4000n, 1n] });
      yield cpu.call(STUB);
      found = [cpu.gpr("t2"), cpu.gpr("t3")];
    });
    assertEquals([found, rig.vm.userspace.text()], [[0n, 1n], "!"]);
  });

  it("of JAL finds the link that hardware wrote, and KVM writes it once more", () => {
    const rig = new MipsRig();
    const jal = 0x0c00_0000 | ((STUB + 16) >>> 2 & 0x03ff_ffff);
    // At 16: t3 counts; ra is where JAL said, behind the delay slot: 8 sets t2 and falls to 16 again, which returns by s0.
    rig.text.addWords(STUB, [jal, HYPCALL, 0x0200_0008, /* jr s0 */ MARK, COUNT, JR_RA, NOP]);
    let found: unknown;
    rig.run(function* (cpu) {
      const block = rig.text.blocks.at(-1)!.address;
      const back = block + rig.text.layout.behind[3];
      cpu.setRegister(MIPS_GPR.s0, BigInt.asUintN(64, BigInt(back | 0)));
      cpu.setRegister(MIPS_GPR.t2, 0);
      cpu.setRegister(MIPS_GPR.t3, 0);
      cpu.loadHypercall({ number: 6n, arguments: [] });
      yield cpu.call(STUB);
      found = [cpu.gpr("t2"), cpu.gpr("t3"), cpu.gpr("ra")];
    });
    assertEquals(found, [1n, 1n, BigInt.asUintN(64, BigInt((STUB + 8) | 0))]);
  });

  it("of a floating-point condition's branch, which hardware knows, is fatal: but Cavium's host takes it for false", () => {
    const bc1f = 0x4500_0000 | TO_16; // The condition is false.
    const ends = MIPS_KVMS.map((host) => {
      const rig = new MipsRig({ host });
      rig.text.addWords(STUB, stub(bc1f));
      rig.run(function* (cpu) {
        yield cpu.mfc0Status();
        yield cpu.mtc0Status(cpu.value32 | MIPS_STATUS_CU1);
        yield* callStub({}, () => {})(cpu);
      });
      return [rig.vm.ending, rig.vm.vcpus[0].context.pc === STUB];
    });
    const fatal = ["KVM_EXIT_INTERNAL_ERROR: HYPCALL in the delay slot of 45000003", true];
    assertEquals(ends, [fatal, fatal, [undefined, false]]);
  });

  it("in front of a word that is no branch KVM could not tell: it never asks then", () => {
    const registers = { get: () => 0n, set: () => {} };
    for (const word of [NOP, HYPCALL, MARK, 0x4500_0001, /* bc1t */ 0x041c_0001 /* bposge32 */]) {
      assertEquals(branchOf(word >>> 0, STUB, registers), undefined);
    }
  });
});

describe("branches", () => {
  it("go at most 128 KiB far, forward and back, from behind themselves", () => {
    const registers = { get: () => 0n, set: () => {} };
    fc.assert(fc.property(fc.integer({ min: -0x8000, max: 0x7fff }), (offset) => {
      const word = (0x1000_0000 | (offset & 0xffff)) >>> 0;
      assertEquals(branchOf(word, STUB, registers)?.target, STUB + 4 + 4 * offset);
    }));
  });

  it("that jump stay in the 256 MiB of their delay slot", () => {
    const registers = { get: () => 0n, set: () => {} };
    assertEquals(branchOf(0x0800_0000, 0x8fff_fff8, registers)?.target, 0x8000_0000);
    assertEquals(branchOf(0x0800_0000, 0x8fff_fffc, registers)?.target, 0x9000_0000);
  });
});
