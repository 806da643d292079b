/**
 * The handle through which s390 guest code reaches its CPU: it builds instructions and reads registers.
 *
 *     yield cpu.store64(address, value);     // gpr 1 and gpr 0 are loaded; the CPU executes STG
 *     yield cpu.load64(address);             // LG
 *     const value = cpu.value;               // gpr 0, as the instruction left it
 *
 * @module
 */

import { MachineContext } from "../machine_context.ts";
import { type MachineFunction, type MachineGuest, MachineText } from "../text_block.ts";
import * as op from "./instructions.ts";
import { S390_BLOCK } from "./instructions.ts";
import { conditionCode, KERNEL_PSW_MASK } from "./psw.ts";

/** A running s390 guest function. */
export type S390Guest = MachineGuest;
/** An s390 guest function as written. */
export type S390Function = MachineFunction<S390Cpu>;

/** General registers. */
export const S390_GPRS = 16;
/** The system register that holds the mask of the PSW. */
export const S390_SYS_PSW_MASK = 0;
/** The first control register. */
export const S390_SYS_CR0 = 1;
/** System registers: the PSW's mask, and 16 control registers. */
export const S390_SYS = 17;

/** Where functions are placed when nothing else is said: 64 KiB, where Linux has its first code. */
export const S390_TEXT_BASE = 0x1_0000;

/** The functions of an s390 image. */
export function s390Text(base: number = S390_TEXT_BASE): MachineText<S390Cpu> {
  return new MachineText<S390Cpu>(S390_BLOCK, base);
}

/** An execution context of an s390 CPU, and the instructions that it can be given. See the module's description. */
export class S390Cpu extends MachineContext<S390Cpu> {
  /** The task that a pending {@linkcode switchTo} goes on with. */
  next: S390Cpu | undefined = undefined;

  /** A context that begins at {@linkcode MachineContext.pc}, in the supervisor state. */
  constructor() {
    super({ layout: S390_BLOCK, registers: S390_GPRS, systemRegisters: S390_SYS });
    this.setSystem(S390_SYS_PSW_MASK, KERNEL_PSW_MASK);
  }

  /** A task: a context that starts in the function at `entry` the first time a CPU switches to it. */
  static task(entry: number): S390Cpu {
    const cpu = new S390Cpu();
    cpu.pc = entry;
    return cpu;
  }

  /** gpr 0: what a load brought. */
  get value(): bigint {
    return this.register(0);
  }
  /** gpr 0 as a number. Throws `RangeError` at 2^53 and above. */
  get number(): number {
    const value = Number(this.register(0));
    if (Number.isSafeInteger(value)) return value;
    throw new RangeError(`Cannot read gpr 0 as a number: it holds 0x${this.register(0).toString(16)}`);
  }
  /** gpr 2 as calls answer in it: signed. */
  get result(): bigint {
    return BigInt.asIntN(64, this.register(2));
  }
  /** The condition code. */
  get cc(): number {
    return conditionCode(this.system(S390_SYS_PSW_MASK));
  }
  /** The mask of the PSW. */
  get pswMask(): bigint {
    return this.system(S390_SYS_PSW_MASK);
  }
  /** The address behind this function's LPSWE: where one goes on that loads a PSW for itself. */
  get behindLpswe(): number {
    return this.top!.block.address + this.layout.behind[op.S390_OP_LPSWE];
  }

  /** The address behind this function's DIAGNOSE 0x308: where one goes on that has itself reset. */
  get behindDiag308(): number {
    return this.top!.block.address + this.layout.behind[op.S390_OP_DIAG_308];
  }

  // Calls to the host.

  /** DIAGNOSE 0x500 with the registers as they are. */
  diag500(): number {
    return this.build(op.S390_OP_DIAG_500);
  }
  /** DIAGNOSE 0x501. */
  diag501(): number {
    return this.build(op.S390_OP_DIAG_501);
  }
  /** DIAGNOSE 0x44: gives up the rest of the time slice. */
  diag44(): number {
    return this.build(op.S390_OP_DIAG_44);
  }
  /** DIAGNOSE 0x9c: gives it to a CPU. */
  diag9c(cpuAddress: number | bigint): number {
    return this.build(op.S390_OP_DIAG_9C, [2, cpuAddress]);
  }
  /** DIAGNOSE 0x10: releases pages; `last` is the last one's address. */
  diag10(first: number | bigint, last: number | bigint): number {
    return this.build(op.S390_OP_DIAG_10, [2, first], [3, last]);
  }
  /** DIAGNOSE 0x258 with a parameter block; gpr 3 holds `preset` before, and then the result. */
  diag258(block: number | bigint, preset: number | bigint = 0): number {
    return this.build(op.S390_OP_DIAG_258, [2, block], [3, preset]);
  }
  /** DIAGNOSE 0x308; the result comes in gpr 3. */
  diag308(subcode: number | bigint, block: number | bigint = 0): number {
    return this.build(op.S390_OP_DIAG_308, [2, block], [3, 0], [4, subcode]);
  }
  /** STORE SYSTEM INFORMATION: function code, selectors, and where the block goes. */
  stsi(
    functionCode: number,
    [selector1, selector2]: readonly [number, number],
    address: number | bigint,
  ): number {
    const gpr0 = (BigInt(functionCode) << 28n) | BigInt(selector1);
    return this.build(op.S390_OP_STSI, [0, gpr0], [1, selector2], [3, address]);
  }

  // Storage.

  /** Loads a byte into gpr 0. */
  load8(address: number | bigint): number {
    return this.build(op.S390_OP_LLGC, [1, address]);
  }
  /** Loads 2 bytes into gpr 0. */
  load16(address: number | bigint): number {
    return this.build(op.S390_OP_LLGH, [1, address]);
  }
  /** Loads 4 bytes into gpr 0. */
  load32(address: number | bigint): number {
    return this.build(op.S390_OP_LLGF, [1, address]);
  }
  /** Loads 8 bytes into gpr 0. */
  load64(address: number | bigint): number {
    return this.build(op.S390_OP_LG, [1, address]);
  }
  /** Loads 2 little-endian bytes into bits 15:0 of gpr 0, and leaves the others. */
  loadReversed16(address: number | bigint): number {
    return this.build(op.S390_OP_LRVH, [1, address], [0, 0]);
  }
  /** Loads 4 little-endian bytes into bits 31:0 of gpr 0. */
  loadReversed32(address: number | bigint): number {
    return this.build(op.S390_OP_LRV, [1, address], [0, 0]);
  }
  /** Stores a byte. */
  store8(address: number | bigint, value: number | bigint): number {
    return this.build(op.S390_OP_STC, [1, address], [0, value]);
  }
  /** Stores 2 bytes. */
  store16(address: number | bigint, value: number | bigint): number {
    return this.build(op.S390_OP_STH, [1, address], [0, value]);
  }
  /** Stores 4 bytes. */
  store32(address: number | bigint, value: number | bigint): number {
    return this.build(op.S390_OP_ST, [1, address], [0, value]);
  }
  /** Stores 8 bytes. */
  store64(address: number | bigint, value: number | bigint): number {
    return this.build(op.S390_OP_STG, [1, address], [0, value]);
  }
  /** Stores 2 little-endian bytes. */
  storeReversed16(address: number | bigint, value: number | bigint): number {
    return this.build(op.S390_OP_STRVH, [1, address], [0, value]);
  }
  /** Stores 4 little-endian bytes. */
  storeReversed32(address: number | bigint, value: number | bigint): number {
    return this.build(op.S390_OP_STRV, [1, address], [0, value]);
  }
  /** Stores 8 little-endian bytes. */
  storeReversed64(address: number | bigint, value: number | bigint): number {
    return this.build(op.S390_OP_STRVG, [1, address], [0, value]);
  }
  /** Stores `value` if 4 bytes hold `expected`: condition code 0; else 1, and gpr 0 gets them. */
  compareAndSwap32(address: number | bigint, expected: number, value: number): number {
    return this.build(op.S390_OP_CS, [1, address], [0, expected], [2, value]);
  }

  // The CPU.

  /** Computes for `cycles` cycles; interruptions are taken in the middle. */
  work(cycles: number): number {
    return this.build(op.S390_OP_BRCTG, [0, cycles]);
  }
  /** Does nothing. */
  nop(): number {
    return this.build(op.S390_OP_NOPR);
  }
  /** SUPERVISOR CALL 0, with a number in gpr 1 and a parameter in gpr 2. */
  svc(nr: number, parameter: number | bigint = 0): number {
    return this.build(op.S390_OP_SVC, [1, nr], [2, parameter]);
  }
  /** Stores this CPU's address, 2 bytes. */
  stap(address: number | bigint): number {
    return this.build(op.S390_OP_STAP, [1, address]);
  }
  /** Sets the prefix from 4 bytes of storage. */
  spx(address: number | bigint): number {
    return this.build(op.S390_OP_SPX, [1, address]);
  }
  /** Stores the prefix, 4 bytes. */
  stpx(address: number | bigint): number {
    return this.build(op.S390_OP_STPX, [1, address]);
  }
  /** Loads the PSW from 16 bytes of storage. */
  lpswe(address: number | bigint): number {
    return this.build(op.S390_OP_LPSWE, [1, address]);
  }
  /** Enables I/O and external interruptions, and stores the system mask that was: a byte. */
  stosm(address: number | bigint): number {
    return this.build(op.S390_OP_STOSM, [1, address]);
  }
  /** Disables them. */
  stnsm(address: number | bigint): number {
    return this.build(op.S390_OP_STNSM, [1, address]);
  }
  /** Loads control register 0 from 8 bytes of storage. */
  lctlg0(address: number | bigint): number {
    return this.build(op.S390_OP_LCTLG, [1, address]);
  }
  /** Stores control register 0. */
  stctg0(address: number | bigint): number {
    return this.build(op.S390_OP_STCTG, [1, address]);
  }
  /** Switches the stack: the CPU goes on with `task`, and with this context once a task switches back. */
  switchTo(task: S390Cpu): number {
    this.next = task;
    return this.build(op.S390_OP_SWITCH);
  }
}
