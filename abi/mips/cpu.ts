/**
 * The handle through which MIPS guest code reaches its processor.
 *
 *     yield cpu.lw(address);                     // t0 is loaded; the machine executes LW t1, 0(t0)
 *     const word = cpu.value32;                  // t1, as the instruction left it
 *
 * @module
 */

import { type Call, encodeCall, type WidthMode } from "../convention.ts";
import { MachineContext } from "../machine_context.ts";
import { MIPS_CONVENTION } from "./convention.ts";
import * as ops from "./instructions.ts";
import { MIPS_CP0, MIPS_CP0_REGISTERS, MIPS_GPR, type MipsGpr } from "./registers.ts";
import { mipsRegisterAddress } from "./segments.ts";

const { t0, t1, t9 } = MIPS_GPR;

/** An execution context of a MIPS processor, and the instructions that it can be given. */
export class MipsCpu extends MachineContext<MipsCpu> {
  /** Whether the guest's kernel has 64-bit registers, or holds 32-bit values sign-extended in them. */
  readonly mode: WidthMode;

  /** A context without activations. */
  constructor(mode: WidthMode) {
    super({ layout: ops.MIPS_BLOCK, registers: 32, systemRegisters: MIPS_CP0_REGISTERS });
    this.mode = mode;
  }

  /** A general register by name. */
  gpr(name: MipsGpr): bigint {
    return this.register(MIPS_GPR[name]);
  }
  /** What a load or a move from coprocessor 0 brought: the low 32 bits of t1. */
  get value32(): number {
    return this.regs[2 * t1];
  }
  /** The same with 64 bits. */
  get value64(): bigint {
    return this.register(t1);
  }

  /** Loads a hypercall's registers. Those of arguments that are left out keep what they hold. */
  loadHypercall(call: Call): this {
    for (const [name, value] of Object.entries(encodeCall(MIPS_CONVENTION, call, this.mode))) {
      this.setRegister(MIPS_GPR[name as MipsGpr], value);
    }
    return this;
  }

  /** HYPCALL with the registers as they are. */
  hypcall(): number {
    return this.begin(ops.MIPS_OP_HYPCALL);
  }
  /** The same in the delay slot of a branch. */
  hypcallInDelaySlot(): number {
    return this.begin(ops.MIPS_OP_HYPCALL_IN_SLOT);
  }
  /** JALR to words in memory, which return by JR ra. Registers are as they are. */
  call(address: number): number {
    return this.build(ops.MIPS_OP_CALL, [t9, mipsRegisterAddress(address)]);
  }

  /** LBU: a byte. Addresses of the 32-bit segments are unsigned numbers; bigints are whole registers. */
  lbu(address: number | bigint): number {
    return this.build(ops.MIPS_OP_LBU, [t0, registerOf(address)]);
  }
  /** LW: 32 bits. */
  lw(address: number | bigint): number {
    return this.build(ops.MIPS_OP_LW, [t0, registerOf(address)]);
  }
  /** LD: 64 bits. */
  ld(address: number | bigint): number {
    return this.build(ops.MIPS_OP_LD, [t0, registerOf(address)]);
  }
  /** SB: a byte. */
  sb(address: number | bigint, value: number): number {
    return this.build(ops.MIPS_OP_SB, [t0, registerOf(address)], [t1, value]);
  }
  /** SW: 32 bits. */
  sw(address: number | bigint, value: number): number {
    return this.build(ops.MIPS_OP_SW, [t0, registerOf(address)], [t1, value | 0]);
  }
  /** SD: 64 bits. */
  sd(address: number | bigint, value: number | bigint): number {
    return this.build(ops.MIPS_OP_SD, [t0, registerOf(address)], [t1, value]);
  }

  /** MFC0 from Count. */
  mfc0Count(): number {
    return this.begin(ops.MIPS_OP_MFC0_COUNT);
  }
  /** MFC0 from Status. */
  mfc0Status(): number {
    return this.begin(ops.MIPS_OP_MFC0_STATUS);
  }
  /** MTC0 to Status. */
  mtc0Status(value: number): number {
    return this.build(ops.MIPS_OP_MTC0_STATUS, [t1, value | 0]);
  }
  /** MTC0 to SegCtl2. */
  mtc0SegCtl2(value: number): number {
    return this.build(ops.MIPS_OP_MTC0_SEGCTL2, [t1, value | 0]);
  }
  /** MFC0 from Cause. */
  mfc0Cause(): number {
    return this.begin(ops.MIPS_OP_MFC0_CAUSE);
  }
  /** DMFC0 from EPC. */
  dmfc0Epc(): number {
    return this.begin(ops.MIPS_OP_DMFC0_EPC);
  }
  /** DMTC0 to EPC: where the handler will return to. */
  dmtc0Epc(address: number | bigint): number {
    return this.build(ops.MIPS_OP_DMTC0_EPC, [t1, registerOf(address)]);
  }
  /** DMFC0 from BadVAddr. */
  dmfc0BadVAddr(): number {
    return this.begin(ops.MIPS_OP_DMFC0_BADVADDR);
  }

  /** SYSCALL. */
  syscall(): number {
    return this.begin(ops.MIPS_OP_SYSCALL);
  }
  /** BREAK. */
  break(): number {
    return this.begin(ops.MIPS_OP_BREAK);
  }
  /** Computation of an even number of cycles: two instructions a turn. */
  work(cycles: number): number {
    return this.build(ops.MIPS_OP_WORK, [t1, Math.max(Math.floor(cycles / 2) - 1, 0)]);
  }

  /** Sends the interrupted function to its fixup pad: it finds a {@linkcode MachineFault} thrown when the handler ends. */
  fixup(): void {
    this.setSystem(MIPS_CP0.epc, mipsRegisterAddress(this.fixupPad()));
  }
}

function registerOf(address: number | bigint): bigint {
  return typeof address === "bigint" ? address : mipsRegisterAddress(address);
}
