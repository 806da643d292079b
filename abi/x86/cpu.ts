/**
 * The handle through which guest code reaches its processor: it builds instructions and reads registers.
 *
 *     yield cpu.wrmsr(X2APIC_EOI, 0);        // ECX, EAX, EDX are loaded; the machine executes WRMSR
 *     yield cpu.btr(address, 0);             // RDI, ECX are loaded; the machine executes BTR
 *     if (cpu.cf) return;                    // RFLAGS.CF, as the instruction left it
 *
 * A handle is an execution context: a stack of activations and their registers. Switching tasks gives the processor
 * another handle; the code that was written against the first goes on with it, on whatever processor runs it.
 *
 * @module
 */

import * as bits from "../bits.ts";
import { highOf, lowOf } from "../bits.ts";
import { X86Context } from "./context.ts";
import * as instructions from "./instructions.ts";
import { instructionText } from "./instructions.ts";
import * as registers from "./registers.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { HIGH } = bits;
const {
  OP_BTR,
  OP_BTS,
  OP_CLAC,
  OP_CLI,
  OP_CMPXCHG32,
  OP_CMPXCHG64,
  OP_CPUID,
  OP_HLT,
  OP_IN16,
  OP_IN32,
  OP_IN8,
  OP_INVD,
  OP_INVLPG,
  OP_INVPCID,
  OP_IRET,
  OP_LIDT,
  OP_LOAD16,
  OP_LOAD32,
  OP_LOAD64,
  OP_LOAD8,
  OP_LOCK_BTR,
  OP_LOCK_BTS,
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
  OP_OUT16,
  OP_OUT32,
  OP_OUT8,
  OP_PAUSE,
  OP_PAUSE_WHILE,
  OP_PUSHF,
  OP_RDMSR,
  OP_RDTSC,
  OP_STAC,
  OP_STI,
  OP_STORE16,
  OP_STORE32,
  OP_STORE64,
  OP_STORE8,
  OP_SWITCH,
  OP_SYSCALL,
  OP_SYSRET,
  OP_UD2,
  OP_VMCALL,
  OP_VMMCALL,
  OP_WBINVD,
  OP_WORK,
  OP_WRMSR,
  OP_XADD32,
  OP_XCHG32,
  OP_XCHG64,
} = instructions;
const { FLAG_FIXED, FLAG_IF, R11, RAX, RBX, RCX, RDI, RDX, RFLAGS, RIP, RSI } = registers;

/** The upper half of linear addresses is written as negative numbers: this many of them are canonical. */
const LOWEST = 2 ** 47;

/** An execution context of an x86 processor, and the instructions that it can be given. See the module's description. */
export class X86Cpu extends X86Context {
  /** The task that a pending {@linkcode switchTo} goes on with. */
  next: X86Cpu | undefined = undefined;

  /**
   * A task: a context that starts in the function at `entry`, with interrupts enabled, the first time a processor
   * switches to it.
   */
  static task(entry: number): X86Cpu {
    const cpu = new X86Cpu();
    cpu.regs[RIP] = entry;
    cpu.regs[RIP + 1] = entry / HIGH;
    cpu.regs[RFLAGS] = FLAG_FIXED | FLAG_IF;
    return cpu;
  }

  // Instructions. Each loads its operands and returns its opcode, to be yielded.

  /** CPUID: leaf `leaf`, subleaf `subleaf`; answers in EAX, EBX, ECX, EDX. */
  cpuid(leaf: number, subleaf: number = 0): number {
    this.#begin(OP_CPUID);
    this.#pair(RAX, leaf, 0);
    this.#pair(RCX, subleaf, 0);
    return OP_CPUID;
  }

  /** RDMSR: the value comes in EDX:EAX. Raises #GP for a register that is not there. */
  rdmsr(msr: number): number {
    this.#begin(OP_RDMSR);
    this.#pair(RCX, msr, 0);
    return OP_RDMSR;
  }

  /** WRMSR of `hi`:`lo`. Raises #GP for a register or a value that is not allowed. */
  wrmsr(msr: number, lo: number, hi: number = 0): number {
    this.#begin(OP_WRMSR);
    this.#pair(RCX, msr, 0);
    this.#pair(RAX, lo, 0);
    this.#pair(RDX, hi, 0);
    return OP_WRMSR;
  }

  /** RDTSC: the time-stamp counter comes in EDX:EAX. */
  rdtsc(): number {
    return this.#begin(OP_RDTSC);
  }

  /** VMCALL with the registers as they are; see {@linkcode loadHypercall}. */
  vmcall(): number {
    return this.#begin(OP_VMCALL);
  }

  /** VMMCALL with the registers as they are; see {@linkcode loadHypercall}. */
  vmmcall(): number {
    return this.#begin(OP_VMMCALL);
  }

  /**
   * Loads a KVM hypercall's registers: number in RAX, arguments in RBX, RCX, RDX, RSI (KVM hypercall documentation,
   * "X86"). Arguments are whole numbers below 2^53, or bigints, taken modulo 2^64; the registers of those that are left
   * out keep what they hold.
   */
  loadHypercall(
    nr: number,
    a0?: number | bigint,
    a1?: number | bigint,
    a2?: number | bigint,
    a3?: number | bigint,
  ): this {
    this.#wide(RAX, nr);
    if (a0 !== undefined) this.#wide(RBX, a0);
    if (a1 !== undefined) this.#wide(RCX, a1);
    if (a2 !== undefined) this.#wide(RDX, a2);
    if (a3 !== undefined) this.#wide(RSI, a3);
    return this;
  }

  /** HLT: waits for an interrupt. Privileged. */
  hlt(): number {
    return this.#begin(OP_HLT);
  }
  /** PAUSE. */
  pause(): number {
    return this.#begin(OP_PAUSE);
  }
  /** CLI. Needs CPL <= IOPL. */
  cli(): number {
    return this.#begin(OP_CLI);
  }
  /** STI. Needs CPL <= IOPL. */
  sti(): number {
    return this.#begin(OP_STI);
  }
  /** RFLAGS to RAX. */
  pushf(): number {
    return this.#begin(OP_PUSHF);
  }

  /** IN AL, DX. */
  in8(port: number): number {
    this.#begin(OP_IN8);
    this.#pair(RDX, port, 0);
    return OP_IN8;
  }
  /** IN AX, DX. */
  in16(port: number): number {
    this.#begin(OP_IN16);
    this.#pair(RDX, port, 0);
    return OP_IN16;
  }
  /** IN EAX, DX. */
  in32(port: number): number {
    this.#begin(OP_IN32);
    this.#pair(RDX, port, 0);
    return OP_IN32;
  }
  /** OUT DX, AL. */
  out8(port: number, value: number): number {
    return this.#out(OP_OUT8, port, value);
  }
  /** OUT DX, AX. */
  out16(port: number, value: number): number {
    return this.#out(OP_OUT16, port, value);
  }
  /** OUT DX, EAX. */
  out32(port: number, value: number): number {
    return this.#out(OP_OUT32, port, value);
  }

  /** Loads a byte into RAX, zero-extended. */
  load8(address: number): number {
    return this.#memory(OP_LOAD8, address);
  }
  /** Loads 16 bits into RAX, zero-extended. */
  load16(address: number): number {
    return this.#memory(OP_LOAD16, address);
  }
  /** Loads 32 bits into RAX, zero-extended. */
  load32(address: number): number {
    return this.#memory(OP_LOAD32, address);
  }
  /** Loads 64 bits into RAX. */
  load64(address: number): number {
    return this.#memory(OP_LOAD64, address);
  }
  /** Stores a byte. */
  store8(address: number, value: number): number {
    return this.#store(OP_STORE8, address, value, 0);
  }
  /** Stores 16 bits. */
  store16(address: number, value: number): number {
    return this.#store(OP_STORE16, address, value, 0);
  }
  /** Stores 32 bits. */
  store32(address: number, value: number): number {
    return this.#store(OP_STORE32, address, value, 0);
  }
  /** Stores `hi`:`lo`. */
  store64(address: number, lo: number, hi: number = 0): number {
    return this.#store(OP_STORE64, address, lo, hi);
  }

  /** Test-and-reset of bit `bit` of the bit string at `address`; the old bit comes in CF. Not locked. */
  btr(address: number, bit: number): number {
    return this.#bit(OP_BTR, address, bit);
  }
  /** Test-and-set of a bit; the old bit comes in CF. Not locked. */
  bts(address: number, bit: number): number {
    return this.#bit(OP_BTS, address, bit);
  }
  /** Locked test-and-reset of a bit; the old bit comes in CF. */
  lockBtr(address: number, bit: number): number {
    return this.#bit(OP_LOCK_BTR, address, bit);
  }
  /** Locked test-and-set of a bit; the old bit comes in CF. */
  lockBts(address: number, bit: number): number {
    return this.#bit(OP_LOCK_BTS, address, bit);
  }

  /** Exchanges 32 bits with memory; the old value comes in RAX. */
  xchg32(address: number, value: number): number {
    return this.#store(OP_XCHG32, address, value, 0);
  }
  /** Exchanges 64 bits with memory; the old value comes in RAX. */
  xchg64(address: number, lo: number, hi: number = 0): number {
    return this.#store(OP_XCHG64, address, lo, hi);
  }
  /** Stores `value` if memory holds `expected`; ZF says so, and EAX gets what memory held if not. */
  cmpxchg32(address: number, expected: number, value: number): number {
    this.#begin(OP_CMPXCHG32);
    this.#address(address);
    this.#pair(RAX, expected, 0);
    this.#pair(RCX, value, 0);
    return OP_CMPXCHG32;
  }
  /** The 64-bit form of {@linkcode cmpxchg32}; values are whole numbers below 2^53. */
  cmpxchg64(address: number, expected: number, value: number): number {
    this.#begin(OP_CMPXCHG64);
    this.#address(address);
    this.#pair(RAX, expected, expected / HIGH);
    this.#pair(RCX, value, value / HIGH);
    return OP_CMPXCHG64;
  }
  /** Adds to 32 bits of memory, locked; the old value comes in EAX. */
  xadd32(address: number, value: number): number {
    return this.#store(OP_XADD32, address, value, 0);
  }

  /** MOV to CR0. Privileged. */
  movToCr0(lo: number): number {
    return this.#value(OP_MOV_TO_CR0, lo, 0);
  }
  /**
   * MOV to CR3. Privileged. Bit 63, bit 31 of `hi`, keeps the translations of the PCID that it switches to, where
   * CR4.PCIDE is set. A CR3 whose table is at 0 leaves addresses flat: linear ones are physical ones.
   */
  movToCr3(lo: number, hi: number = 0): number {
    return this.#value(OP_MOV_TO_CR3, lo, hi);
  }
  /** MOV to CR4. Privileged. */
  movToCr4(lo: number): number {
    return this.#value(OP_MOV_TO_CR4, lo, 0);
  }
  /** MOV to CR8, the task priority's class. Privileged. */
  movToCr8(lo: number, hi: number = 0): number {
    return this.#value(OP_MOV_TO_CR8, lo, hi);
  }
  /** MOV from CR0 to RAX. Privileged. */
  movFromCr0(): number {
    return this.#begin(OP_MOV_FROM_CR0);
  }
  /** MOV from CR2 to RAX: the address of the last page fault. Privileged. */
  movFromCr2(): number {
    return this.#begin(OP_MOV_FROM_CR2);
  }
  /** MOV from CR3 to RAX. Privileged. */
  movFromCr3(): number {
    return this.#begin(OP_MOV_FROM_CR3);
  }
  /** MOV from CR4 to RAX. Privileged. */
  movFromCr4(): number {
    return this.#begin(OP_MOV_FROM_CR4);
  }
  /** MOV from CR8 to RAX. Privileged. */
  movFromCr8(): number {
    return this.#begin(OP_MOV_FROM_CR8);
  }

  /** INVLPG: drops the translation of `address` in the current PCID, and global ones. Privileged. */
  invlpg(address: number): number {
    return this.#memory(OP_INVLPG, address);
  }
  /**
   * INVPCID of a type (0: an address, 1: a PCID, 2: all with global ones, 3: all but global ones) with the descriptor at
   * `address`: 64 bits of PCID, and 64 of linear address. Privileged.
   */
  invpcid(type: number, address: number): number {
    return this.#store(OP_INVPCID, address, type, 0);
  }
  /** STAC: with CR4.SMAP, user pages may be read and written from here on. Privileged. */
  stac(): number {
    return this.#begin(OP_STAC);
  }
  /** CLAC: ends what {@linkcode stac} began. Privileged. */
  clac(): number {
    return this.#begin(OP_CLAC);
  }

  /** LIDT from the memory operand at `address`. Privileged. */
  lidt(address: number): number {
    return this.#memory(OP_LIDT, address);
  }
  /** Far return to behind itself: goes on in the code segment `selector`. */
  loadCs(selector: number): number {
    return this.#value(OP_LRET, selector, 0);
  }
  /** IRET: ends this handler, as returning from it does. */
  iret(): number {
    return this.#begin(OP_IRET);
  }
  /** SYSCALL: on at IA32_LSTAR with CPL 0. The handler returns with {@linkcode iret}, or by returning. */
  syscall(): number {
    return this.#begin(OP_SYSCALL);
  }
  /**
   * SYSRET: runs the function at `entry` at CPL 3 with `rflags` (interrupts enabled by default). When that function
   * returns, it has left user mode for good, and the kernel goes on behind this instruction.
   */
  sysret(entry: number, rflags: number = FLAG_FIXED | FLAG_IF): number {
    this.#begin(OP_SYSRET);
    this.#pair(RCX, entry, entry / HIGH);
    this.#pair(R11, rflags, 0);
    return OP_SYSRET;
  }
  /** UD2: raises #UD. */
  ud2(): number {
    return this.#begin(OP_UD2);
  }
  /** INVD. Privileged. */
  invd(): number {
    return this.#begin(OP_INVD);
  }
  /** WBINVD. Privileged. */
  wbinvd(): number {
    return this.#begin(OP_WBINVD);
  }

  /** Computes for `cycles` cycles; interrupts are taken in the middle, and the rest is done after them. */
  work(cycles: number): number {
    this.#begin(OP_WORK);
    this.#pair(RCX, cycles, cycles >>> 0 === cycles ? 0 : cycles / HIGH);
    return OP_WORK;
  }

  /**
   * Waits, in a PAUSE loop, while the 32-bit word at `address` equals `value`. Costs what the loop costs; afterwards
   * EAX is still `value`.
   */
  pauseWhile(address: number, value: number): number {
    return this.#store(OP_PAUSE_WHILE, address, value, 0);
  }

  /** Switches the stack: the processor goes on with `task`, and with this context once a task switches back. */
  switchTo(task: X86Cpu): number {
    this.#begin(OP_SWITCH);
    this.next = task;
    return OP_SWITCH;
  }

  #begin(opcode: number): number {
    if (this.pending !== 0) {
      throw new Error(
        `Cannot build ${instructionText(opcode)}: ${
          instructionText(this.pending)
        } was built before it and not yielded`,
      );
    }
    this.pending = opcode;
    return opcode;
  }

  #pair(word: number, lo: number, hi: number): void {
    // Cut to 32 bits as integers, not by the array from floating point.
    const { regs } = this;
    regs[word] = lo | 0;
    regs[word + 1] = hi | 0;
  }

  #wide(word: number, value: number | bigint): void {
    const { regs } = this;
    if (typeof value === "bigint") {
      regs[word] = lowOf(value);
      regs[word + 1] = highOf(value);
    } else if (value >>> 0 === value) {
      regs[word] = value;
      regs[word + 1] = 0;
    } else if (Number.isSafeInteger(value)) {
      regs[word] = value;
      regs[word + 1] = Math.floor(value / HIGH);
    } else {
      throw new RangeError(`Cannot load ${value} into a register: allowed are whole numbers and bigints`);
    }
  }

  #address(address: number): void {
    const { regs } = this;
    regs[RDI] = address;
    if (address >>> 0 === address) {
      regs[RDI + 1] = 0;
    } else if (Number.isSafeInteger(address) && address >= -LOWEST) {
      regs[RDI + 1] = Math.floor(address / HIGH);
    } else {
      this.pending = 0;
      throw new RangeError(`Cannot address ${address}: allowed are whole numbers from -2^47 to 2^53 - 1`);
    }
  }

  #memory(opcode: number, address: number): number {
    this.#begin(opcode);
    this.#address(address);
    return opcode;
  }

  #store(opcode: number, address: number, lo: number, hi: number): number {
    this.#begin(opcode);
    this.#address(address);
    this.#pair(RAX, lo, hi);
    return opcode;
  }

  #bit(opcode: number, address: number, bit: number): number {
    this.#begin(opcode);
    this.#address(address);
    this.#pair(RCX, bit, 0);
    return opcode;
  }

  #value(opcode: number, lo: number, hi: number): number {
    this.#begin(opcode);
    this.#pair(RAX, lo, hi);
    return opcode;
  }

  #out(opcode: number, port: number, value: number): number {
    this.#begin(opcode);
    this.#pair(RDX, port, 0);
    this.#pair(RAX, value, 0);
    return opcode;
  }
}
