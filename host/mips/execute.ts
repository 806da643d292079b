/**
 * A small MIPS64 interpreter: what guests yield, and what calls into memory need besides (MIPS64 Architecture, volume II).
 * Everything else is a reserved instruction.
 *
 * @module
 */

import {
  hex,
  MIPS_CP0,
  MIPS_HYPCALL,
  MIPS_STATUS_CU0,
  MIPS_STATUS_CU1,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  type MipsException,
  mipsRegisterAddress,
} from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { branchOf, floatingPointBranchOf } from "./branches.ts";
import { deliverException } from "./exceptions.ts";
import { kernelMode, type MipsNowhere, mipsPhysical } from "./segments.ts";
import type { MipsVcpu } from "./vcpu.ts";

const COP0 = 0x10;
const COP1 = 0x11;
const MF = 0;
const DMF = 1;
const MT = 4;
const DMT = 5;
const CO = 0x10;
const ERET = 0x18;
const HYPCALL: number = MIPS_HYPCALL.units[0] & 0x3f;
/** What HYPCALL leaves zero: bits 24 to 21, and 10 to 6. */
const HYPCALL_ZERO = 0x01e0_07c0;

/** Loads and stores: the bytes, and whether a load is sign-extended. */
const ACCESSES: Readonly<Record<number, readonly [bytes: 1 | 2 | 4 | 8, store: boolean, signed: boolean]>> = {
  0x20: [1, false, true], // LB
  0x21: [2, false, true], // LH
  0x23: [4, false, true], // LW
  0x24: [1, false, false], // LBU
  0x25: [2, false, false], // LHU
  0x27: [4, false, false], // LWU
  0x37: [8, false, false], // LD
  0x28: [1, true, false], // SB
  0x29: [2, true, false], // SH
  0x2b: [4, true, false], // SW
  0x3f: [8, true, false], // SD
};

/** What becomes of a fetch or load that leads nowhere, and of a store. */
const LOAD_FAULTS: Readonly<Record<MipsNowhere, MipsException>> = { "address error": "AdEL", TLB: "TLBL" };
const STORE_FAULTS: Readonly<Record<MipsNowhere, MipsException>> = { "address error": "AdES", TLB: "TLBS" };

/** Fetches the instruction at the program counter and executes it. */
export function executeMips(vcpu: MipsVcpu): void {
  const { context, vm } = vcpu;
  const { pc } = context;
  const address = (pc & 3) === 0 ? mipsPhysical(context, mipsRegisterAddress(pc)) : "address error";
  if (typeof address === "string") {
    return deliverException(vcpu, LOAD_FAULTS[address], { badVAddr: mipsRegisterAddress(pc) });
  }
  const word = vm.words.read(address, 4);
  if (word === undefined) return vcpu.leaveForMemory(mipsRegisterAddress(pc), "fetch");
  vcpu.charge(vm.cost.insn);
  const registers = vcpu.registers;
  const slot = vcpu.branchTarget;
  const branch = branchOf(word, pc, registers) ?? floatingPointBranchOf(word, pc);
  if (branch !== undefined) {
    if (word >>> 26 === COP1 && (context.sys[2 * MIPS_CP0.status] & MIPS_STATUS_CU1) === 0) {
      return deliverException(vcpu, "CpU", { coprocessor: 1 });
    }
    // Of the branches only jumps to registers have this opcode.
    if (word >>> 26 === 0) must32(registers.get((word >>> 21) & 0x1f));
    if (slot !== undefined) throw vcpu.error("a branch stands in the delay slot of another: UNPREDICTABLE");
    if (branch.target === pc && countsDown(vcpu, word)) return;
    vcpu.previousWord = word;
    context.pc = pc + (branch.nullifies ? 8 : 4);
    vcpu.branchTarget = branch.nullifies ? undefined : branch.target;
    return;
  }
  if (!perform(vcpu, word)) return; // It caused an exception or an exit, or has set the program counter itself.
  vcpu.branchTarget = undefined;
  context.pc = slot ?? pc + 4;
}

/** How many turns of a loop are taken in one step at most. */
const TURNS = 0x10_0000;

/**
 * BGTZ to itself over a decrement, the guest's computation: many turns in one step, but not the last one. false where the
 * loop is another one, or on its last turn.
 */
function countsDown(vcpu: MipsVcpu, word: number): boolean {
  const { context, vm, registers } = vcpu;
  const counter = (word >>> 21) & 0x1f;
  const address = mipsPhysical(context, mipsRegisterAddress(context.pc + 4));
  const slot = typeof address === "string" ? undefined : vm.words.read(address, 4);
  if (word !== (BGTZ_SELF | (counter << 21)) >>> 0) return false;
  if (slot !== (ADDIU_MINUS_1 | (counter << 21) | (counter << 16)) >>> 0) return false;
  const left = BigInt.asIntN(64, registers.get(counter));
  const turns = left - 1n < TURNS ? Number(left - 1n) : TURNS;
  if (turns <= 0) return false;
  registers.set(counter, left - BigInt(turns));
  vcpu.charge((2 * turns - 1) * vm.cost.insn); // The branch itself is paid for.
  vcpu.instructions += 2 * turns - 1;
  return true;
}

const BGTZ_SELF = 0x1c00_ffff;
const ADDIU_MINUS_1 = 0x2400_ffff;

/** Executes what is no branch. false where the program counter does not go on by itself. */
function perform(vcpu: MipsVcpu, word: number): boolean {
  const opcode = word >>> 26;
  const rs = (word >>> 21) & 0x1f;
  const rt = (word >>> 16) & 0x1f;
  const immediate = BigInt((word << 16) >> 16);
  const unsigned = BigInt(word & 0xffff);
  const { registers } = vcpu;
  if (opcode in ACCESSES) return access(vcpu, word);
  switch (opcode) {
    case 0x00:
      return special(vcpu, word);
    case COP0:
      return coprocessor0(vcpu, word);
    case 0x09: // ADDIU
      registers.set(rt, word32(registers.get(rs) + immediate));
      return true;
    case 0x19: // DADDIU
      registers.set(rt, registers.get(rs) + immediate);
      return true;
    case 0x0c: // ANDI
      registers.set(rt, registers.get(rs) & unsigned);
      return true;
    case 0x0d: // ORI
      registers.set(rt, registers.get(rs) | unsigned);
      return true;
    case 0x0f: // LUI
      registers.set(rt, word32(unsigned << 16n));
      return true;
  }
  return reserved(vcpu);
}

function special(vcpu: MipsVcpu, word: number): boolean {
  const { registers } = vcpu;
  const a = registers.get((word >>> 21) & 0x1f);
  const b = registers.get((word >>> 16) & 0x1f);
  const rd = (word >>> 11) & 0x1f;
  switch (word & 0x3f) {
    case 0x00: // SLL; NOP where everything is zero
      registers.set(rd, word32(b << BigInt((word >>> 6) & 0x1f)));
      return true;
    case 0x0f: // SYNC
      return true;
    case 0x0c:
      deliverException(vcpu, "Sys");
      return false;
    case 0x0d:
      deliverException(vcpu, "Bp");
      return false;
    case 0x21: // ADDU
      registers.set(rd, word32(a + b));
      return true;
    case 0x2d: // DADDU
      registers.set(rd, a + b);
      return true;
    case 0x25: // OR
      registers.set(rd, a | b);
      return true;
  }
  return reserved(vcpu);
}

function access(vcpu: MipsVcpu, word: number): boolean {
  const [bytes, store, signed] = ACCESSES[word >>> 26];
  const { registers, vm } = vcpu;
  const rt = (word >>> 16) & 0x1f;
  const address = BigInt.asUintN(64, registers.get((word >>> 21) & 0x1f) + BigInt((word << 16) >> 16));
  const aligned = address % BigInt(bytes) === 0n;
  const at = aligned ? mipsPhysical(vcpu.context, address) : "address error";
  if (typeof at === "string") {
    deliverException(vcpu, (store ? STORE_FAULTS : LOAD_FAULTS)[at], { badVAddr: address });
    return false;
  }
  vcpu.charge(store ? vm.cost.store : vm.cost.load);
  if (store) {
    if (vm.words.write(at, bytes, registers.get(rt))) return true;
  } else {
    const value = bytes === 8 ? vm.words.read64(at) : vm.words.read(at, bytes);
    if (value !== undefined) {
      registers.set(rt, signed ? BigInt.asIntN(8 * bytes, BigInt(value)) : BigInt(value));
      return true;
    }
  }
  vcpu.leaveForMemory(address, store ? "store" : "load");
  return false;
}

function coprocessor0(vcpu: MipsVcpu, word: number): boolean {
  const { context, registers } = vcpu;
  const status = context.sys[2 * MIPS_CP0.status];
  if (!kernelMode(context) && (status & MIPS_STATUS_CU0) === 0) {
    deliverException(vcpu, "CpU");
    return false;
  }
  const rs = (word >>> 21) & 0x1f;
  const rt = (word >>> 16) & 0x1f;
  const number = 8 * ((word >>> 11) & 0x1f) + (word & 7);
  if ((rs & CO) !== 0) return operation(vcpu, word);
  switch (rs) {
    case MF:
      registers.set(rt, word32(read(vcpu, number)));
      return true;
    case DMF:
      registers.set(rt, read(vcpu, number));
      return true;
    case MT:
      write(vcpu, number, word32(registers.get(rt)));
      return true;
    case DMT:
      write(vcpu, number, registers.get(rt));
      return true;
  }
  return reserved(vcpu);
}

function operation(vcpu: MipsVcpu, word: number): boolean {
  const { context } = vcpu;
  if ((word & 0x3f) === HYPCALL && (word & HYPCALL_ZERO) === 0) {
    // Without a hypervisor the instruction does not exist.
    if (vcpu.vm.host === "none") return reserved(vcpu);
    vcpu.leaveForHypercall(word);
    return false;
  }
  if ((word & 0x01ff_ffff) === ERET) {
    const erl = (context.sys[2 * MIPS_CP0.status] & MIPS_STATUS_ERL) !== 0;
    context.sys[2 * MIPS_CP0.status] &= ~(erl ? MIPS_STATUS_ERL : MIPS_STATUS_EXL);
    const epc = erl ? MIPS_CP0.errorEpc : MIPS_CP0.epc;
    must32(context.system(epc));
    context.pc = context.sys[2 * epc];
    vcpu.leaveHandler();
    return false;
  }
  return reserved(vcpu);
}

const KNOWN: ReadonlySet<number> = new Set(Object.values(MIPS_CP0));

function read(vcpu: MipsVcpu, number: number): bigint {
  must(vcpu, number);
  return number === MIPS_CP0.count ? BigInt(vcpu.count()) : vcpu.context.system(number);
}

function write(vcpu: MipsVcpu, number: number, value: bigint): void {
  must(vcpu, number);
  if (number === MIPS_CP0.count) vcpu.setCount(Number(value & 0xffff_ffffn));
  else if (number !== MIPS_CP0.badVAddr && number !== MIPS_CP0.prid) vcpu.context.setSystem(number, value);
}

/** What other registers do is not modelled, and that is said aloud. */
function must(vcpu: MipsVcpu, number: number): void {
  if (KNOWN.has(number)) return;
  throw vcpu.error(
    `coprocessor 0 register ${number >>> 3}, select ${number & 7}, is not modelled (word at ${
      hex(vcpu.context.pc)
    })`,
  );
}

function reserved(vcpu: MipsVcpu): false {
  deliverException(vcpu, "RI");
  return false;
}

/** Code is in the 32-bit segments: elsewhere it is not modelled, and that is said aloud. */
function must32(address: bigint): void {
  if (BigInt.asUintN(64, word32(address)) === address) return;
  throw new NotModelled(
    `MIPS code at ${hex(address)}`,
    "MIPS64 Architecture, volume III: xuseg, xkphys, xkseg",
  );
}

/** A 32-bit result as 64-bit registers hold it. */
function word32(value: bigint): bigint {
  return BigInt.asIntN(32, value);
}
