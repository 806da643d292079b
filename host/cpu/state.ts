/**
 * The registers of a processor in guest mode, and what follows from them: modes, privilege, and the instruction pointer.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { presentAddress, words, X86Cpu } from "../../abi/mod.ts";
import type { CodeStore } from "../../abi/mod.ts";
import * as slots from "../memory/mod.ts";
import * as activations from "./frames.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CR0_PE,
  CR0_PG,
  CS,
  EFER_LMA,
  HIGH,
  KERNEL32_CS,
  KERNEL_CS,
  RIP,
  SYS_CR0,
  SYS_CR3,
  SYS_EFER,
  SYS_WORDS,
  USER32_CS,
  USER_CS,
} = abi;
const { linear } = activations;
const { PAGE_SIZE } = slots;

/** A processor's registers. */
export class ProcessorState {
  /** The guest's text; empty until an image is loaded. */
  text: CodeStore = { blockAt: () => undefined };
  /** The context that it runs. */
  context: X86Cpu = new X86Cpu();
  /** That context's registers. */
  regs: Uint32Array = this.context.regs;
  /** The system registers. */
  readonly sys: Uint32Array = words(SYS_WORDS);
  /** Software has written RIP: the next entry goes on there. Otherwise RIP follows from the activation. */
  protected ripWritten = true;

  /** Whether it executes 64-bit code: IA32_EFER.LMA and a 64-bit code segment. */
  get longMode(): boolean {
    const selector = this.regs[CS];
    return (selector === KERNEL_CS || selector === USER_CS) && (this.sys[SYS_EFER] & EFER_LMA) !== 0;
  }

  /** Whether long mode is active: 64-bit or compatibility mode. */
  get longActive(): boolean {
    return (this.sys[SYS_EFER] & EFER_LMA) !== 0;
  }

  /** Whether it executes real-mode code: CR0.PE is clear. */
  get realMode(): boolean {
    return (this.sys[SYS_CR0] & CR0_PE) === 0;
  }

  /** The current privilege level; 0 in real mode, where selectors are no privilege. */
  get cpl(): number {
    const rpl = this.regs[CS] & 3;
    return rpl === 0 || this.realMode ? 0 : rpl;
  }

  /** Whether paging is on, and CR3 points to tables: a guest whose CR3 is in the first page has none. */
  get hasTables(): boolean {
    const { sys } = this;
    return (sys[SYS_CR0] & CR0_PG) !== 0 && (sys[SYS_CR3] >= PAGE_SIZE || sys[SYS_CR3 + 1] !== 0);
  }

  /** The base of the code segment: real mode's paragraphs, 0 elsewhere. */
  get codeBase(): number {
    return this.realMode ? 16 * this.regs[CS] : 0;
  }

  /** Software sets RIP, to go on at a linear address at the next entry. */
  setRip(address: number): void {
    this.storeRip(address);
    this.ripWritten = true;
  }

  /** Sets the RIP register to a linear address. */
  storeRip(address: number): void {
    const rip = address - this.codeBase;
    this.regs[RIP] = rip;
    this.regs[RIP + 1] = rip / HIGH;
  }

  /** The linear address that the RIP register holds. */
  get storedRip(): number {
    return this.codeBase + linear(this.regs[RIP], this.regs[RIP + 1]);
  }

  /** Loads CS with a real-mode segment. */
  setCodeSegment(selector: number): void {
    this.regs[CS] = selector;
  }

  /**
   * The linear address of the present instruction, or of the one that comes next. It follows from the activation,
   * unless software has written another.
   */
  get rip(): number {
    if (this.ripWritten) return this.storedRip;
    const { top, pending, last } = this.context;
    return presentAddress(top.block!, pending, last);
  }
}

/** Whether a selector is one that the processor knows. */
export function knownSelector(selector: number): boolean {
  return selector === KERNEL_CS || selector === KERNEL32_CS || selector === USER_CS || selector === USER32_CS;
}
