/**
 * How a processor begins: RESET and INIT, and what a boot loader leaves behind.
 *
 * @module
 */

import {
  CR0_CD,
  CR0_ET,
  CR0_NW,
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  CS,
  EFER_LMA,
  EFER_LME,
  FLAG_FIXED,
  KERNEL32_CS,
  KERNEL_CS,
  RFLAGS,
  SYS_CR0,
  SYS_CR4,
  SYS_CSTAR,
  SYS_EFER,
  SYS_FMASK,
  SYS_IDT_LIMIT,
  SYS_KERNEL_GS_BASE,
  SYS_LSTAR,
  SYS_STAR,
  SYS_TSC_AUX,
  X86Cpu,
} from "../../abi/mod.ts";
import type { Processor } from "./processor.ts";
import { endSpin } from "./waiting.ts";

/** CR0's cache bits. */
const CR0_CACHE = CR0_CD | CR0_NW;
/** Words of MSRs that INIT leaves alone. */
const KEPT_BY_INIT: readonly number[] = [
  SYS_KERNEL_GS_BASE,
  SYS_STAR,
  SYS_LSTAR,
  SYS_CSTAR,
  SYS_FMASK,
  SYS_TSC_AUX,
];

/**
 * RESET, or INIT: drops every activation without running its `finally`, and sets the registers of SDM 3A table 10-1.
 * INIT keeps CR0's cache bits, and MSRs that are no segment's.
 */
export function resetProcessor(p: Processor, init: boolean): void {
  endSpin(p);
  p.context.running = false;
  p.context = new X86Cpu();
  p.context.running = true;
  p.context.sys = p.sys;
  p.regs = p.context.regs;
  const old = p.sys.slice();
  p.sys.fill(0);
  p.sys[SYS_CR0] = CR0_ET | (init ? old[SYS_CR0] & CR0_CACHE : CR0_CACHE);
  if (init) {
    for (const word of KEPT_BY_INIT) p.sys.set(old.subarray(word, word + 2), word);
  }
  p.sys[SYS_IDT_LIMIT] = 0xffff;
  p.regs[RFLAGS] = FLAG_FIXED;
  p.regs[CS] = 0;
  p.shadow = false;
  p.nmiBlocked = false;
  p.vectored = 0;
  p.pagingChanged();
  p.requestWindow(false);
  p.microcode = undefined;
  p.working = false;
  p.setRip(0);
  p.finished = false;
  p.bootContext = p.context;
}

/** Puts it where a boot loader puts a 64-bit kernel: long mode, flat segments, interrupts off, at `entry`. */
export function startLongMode(p: Processor, entry: number): void {
  p.sys[SYS_CR0] = CR0_PE | CR0_ET | CR0_PG;
  p.sys[SYS_CR4] = CR4_PAE;
  p.sys[SYS_EFER] = EFER_LME | EFER_LMA;
  p.regs[CS] = KERNEL_CS;
  p.pagingChanged();
  p.setRip(entry);
}

/** Puts it where a boot loader puts a 32-bit kernel: protected mode without paging, at `entry`. */
export function startProtectedMode(p: Processor, entry: number): void {
  p.sys[SYS_CR0] = CR0_PE | CR0_ET;
  p.regs[CS] = KERNEL32_CS;
  p.pagingChanged();
  p.setRip(entry);
}
