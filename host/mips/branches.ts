/**
 * Branches: whether one is taken, and where it goes. Processors ask when they execute one; KVM asks when an instruction in
 * a delay slot has exited and it has to find out where the guest goes on.
 *
 * @module
 */

/** What a branch needs of registers. */
export interface BranchRegisters {
  /** A general register. */
  get(number: number): bigint;
  /** Sets a general register: links. */
  set(number: number, value: bigint): void;
}

/** What a branch does. */
export interface Branch {
  /** Where the guest goes on behind the delay slot. */
  readonly target: number;
  /** A branch-likely that is not taken: its delay slot is not executed. */
  readonly nullifies: boolean;
}

const SPECIAL = 0x00;
const REGIMM = 0x01;
const J = 0x02;
const JAL = 0x03;
const BEQ = 0x04;
const BNE = 0x05;
const BLEZ = 0x06;
const BGTZ = 0x07;
/** This bit of an opcode makes a branch of 4 to 7 likely. */
const LIKELY = 0x10;
const JR = 0x08;
const JALR = 0x09;
const LINK = 31;

/**
 * The branch that `word` is, at `pc`; undefined where it is none. It links as it does. (arch/mips/kvm/emulate.c,
 * kvm_compute_return_epc, of releases before 6.)
 */
export function branchOf(word: number, pc: number, registers: BranchRegisters): Branch | undefined {
  const opcode = word >>> 26;
  const rs = (word >>> 21) & 0x1f;
  const rt = (word >>> 16) & 0x1f;
  const signed = (register: number) => BigInt.asIntN(64, registers.get(register));
  const offset = (word << 16) >> 14;
  const conditional = (taken: boolean, likely: boolean): Branch => ({
    target: (taken ? pc + 4 + offset : pc + 8) >>> 0,
    nullifies: likely && !taken,
  });
  switch (opcode) {
    case SPECIAL: {
      const f = word & 0x3f;
      if (f !== JR && f !== JALR) return undefined;
      if (f === JALR) registers.set((word >>> 11) & 0x1f, linkOf(pc));
      return { target: Number(registers.get(rs) & 0xffff_ffffn), nullifies: false };
    }
    case REGIMM: {
      // rt: bit 0 turns less into not less, bit 1 is likely, bit 4 links; nothing else is a branch.
      if ((rt & ~0x13) !== 0) return undefined;
      if ((rt & 0x10) !== 0) registers.set(LINK, linkOf(pc));
      const less = signed(rs) < 0n;
      return conditional((rt & 1) === 0 ? less : !less, (rt & 2) !== 0);
    }
    case J:
    case JAL:
      if (opcode === JAL) registers.set(LINK, linkOf(pc));
      return { target: (((pc + 4) & 0xf000_0000) | ((word & 0x03ff_ffff) << 2)) >>> 0, nullifies: false };
  }
  const likely = (opcode & LIKELY) !== 0;
  switch (opcode & ~LIKELY) {
    case BEQ:
      return conditional(registers.get(rs) === registers.get(rt), likely);
    case BNE:
      return conditional(registers.get(rs) !== registers.get(rt), likely);
    case BLEZ:
      return rt === 0 ? conditional(signed(rs) <= 0n, likely) : undefined;
    case BGTZ:
      return rt === 0 ? conditional(signed(rs) > 0n, likely) : undefined;
  }
  return undefined;
}

const COP1 = 0x11;
const BC1 = 0x08;

/**
 * The branch on the floating-point condition that `word` is, where the condition is false: there are no instructions here
 * that set one. Processors have such branches, and mainline's KVM follows none.
 */
export function floatingPointBranchOf(word: number, pc: number): Branch | undefined {
  if (word >>> 26 !== COP1 || ((word >>> 21) & 0x1f) !== BC1) return undefined;
  const onTrue = (word & (1 << 16)) !== 0;
  const likely = (word & (1 << 17)) !== 0;
  const offset = (word << 16) >> 14;
  return { target: (onTrue ? pc + 8 : pc + 4 + offset) >>> 0, nullifies: likely && onTrue };
}

function linkOf(pc: number): bigint {
  return BigInt.asUintN(64, BigInt((pc + 8) | 0));
}
