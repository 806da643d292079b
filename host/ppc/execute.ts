/**
 * The instructions that problem state may execute, as the Power ISA (3.0B, book I) defines them.
 *
 * @module
 */

import {
  CR_EQ,
  CR_GT,
  CR_LT,
  PPC_CR,
  PPC_CTR,
  PPC_LR,
  PPC_XER,
  type PpcInstruction,
  SPRS,
  XER_CA,
} from "../../abi/mod.ts";
import type { PpcProcessor } from "./processor.ts";

/** What became of an instruction. Where it was executed, the program counter is behind it or at its target. */
export type Executed =
  /** It was executed. */
  | "done"
  /** A system call; the program counter is behind it. */
  | "syscall"
  /** A trap whose condition holds. */
  | "trap"
  /** Memory did not take an access: {@linkcode PpcProcessor.fault} says why. */
  | "data-fault"
  /** The processor has no such instruction, or no such register. */
  | "illegal";

/** Executes an instruction that is not privileged. `timeBase` reads the time base. */
export function execute(p: PpcProcessor, i: PpcInstruction, timeBase: () => bigint): Executed {
  switch (i.name) {
    case "addi":
      return result(p, i.RT, base(p, i.RA) + BigInt(i.SI));
    case "addis":
      return result(p, i.RT, base(p, i.RA) + BigInt(i.SI * 0x1_0000));
    case "subfic": {
      const a = p.gpr(i.RA);
      const immediate = BigInt.asUintN(p.bits, BigInt(i.SI));
      // The carry of ~a + immediate + 1 is that immediate is not below a.
      const width = p.sf ? 64 : 32;
      setCarry(p, BigInt.asUintN(width, immediate) >= BigInt.asUintN(width, a));
      return result(p, i.RT, immediate - a);
    }
    case "add":
      return result(p, i.RT, p.gpr(i.RA) + p.gpr(i.RB), i.RC);
    case "subf":
      return result(p, i.RT, p.gpr(i.RB) - p.gpr(i.RA), i.RC);
    case "neg":
      return result(p, i.RT, -p.gpr(i.RA), i.RC);
    case "andi.":
      return result(p, i.RA, p.gpr(i.RS) & BigInt(i.UI), 1);
    case "andis.":
      return result(p, i.RA, p.gpr(i.RS) & BigInt(i.UI * 0x1_0000), 1);
    case "ori":
      return result(p, i.RA, p.gpr(i.RS) | BigInt(i.UI));
    case "oris":
      return result(p, i.RA, p.gpr(i.RS) | BigInt(i.UI * 0x1_0000));
    case "xori":
      return result(p, i.RA, p.gpr(i.RS) ^ BigInt(i.UI));
    case "xoris":
      return result(p, i.RA, p.gpr(i.RS) ^ BigInt(i.UI * 0x1_0000));
    case "and":
      return result(p, i.RA, p.gpr(i.RS) & p.gpr(i.RB), i.RC);
    case "andc":
      return result(p, i.RA, p.gpr(i.RS) & ~p.gpr(i.RB), i.RC);
    case "or":
      return result(p, i.RA, p.gpr(i.RS) | p.gpr(i.RB), i.RC);
    case "xor":
      return result(p, i.RA, p.gpr(i.RS) ^ p.gpr(i.RB), i.RC);
    case "nor":
      return result(p, i.RA, ~(p.gpr(i.RS) | p.gpr(i.RB)), i.RC);
    case "extsw":
      return result(p, i.RA, BigInt.asIntN(32, p.gpr(i.RS)), i.RC);
    case "rlwinm":
      return result(p, i.RA, rotated32(p.low(i.RS), i.SH) & mask(i.MB + 32, i.ME + 32), i.RC);
    case "rlwimi": {
      const where = mask(i.MB + 32, i.ME + 32);
      return result(p, i.RA, (rotated32(p.low(i.RS), i.SH) & where) | (p.gpr(i.RA) & ~where), i.RC);
    }
    case "rldicl":
      return result(p, i.RA, rotated64(p.gpr(i.RS), i.SH6) & mask(i.MB6, 63), i.RC);
    case "rldicr":
      return result(p, i.RA, rotated64(p.gpr(i.RS), i.SH6) & mask(0, i.ME6), i.RC);
    case "cmpi":
      return compare(p, i.BF, signed(p, i.RA, i.L), BigInt(i.SI));
    case "cmpli":
      return compare(p, i.BF, unsigned(p, i.RA, i.L), BigInt(i.UI));
    case "cmp":
      return compare(p, i.BF, signed(p, i.RA, i.L), signed(p, i.RB, i.L));
    case "cmpl":
      return compare(p, i.BF, unsigned(p, i.RA, i.L), unsigned(p, i.RB, i.L));
    case "lbz":
      return load(p, i.RT, base(p, i.RA) + BigInt(i.D), 1);
    case "lhz":
      return load(p, i.RT, base(p, i.RA) + BigInt(i.D), 2);
    case "lwz":
      return load(p, i.RT, base(p, i.RA) + BigInt(i.D), 4);
    case "ld":
      return load(p, i.RT, base(p, i.RA) + BigInt(i.DS), 8);
    case "lwbrx":
      return load(p, i.RT, base(p, i.RA) + p.gpr(i.RB), 4, !p.little);
    case "stb":
      return store(p, i.RS, base(p, i.RA) + BigInt(i.D), 1);
    case "sth":
      return store(p, i.RS, base(p, i.RA) + BigInt(i.D), 2);
    case "stw":
      return store(p, i.RS, base(p, i.RA) + BigInt(i.D), 4);
    case "std":
      return store(p, i.RS, base(p, i.RA) + BigInt(i.DS), 8);
    case "stwbrx":
      return store(p, i.RS, base(p, i.RA) + p.gpr(i.RB), 4, !p.little);
    case "dcbst":
    case "icbi":
    case "sync":
    case "isync":
      return next(p); // Instructions are fetched from memory itself, and in order.
    case "b":
      return jump(p, i.AA === 1 ? i.LI : p.context.pc + i.LI, i.LK);
    case "bc":
      if (!taken(p, i.BO, i.BI, true)) return link(p, i.LK);
      return jump(p, i.AA === 1 ? i.BD : p.context.pc + i.BD, i.LK);
    case "bclr": {
      const target = p.codeAddress(p.gpr(PPC_LR));
      return taken(p, i.BO, i.BI, true) ? jump(p, target, i.LK) : link(p, i.LK);
    }
    case "bcctr":
      return taken(p, i.BO, i.BI, false) ? jump(p, p.codeAddress(p.gpr(PPC_CTR)), i.LK) : link(p, i.LK);
    case "tdi":
      return trap(p, i.TO, p.gpr(i.RA), BigInt(i.SI), 64);
    case "twi":
      return trap(p, i.TO, p.gpr(i.RA), BigInt(i.SI), 32);
    case "tw":
      return trap(p, i.TO, p.gpr(i.RA), p.gpr(i.RB), 32);
    case "sc":
      p.advance(4);
      return "syscall";
    case "mfcr":
      return result(p, i.RT, BigInt(p.low(PPC_CR)));
    case "mtcrf": {
      for (let field = 0; field < 8; field++) {
        if ((i.FXM & (0x80 >> field)) !== 0) p.setCrField(field, (p.low(i.RS) >>> (28 - 4 * field)) & 0xf);
      }
      return next(p);
    }
    case "mfspr":
    case "mftb":
      return moveFrom(p, i.RT, i.SPR, timeBase);
    case "mtspr":
      return moveTo(p, i.SPR, i.RS);
    default:
      return "illegal";
  }
}

function next(p: PpcProcessor): Executed {
  p.advance(4);
  return "done";
}

function result(p: PpcProcessor, register: number, value: bigint, record: number = 0): Executed {
  p.setGpr(register, value);
  if (record === 1) compare(p, 0, BigInt.asIntN(p.sf ? 64 : 32, value), 0n, 0);
  return next(p);
}

/** A register, or zero where 0 is named. */
function base(p: PpcProcessor, register: number): bigint {
  return register === 0 ? 0n : p.gpr(register);
}

function signed(p: PpcProcessor, register: number, wide: number): bigint {
  return BigInt.asIntN(wide === 1 ? 64 : 32, p.gpr(register));
}

function unsigned(p: PpcProcessor, register: number, wide: number): bigint {
  return BigInt.asUintN(wide === 1 ? 64 : 32, p.gpr(register));
}

function compare(p: PpcProcessor, field: number, a: bigint, b: bigint, bytes: number = 4): Executed {
  p.setCrField(field, (a < b ? CR_LT : a > b ? CR_GT : CR_EQ) | p.summaryOverflow);
  p.advance(bytes);
  return "done";
}

function setCarry(p: PpcProcessor, carry: boolean): void {
  const { regs } = p.context;
  regs[2 * PPC_XER] = carry ? regs[2 * PPC_XER] | XER_CA : regs[2 * PPC_XER] & ~XER_CA;
}

/** A word beside itself, rotated left. */
function rotated32(word: number, by: number): bigint {
  const rotated = BigInt(((word << by) | (by === 0 ? 0 : word >>> (32 - by))) >>> 0);
  return (rotated << 32n) | rotated;
}

function rotated64(value: bigint, by: number): bigint {
  return BigInt.asUintN(64, (value << BigInt(by)) | (value >> BigInt(64 - by)));
}

/** Bits `first` to `last` of 64, counted from the most significant one; the others where `last` comes first. */
function mask(first: number, last: number): bigint {
  const from = (1n << BigInt(64 - first)) - 1n;
  const behind = (1n << BigInt(63 - last)) - 1n;
  return first <= last ? from & ~behind : BigInt.asUintN(64, ~(behind & ~from));
}

function load(
  p: PpcProcessor,
  register: number,
  address: bigint,
  bytes: 1 | 2 | 4 | 8,
  little = p.little,
): Executed {
  const value = p.load(address, bytes, little);
  return value === undefined ? "data-fault" : result(p, register, value);
}

function store(
  p: PpcProcessor,
  register: number,
  address: bigint,
  bytes: 1 | 2 | 4 | 8,
  little = p.little,
): Executed {
  return p.store(address, bytes, p.gpr(register), little) ? next(p) : "data-fault";
}

/** Whether a conditional branch is taken; CTR is decremented where the condition asks for it. */
function taken(p: PpcProcessor, BO: number, BI: number, counts: boolean): boolean {
  let goes = true;
  if (counts && (BO & 4) === 0) {
    p.setGpr(PPC_CTR, p.gpr(PPC_CTR) - 1n);
    const zero = BigInt.asUintN(p.sf ? 64 : 32, p.gpr(PPC_CTR)) === 0n;
    goes = zero === ((BO & 2) !== 0);
  }
  return goes && ((BO & 16) !== 0 || p.crBit(BI) === ((BO & 8) !== 0));
}

function jump(p: PpcProcessor, target: number, LK: number): Executed {
  link(p, LK);
  p.context.pc = p.wrapped(target);
  return "done";
}

function link(p: PpcProcessor, LK: number): Executed {
  p.advance(4);
  if (LK === 1) p.setGpr(PPC_LR, BigInt(p.context.pc));
  return "done";
}

function trap(p: PpcProcessor, TO: number, left: bigint, right: bigint, bits: number): Executed {
  const [a, b] = [BigInt.asIntN(bits, left), BigInt.asIntN(bits, right)];
  const [ua, ub] = [BigInt.asUintN(bits, left), BigInt.asUintN(bits, right)];
  const met = (a < b ? 16 : 0) | (a > b ? 8 : 0) | (a === b ? 4 : 0) | (ua < ub ? 2 : 0) | (ua > ub ? 1 : 0);
  return (TO & met) !== 0 ? "trap" : next(p);
}

const WINDOWED: ReadonlyMap<number, number> = new Map([
  [SPRS.XER, PPC_XER],
  [SPRS.LR, PPC_LR],
  [SPRS.CTR, PPC_CTR],
]);

function moveFrom(p: PpcProcessor, register: number, spr: number, timeBase: () => bigint): Executed {
  const windowed = WINDOWED.get(spr);
  if (windowed !== undefined) return result(p, register, p.gpr(windowed));
  if (spr === SPRS.TBRL) return result(p, register, timeBase());
  if (spr === SPRS.TBRU) return result(p, register, timeBase() >> 32n);
  const readable = p.readable.get(spr);
  return readable === undefined ? "illegal" : result(p, register, readable);
}

function moveTo(p: PpcProcessor, spr: number, register: number): Executed {
  const windowed = WINDOWED.get(spr);
  if (windowed === undefined) return "illegal";
  p.setGpr(windowed, p.gpr(register));
  return next(p);
}
