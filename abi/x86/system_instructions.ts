/**
 * Instructions that touch the system: MSRs, control registers, translations, modes and privilege.
 *
 * @module
 */

import * as bits from "../bits.ts";
import * as instructions from "./instructions.ts";
import * as registers from "./registers.ts";
import { X86Operands } from "./operands.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { HIGH } = bits;
const {
  OP_CLAC,
  OP_INVD,
  OP_INVLPG,
  OP_INVPCID,
  OP_IRET,
  OP_LIDT,
  OP_LRET,
  OP_MOV_FROM_CR0,
  OP_MOV_FROM_CR2,
  OP_MOV_FROM_CR3,
  OP_MOV_FROM_CR4,
  OP_MOV_FROM_CR8,
  OP_MOV_TO_CR0,
  OP_MOV_TO_CR3,
  OP_MOV_TO_CR4,
  OP_MOV_TO_CR8,
  OP_RDMSR,
  OP_STAC,
  OP_SYSCALL,
  OP_SYSRET,
  OP_UD2,
  OP_WBINVD,
  OP_WRMSR,
} = instructions;
const { FLAG_FIXED, FLAG_IF, R11, RAX, RCX, RDX } = registers;

/** A context that can be given system instructions. Each method loads operands and returns an opcode, to be yielded. */
export class X86SystemInstructions extends X86Operands {
  /** RDMSR: the value comes in EDX:EAX. Raises #GP for a register that is not there. */
  rdmsr(msr: number): number {
    this.begin(OP_RDMSR);
    this.pair(RCX, msr, 0);
    return OP_RDMSR;
  }

  /** WRMSR of `hi`:`lo`. Raises #GP for a register or a value that is not allowed. */
  wrmsr(msr: number, lo: number, hi: number = 0): number {
    this.begin(OP_WRMSR);
    this.pair(RCX, msr, 0);
    this.pair(RAX, lo, 0);
    this.pair(RDX, hi, 0);
    return OP_WRMSR;
  }

  /** MOV to CR0. Privileged. */
  movToCr0(lo: number): number {
    return this.value(OP_MOV_TO_CR0, lo, 0);
  }
  /**
   * MOV to CR3. Privileged. Bit 63, bit 31 of `hi`, keeps the translations of the PCID that it switches to, where
   * CR4.PCIDE is set. A CR3 whose table is at 0 leaves addresses flat: linear ones are physical ones.
   */
  movToCr3(lo: number, hi: number = 0): number {
    return this.value(OP_MOV_TO_CR3, lo, hi);
  }
  /** MOV to CR4. Privileged. */
  movToCr4(lo: number): number {
    return this.value(OP_MOV_TO_CR4, lo, 0);
  }
  /** MOV to CR8, the task priority's class. Privileged. */
  movToCr8(lo: number, hi: number = 0): number {
    return this.value(OP_MOV_TO_CR8, lo, hi);
  }
  /** MOV from CR0 to RAX. Privileged. */
  movFromCr0(): number {
    return this.begin(OP_MOV_FROM_CR0);
  }
  /** MOV from CR2 to RAX: the address of the last page fault. Privileged. */
  movFromCr2(): number {
    return this.begin(OP_MOV_FROM_CR2);
  }
  /** MOV from CR3 to RAX. Privileged. */
  movFromCr3(): number {
    return this.begin(OP_MOV_FROM_CR3);
  }
  /** MOV from CR4 to RAX. Privileged. */
  movFromCr4(): number {
    return this.begin(OP_MOV_FROM_CR4);
  }
  /** MOV from CR8 to RAX. Privileged. */
  movFromCr8(): number {
    return this.begin(OP_MOV_FROM_CR8);
  }

  /** INVLPG: drops the translation of `address` in the current PCID, and global ones. Privileged. */
  invlpg(address: number): number {
    return this.memory(OP_INVLPG, address);
  }
  /**
   * INVPCID of a type (0: an address, 1: a PCID, 2: all with global ones, 3: all but global ones) with the descriptor at
   * `address`: 64 bits of PCID, and 64 of linear address. Privileged.
   */
  invpcid(type: number, address: number): number {
    return this.store(OP_INVPCID, address, type, 0);
  }
  /** STAC: with CR4.SMAP, user pages may be read and written from here on. Privileged. */
  stac(): number {
    return this.begin(OP_STAC);
  }
  /** CLAC: ends what {@linkcode stac} began. Privileged. */
  clac(): number {
    return this.begin(OP_CLAC);
  }

  /** LIDT from the memory operand at `address`. Privileged. */
  lidt(address: number): number {
    return this.memory(OP_LIDT, address);
  }
  /** Far return to behind itself: goes on in the code segment `selector`. */
  loadCs(selector: number): number {
    return this.value(OP_LRET, selector, 0);
  }
  /** IRET: ends this handler, as returning from it does. */
  iret(): number {
    return this.begin(OP_IRET);
  }
  /** SYSCALL: on at IA32_LSTAR with CPL 0. The handler returns with {@linkcode iret}, or by returning. */
  syscall(): number {
    return this.begin(OP_SYSCALL);
  }
  /**
   * SYSRET: runs the function at `entry` at CPL 3 with `rflags` (interrupts enabled by default). When that function
   * returns, it has left user mode for good, and the kernel goes on behind this instruction.
   */
  sysret(entry: number, rflags: number = FLAG_FIXED | FLAG_IF): number {
    this.begin(OP_SYSRET);
    this.pair(RCX, entry, entry / HIGH);
    this.pair(R11, rflags, 0);
    return OP_SYSRET;
  }
  /** UD2: raises #UD. */
  ud2(): number {
    return this.begin(OP_UD2);
  }
  /** INVD. Privileged. */
  invd(): number {
    return this.begin(OP_INVD);
  }
  /** WBINVD. Privileged. */
  wbinvd(): number {
    return this.begin(OP_WBINVD);
  }
}
