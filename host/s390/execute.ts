/**
 * What s390 instructions do on the CPU itself. Those that SIE intercepts leave guest mode here, with the PSW behind them.
 *
 * @module
 */

import {
  decodeS390,
  hex,
  isValidPsw,
  LOWCORE,
  PGM_OPERATION,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  PSW_MASK_CC,
  PSW_MASK_DAT,
  PSW_MASK_PSTATE,
  PSW_MASK_WAIT,
  S390_SYS_CR0,
  type S390Instruction,
  s390InstructionLength,
  type S390Mnemonic,
} from "../../abi/mod.ts";
import { byteSwapped } from "../arch/mod.ts";
import { interruptProgram, swapPsw } from "./interrupts.ts";
import type { S390Vcpu } from "./vcpu.ts";

/** Executes the instruction at the PSW's address. */
export function executeS390(vcpu: S390Vcpu): void {
  const { context } = vcpu;
  const { pc } = context;
  if ((vcpu.pswMask & PSW_MASK_DAT) !== 0n) {
    throw vcpu.error(
      "its PSW has dynamic address translation on, which is not modelled; run it with DAT off",
    );
  }
  if (!vcpu.reaches(BigInt(pc), 2)) return;
  const length = s390InstructionLength(vcpu.storage.bytes(pc, 1)![0]);
  if (!vcpu.reaches(BigInt(pc), length)) return;
  const instruction = decodeS390(vcpu.storage.bytes(pc, length)!);
  vcpu.charge(vcpu.vm.cost.insn);
  if (instruction === undefined) {
    interrupt(vcpu, PGM_OPERATION, length);
    return;
  }
  if (INTERCEPTED.has(instruction.name)) {
    context.pc = pc + length;
    vcpu.intercept(instruction);
    return;
  }
  if (PRIVILEGED.has(instruction.name) && (vcpu.pswMask & PSW_MASK_PSTATE) !== 0n) {
    interrupt(vcpu, PGM_PRIVILEGED_OP, length);
    return;
  }
  EXECUTE[instruction.name]!(vcpu, instruction);
}

/** Left to the host whenever they are executed. The host refuses them in the problem state. */
const INTERCEPTED: ReadonlySet<S390Mnemonic> = new Set(["DIAG", "STSI", "STAP", "SPX", "STPX"]);
/** Refused in the problem state by the CPU. */
const PRIVILEGED: ReadonlySet<S390Mnemonic> = new Set(["LPSWE", "STOSM", "STNSM", "LCTLG", "STCTG"]);

/** The instruction is suppressed: the PSW is behind it. */
function interrupt(vcpu: S390Vcpu, code: number, length: number): void {
  vcpu.context.pc += length;
  interruptProgram(vcpu, { code, length });
}

function done(vcpu: S390Vcpu, { length }: S390Instruction): void {
  vcpu.context.pc += length;
}

/** The second operand's address: base, index, displacement. */
export function operandAddress(vcpu: S390Vcpu, { fields }: S390Instruction): bigint {
  const { b2 = 0, x2 = 0, d2 = 0, dh2 = 0 } = fields;
  const part = (register: number) => register === 0 ? 0n : vcpu.context.register(register);
  const displacement = d2 + 4096 * ((dh2 << 24) >> 24);
  return BigInt.asUintN(64, part(b2) + part(x2) + BigInt(displacement));
}

type Execute = (vcpu: S390Vcpu, instruction: S390Instruction) => void;

type Size = 1 | 2 | 4 | 8;

/** A load into all of R1, or with `keeps` into its low bytes alone. */
function load(bytes: Size, { swapped = false, keeps = false } = {}): Execute {
  return (vcpu, instruction) => {
    const address = operandAddress(vcpu, instruction);
    if (!vcpu.reaches(address, bytes)) return;
    const { r1 } = instruction.fields;
    const found = vcpu.storage.read(Number(address), bytes);
    const value = swapped ? byteSwapped(found, bytes) : found;
    const bits = BigInt(8 * bytes);
    const kept = keeps ? (vcpu.context.register(r1) >> bits) << bits : 0n;
    vcpu.context.setRegister(r1, kept | value);
    vcpu.charge(vcpu.vm.cost.load);
    done(vcpu, instruction);
  };
}

function store(bytes: Size, swapped: boolean = false): Execute {
  return (vcpu, instruction) => {
    const address = operandAddress(vcpu, instruction);
    if (!vcpu.reaches(address, bytes)) return;
    const value = BigInt.asUintN(8 * bytes, vcpu.context.register(instruction.fields.r1));
    vcpu.storage.write(Number(address), bytes, swapped ? byteSwapped(value, bytes) : value);
    vcpu.charge(vcpu.vm.cost.store);
    done(vcpu, instruction);
  };
}

/** STOSM and STNSM: the system mask, the mask's first byte, is stored, and then changed. */
function systemMask(change: (mask: number, immediate: number) => number): Execute {
  return (vcpu, instruction) => {
    const address = operandAddress(vcpu, instruction);
    if (!vcpu.reaches(address, 1)) return;
    const mask = Number(vcpu.pswMask >> 56n);
    vcpu.storage.write(Number(address), 1, BigInt(mask));
    const next = BigInt(change(mask, instruction.fields.i2));
    vcpu.setMask((vcpu.pswMask & 0x00ff_ffff_ffff_ffffn) | (next << 56n));
    vcpu.charge(vcpu.vm.cost.system);
    done(vcpu, instruction);
  };
}

/** LCTLG and STCTG: control registers from R1 to R3, and round. */
function controlRegisters(move: (vcpu: S390Vcpu, register: number, address: number) => void): Execute {
  return (vcpu, instruction) => {
    const { r1, r3 } = instruction.fields;
    const address = operandAddress(vcpu, instruction);
    const count = ((r3 - r1) & 15) + 1;
    if ((address & 7n) !== 0n) {
      interrupt(vcpu, PGM_SPECIFICATION, instruction.length);
      return;
    }
    if (!vcpu.reaches(address, 8 * count)) return;
    for (let i = 0; i < count; i++) move(vcpu, (r1 + i) & 15, Number(address) + 8 * i);
    vcpu.charge(vcpu.vm.cost.system);
    done(vcpu, instruction);
  };
}

const EXECUTE: Partial<Record<S390Mnemonic, Execute>> = {
  LLGC: load(1),
  LLGH: load(2),
  LLGF: load(4),
  LG: load(8),
  LRVH: load(2, { swapped: true, keeps: true }),
  LRV: load(4, { swapped: true, keeps: true }),
  LRVG: load(8, { swapped: true }),
  STC: store(1),
  STH: store(2),
  ST: store(4),
  STG: store(8),
  STRVH: store(2, true),
  STRV: store(4, true),
  STRVG: store(8, true),
  STOSM: systemMask((mask, immediate) => mask | immediate),
  STNSM: systemMask((mask, immediate) => mask & immediate),
  LCTLG: controlRegisters((vcpu, register, address) =>
    vcpu.context.setSystem(S390_SYS_CR0 + register, vcpu.storage.read(address, 8))
  ),
  STCTG: controlRegisters((vcpu, register, address) =>
    vcpu.storage.write(address, 8, vcpu.context.system(S390_SYS_CR0 + register))
  ),
  BCR(vcpu, instruction) {
    const { r1, r2 } = instruction.fields;
    const condition = (r1 << vcpu.context.cc) & 8;
    if (condition !== 0 && r2 !== 0) vcpu.context.pc = Number(vcpu.context.register(r2));
    else done(vcpu, instruction);
  },
  CS(vcpu, instruction) {
    const { r1, r3 } = instruction.fields;
    const address = operandAddress(vcpu, instruction);
    if ((address & 3n) !== 0n) {
      interrupt(vcpu, PGM_SPECIFICATION, instruction.length);
      return;
    }
    if (!vcpu.reaches(address, 4)) return;
    const { context, storage } = vcpu;
    const found = storage.read(Number(address), 4);
    const expected = context.register(r1);
    const equal = found === BigInt.asUintN(32, expected);
    if (equal) storage.write(Number(address), 4, BigInt.asUintN(32, context.register(r3)));
    else context.setRegister(r1, ((expected >> 32n) << 32n) | found);
    vcpu.setConditionCode(equal ? 0 : 1);
    vcpu.charge(vcpu.vm.cost.locked);
    done(vcpu, instruction);
  },
  BRCTG(vcpu, instruction) {
    const { r1, i2 } = instruction.fields;
    const offset = 2 * ((i2 << 16) >> 16);
    if (offset === 0) {
      countDown(vcpu, instruction);
      return;
    }
    const left = BigInt.asUintN(64, vcpu.context.register(r1) - 1n);
    vcpu.context.setRegister(r1, left);
    if (left === 0n) done(vcpu, instruction);
    else vcpu.context.pc += offset;
  },
  LGR(vcpu, instruction) {
    const { r1, r2 } = instruction.fields;
    const { context } = vcpu;
    const { next } = context;
    context.setRegister(r1, context.register(r2));
    done(vcpu, instruction);
    if (next === undefined || r1 !== 15) return;
    context.next = undefined;
    vcpu.code.load(next);
  },
  SVC(vcpu, instruction) {
    const { fields } = LOWCORE;
    done(vcpu, instruction);
    vcpu.storage.write(fields.svc_ilc.offset, 2, BigInt(instruction.length));
    vcpu.storage.write(fields.svc_code.offset, 2, BigInt(instruction.fields.i));
    swapPsw(vcpu, fields.svc_old_psw.offset, fields.svc_new_psw.offset);
  },
  LPSWE(vcpu, instruction) {
    const address = operandAddress(vcpu, instruction);
    if ((address & 7n) !== 0n) {
      interrupt(vcpu, PGM_SPECIFICATION, instruction.length);
      return;
    }
    if (!vcpu.reaches(address, 16)) return;
    const at = Number(address);
    const psw = { mask: vcpu.storage.read(at, 8), address: vcpu.storage.read(at + 8, 8) };
    vcpu.charge(vcpu.vm.cost.iret);
    // An invalid PSW is loaded all the same, and interrupts the program with no instruction's length.
    vcpu.setPsw(psw);
    vcpu.code.settle();
    if (!isValidPsw(psw)) interruptProgram(vcpu, { code: PGM_SPECIFICATION, length: 0 });
  },
};

/**
 * A loop of one instruction: time passes until its count is used up, or somebody else may come between. Others that
 * compute, too, do not.
 */
function countDown(vcpu: S390Vcpu, instruction: S390Instruction): void {
  const { context, engine, vm } = vcpu;
  const { r1 } = instruction.fields;
  const left = context.register(r1);
  if (left === 0n || left > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw vcpu.error(`it counts down from ${hex(left)}; allowed are 1 to 2^53 - 1`);
  }
  const cycles = engine.explores ? Number(left) : Math.min(Number(left), Math.max(1, vcpu.undisturbed()));
  if (!engine.explores) vcpu.charge(cycles - vm.cost.insn); // Its turns take a cycle each, whatever an instruction takes.
  context.setRegister(r1, left - BigInt(cycles));
  vcpu.computing = Number(left) - cycles;
  if (vcpu.computing === 0) done(vcpu, instruction);
}

/** Whether a PSW's mask says to wait. */
export function waits(mask: bigint): boolean {
  return (mask & PSW_MASK_WAIT) !== 0n;
}

/** A mask with another condition code. */
export function withConditionCode(mask: bigint, cc: number): bigint {
  return (mask & ~PSW_MASK_CC) | (BigInt(cc) << 44n);
}
