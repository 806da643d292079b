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
import * as instructions from "./instructions.ts";
import * as registers from "./registers.ts";
import { X86SystemInstructions } from "./system_instructions.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { HIGH } = bits;
const {
  OP_BTR,
  OP_BTS,
  OP_CLI,
  OP_CMPXCHG32,
  OP_CMPXCHG64,
  OP_CPUID,
  OP_HLT,
  OP_IN16,
  OP_IN32,
  OP_IN8,
  OP_LOAD16,
  OP_LOAD32,
  OP_LOAD64,
  OP_LOAD8,
  OP_LOCK_BTR,
  OP_LOCK_BTS,
  OP_OUT16,
  OP_OUT32,
  OP_OUT8,
  OP_PAUSE,
  OP_PAUSE_WHILE,
  OP_PUSHF,
  OP_RDTSC,
  OP_STI,
  OP_STORE16,
  OP_STORE32,
  OP_STORE64,
  OP_STORE8,
  OP_SWITCH,
  OP_VMCALL,
  OP_VMMCALL,
  OP_WORK,
  OP_XADD32,
  OP_XCHG32,
  OP_XCHG64,
} = instructions;
const { FLAG_FIXED, FLAG_IF, RAX, RBX, RCX, RDX, RFLAGS, RIP, RSI } = registers;

/** An execution context of an x86 processor, and the instructions that it can be given. See the module's description. */
export class X86Cpu extends X86SystemInstructions {
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
    this.begin(OP_CPUID);
    this.pair(RAX, leaf, 0);
    this.pair(RCX, subleaf, 0);
    return OP_CPUID;
  }

  /** RDTSC: the time-stamp counter comes in EDX:EAX. */
  rdtsc(): number {
    return this.begin(OP_RDTSC);
  }

  /** VMCALL with the registers as they are; see {@linkcode loadHypercall}. */
  vmcall(): number {
    return this.begin(OP_VMCALL);
  }

  /** VMMCALL with the registers as they are; see {@linkcode loadHypercall}. */
  vmmcall(): number {
    return this.begin(OP_VMMCALL);
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
    this.wide(RAX, nr);
    if (a0 !== undefined) this.wide(RBX, a0);
    if (a1 !== undefined) this.wide(RCX, a1);
    if (a2 !== undefined) this.wide(RDX, a2);
    if (a3 !== undefined) this.wide(RSI, a3);
    return this;
  }

  /** HLT: waits for an interrupt. Privileged. */
  hlt(): number {
    return this.begin(OP_HLT);
  }
  /** PAUSE. */
  pause(): number {
    return this.begin(OP_PAUSE);
  }
  /** CLI. Needs CPL <= IOPL. */
  cli(): number {
    return this.begin(OP_CLI);
  }
  /** STI. Needs CPL <= IOPL. */
  sti(): number {
    return this.begin(OP_STI);
  }
  /** RFLAGS to RAX. */
  pushf(): number {
    return this.begin(OP_PUSHF);
  }

  /** IN AL, DX. */
  in8(port: number): number {
    this.begin(OP_IN8);
    this.pair(RDX, port, 0);
    return OP_IN8;
  }
  /** IN AX, DX. */
  in16(port: number): number {
    this.begin(OP_IN16);
    this.pair(RDX, port, 0);
    return OP_IN16;
  }
  /** IN EAX, DX. */
  in32(port: number): number {
    this.begin(OP_IN32);
    this.pair(RDX, port, 0);
    return OP_IN32;
  }
  /** OUT DX, AL. */
  out8(port: number, value: number): number {
    return this.out(OP_OUT8, port, value);
  }
  /** OUT DX, AX. */
  out16(port: number, value: number): number {
    return this.out(OP_OUT16, port, value);
  }
  /** OUT DX, EAX. */
  out32(port: number, value: number): number {
    return this.out(OP_OUT32, port, value);
  }

  /** Loads a byte into RAX, zero-extended. */
  load8(address: number): number {
    return this.memory(OP_LOAD8, address);
  }
  /** Loads 16 bits into RAX, zero-extended. */
  load16(address: number): number {
    return this.memory(OP_LOAD16, address);
  }
  /** Loads 32 bits into RAX, zero-extended. */
  load32(address: number): number {
    return this.memory(OP_LOAD32, address);
  }
  /** Loads 64 bits into RAX. */
  load64(address: number): number {
    return this.memory(OP_LOAD64, address);
  }
  /** Stores a byte. */
  store8(address: number, value: number): number {
    return this.store(OP_STORE8, address, value, 0);
  }
  /** Stores 16 bits. */
  store16(address: number, value: number): number {
    return this.store(OP_STORE16, address, value, 0);
  }
  /** Stores 32 bits. */
  store32(address: number, value: number): number {
    return this.store(OP_STORE32, address, value, 0);
  }
  /** Stores `hi`:`lo`. */
  store64(address: number, lo: number, hi: number = 0): number {
    return this.store(OP_STORE64, address, lo, hi);
  }

  /** Test-and-reset of bit `bit` of the bit string at `address`; the old bit comes in CF. Not locked. */
  btr(address: number, bit: number): number {
    return this.bit(OP_BTR, address, bit);
  }
  /** Test-and-set of a bit; the old bit comes in CF. Not locked. */
  bts(address: number, bit: number): number {
    return this.bit(OP_BTS, address, bit);
  }
  /** Locked test-and-reset of a bit; the old bit comes in CF. */
  lockBtr(address: number, bit: number): number {
    return this.bit(OP_LOCK_BTR, address, bit);
  }
  /** Locked test-and-set of a bit; the old bit comes in CF. */
  lockBts(address: number, bit: number): number {
    return this.bit(OP_LOCK_BTS, address, bit);
  }

  /** Exchanges 32 bits with memory; the old value comes in RAX. */
  xchg32(address: number, value: number): number {
    return this.store(OP_XCHG32, address, value, 0);
  }
  /** Exchanges 64 bits with memory; the old value comes in RAX. */
  xchg64(address: number, lo: number, hi: number = 0): number {
    return this.store(OP_XCHG64, address, lo, hi);
  }
  /** Stores `value` if memory holds `expected`; ZF says so, and EAX gets what memory held if not. */
  cmpxchg32(address: number, expected: number, value: number): number {
    this.begin(OP_CMPXCHG32);
    this.address(address);
    this.pair(RAX, expected, 0);
    this.pair(RCX, value, 0);
    return OP_CMPXCHG32;
  }
  /** The 64-bit form of {@linkcode cmpxchg32}; values are whole numbers below 2^53. */
  cmpxchg64(address: number, expected: number, value: number): number {
    this.begin(OP_CMPXCHG64);
    this.address(address);
    this.pair(RAX, expected, expected / HIGH);
    this.pair(RCX, value, value / HIGH);
    return OP_CMPXCHG64;
  }
  /** Adds to 32 bits of memory, locked; the old value comes in EAX. */
  xadd32(address: number, value: number): number {
    return this.store(OP_XADD32, address, value, 0);
  }

  /** Computes for `cycles` cycles; interrupts are taken in the middle, and the rest is done after them. */
  work(cycles: number): number {
    this.begin(OP_WORK);
    this.pair(RCX, cycles, cycles >>> 0 === cycles ? 0 : cycles / HIGH);
    return OP_WORK;
  }

  /**
   * Waits, in a PAUSE loop, while the 32-bit word at `address` equals `value`. Costs what the loop costs; afterwards
   * EAX is still `value`.
   */
  pauseWhile(address: number, value: number): number {
    return this.store(OP_PAUSE_WHILE, address, value, 0);
  }

  /** Switches the stack: the processor goes on with `task`, and with this context once a task switches back. */
  switchTo(task: X86Cpu): number {
    this.begin(OP_SWITCH);
    this.next = task;
    return OP_SWITCH;
  }
}
