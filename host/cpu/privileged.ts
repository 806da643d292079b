/**
 * Instructions that touch the system: MSRs, control registers, I/O, hypercalls, mode and stack switches.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { linearAddress, X86_VMCALL, X86_VMMCALL } from "../../abi/mod.ts";
import { raise } from "./events.ts";
import { entryAt, linear, pushFrame, switchContext } from "./frames.ts";
import { movFromCr, movToCr } from "./control_registers.ts";
import { readLinear, readOperand } from "./linear.ts";
import * as mmus from "./mmu.ts";
import type { Processor } from "./processor.ts";
import { knownSelector } from "./state.ts";
import { invlpg, invpcid, setAc } from "./tlb_instructions.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CS,
  DESCRIPTOR_PTR64,
  EFER_SCE,
  ERROR_CODE,
  FLAG_FIXED,
  FLAG_IOPL,
  GP_VECTOR,
  HIGH,
  IA32_CSTAR,
  IA32_FMASK,
  IA32_FS_BASE,
  IA32_GS_BASE,
  IA32_KERNEL_GS_BASE,
  IA32_LSTAR,
  IA32_STAR,
  IA32_TSC,
  KERNEL_CS,
  NO_VECTOR,
  OP_IN8,
  OP_CLAC,
  OP_INVD,
  OP_INVLPG,
  OP_INVPCID,
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
  OP_OUT8,
  OP_STAC,
  OP_SWITCH,
  OP_SYSCALL,
  OP_SYSRET,
  OP_UD2,
  OP_WBINVD,
  R11,
  RAX,
  RCX,
  RDX,
  RFLAGS,
  SYSCALL_ENTRY,
  SYS_CSTAR,
  SYS_EFER,
  SYS_FMASK,
  SYS_FS_BASE,
  SYS_GS_BASE,
  SYS_IDT_BASE,
  SYS_IDT_LIMIT,
  SYS_KERNEL_GS_BASE,
  SYS_LSTAR,
  SYS_STAR,
  UD_VECTOR,
  USER_CS,
  VECTOR,
} = abi;

const { FETCHES, READS } = mmus;

/** MSRs that a processor keeps in its system registers and that hosts let guests reach without an exit. */
const SYSTEM_MSRS: ReadonlyMap<number, number> = new Map<number, number>([
  [IA32_FS_BASE, SYS_FS_BASE],
  [IA32_GS_BASE, SYS_GS_BASE],
  [IA32_KERNEL_GS_BASE, SYS_KERNEL_GS_BASE],
  [IA32_STAR, SYS_STAR],
  [IA32_LSTAR, SYS_LSTAR],
  [IA32_CSTAR, SYS_CSTAR],
  [IA32_FMASK, SYS_FMASK],
]);

/** The word of the system registers that holds an MSR; undefined for the others. */
export function systemMsrWord(msr: number): number | undefined {
  return SYSTEM_MSRS.get(msr);
}

/** Whether a system MSR takes a value: addresses must be canonical, and FMASK has 32 bits (SDM 4, table 2-2). */
export function systemMsrTakes(msr: number, high: number): boolean {
  if (msr === IA32_STAR) return true;
  if (msr === IA32_FMASK) return high === 0;
  const upper = high >> 15; // Bits 63:47, with their sign.
  return upper === 0 || upper === -1;
}

/** WRMSR. */
export function writeMsr(p: Processor, op: number): void {
  const { regs } = p;
  // Mostly CS alone says ring 0, and there is an exit.
  if ((regs[CS] & 3) !== 0 && p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  if (!p.virtualization.writeMsr(p, regs[RCX])) carryOutWrmsr(p, op);
}

/** What no hardware has dealt with. */
function carryOutWrmsr(p: Processor, op: number): void {
  const { regs } = p;
  const msr = regs[RCX];
  const word = SYSTEM_MSRS.get(msr);
  if (word !== undefined) {
    if (!systemMsrTakes(msr, regs[RDX])) return raise(p, GP_VECTOR, 0);
    p.sys[word] = regs[RAX];
    p.sys[word + 1] = regs[RDX];
  }
  p.charge(p.cost.msr);
  p.retire(op);
}

/** RDMSR. */
export function readMsr(p: Processor, op: number): void {
  const { regs } = p;
  if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  const msr = regs[RCX];
  if (p.virtualization.readMsr(p, msr)) return;
  const word = SYSTEM_MSRS.get(msr);
  if (word !== undefined) setPair(p, p.sys[word], p.sys[word + 1]);
  else if (msr === IA32_TSC) setPair(p, p.tsc(), p.tsc() / HIGH);
  else setPair(p, p.virtualValue, 0);
  p.charge(p.cost.msr);
  p.retire(op);
}

function setPair(p: Processor, low: number, high: number): void {
  const { regs } = p;
  regs[RAX] = low;
  regs[RAX + 1] = 0;
  regs[RDX] = high;
  regs[RDX + 1] = 0;
}

/**
 * A hypercall instruction. Which one it is stands in guest memory, at its site: a host that rewrites the bytes there
 * changes what is executed.
 */
export function hypercall(p: Processor): void {
  const site = p.rip;
  const { direct: memory } = p;
  let third: number;
  if (site + 2 < memory.flat) {
    third = hypercallByte(memory.u8, site);
  } else {
    const bytes = readLinear(p, site, 3, FETCHES);
    if (bytes === undefined) return;
    third = hypercallByte(new Uint8Array(bytes.buffer), 0);
  }
  if (third < 0) throw p.error("the bytes at its hypercall site are neither VMCALL nor VMMCALL any more");
  p.virtualization.hypercall(p, third === VMMCALL_BYTE);
}

/** VMCALL and VMMCALL differ in their third byte alone. */
const [FIRST_BYTE, SECOND_BYTE, VMCALL_BYTE] = X86_VMCALL.units;
const VMMCALL_BYTE = X86_VMMCALL.units[2];

/** The third byte of the hypercall instruction at a place, -1 if there is none. */
function hypercallByte(bytes: Uint8Array, at: number): number {
  const third = bytes[at + 2];
  const known = bytes[at] === FIRST_BYTE && bytes[at + 1] === SECOND_BYTE &&
    (third === VMCALL_BYTE || third === VMMCALL_BYTE);
  return known ? third : -1;
}

/** IN and OUT. */
export function portIo(p: Processor, op: number): void {
  const { regs } = p;
  // Without a TSS bitmap, I/O at a lower privilege than IOPL faults (SDM 1 19.5.2).
  if (p.cpl > ((regs[RFLAGS] & FLAG_IOPL) >>> 12)) return raise(p, GP_VECTOR, 0);
  const write = op >= OP_OUT8;
  const bytes = 1 << (op - (write ? OP_OUT8 : OP_IN8));
  if (!p.virtualization.io(p, regs[RDX] & 0xffff, bytes, write)) {
    throw p.error("I/O without unconditional I/O exiting is not modelled");
  }
}

/** Everything else. */
export function system(p: Processor, op: number): void {
  switch (op) {
    case OP_MOV_TO_CR0:
      return movToCr(p, op, 0);
    case OP_MOV_TO_CR3:
      return movToCr(p, op, 3);
    case OP_MOV_TO_CR4:
      return movToCr(p, op, 4);
    case OP_MOV_TO_CR8:
      p.needs64BitMode(op);
      return movToCr(p, op, 8);
    case OP_MOV_FROM_CR0:
      return movFromCr(p, op, 0);
    case OP_MOV_FROM_CR3:
      return movFromCr(p, op, 3);
    case OP_MOV_FROM_CR4:
      return movFromCr(p, op, 4);
    case OP_MOV_FROM_CR8:
      p.needs64BitMode(op);
      return movFromCr(p, op, 8);
    case OP_MOV_FROM_CR2:
      return movFromCr(p, op, 2);
    case OP_INVLPG:
      return invlpg(p, op);
    case OP_INVPCID:
      return invpcid(p, op);
    case OP_STAC:
      return setAc(p, op, true);
    case OP_CLAC:
      return setAc(p, op, false);
    case OP_LIDT:
      return lidt(p, op);
    case OP_LRET:
      return loadCs(p, op);
    case OP_SYSCALL:
      return syscall(p, op);
    case OP_SYSRET:
      return sysret(p, op);
    case OP_SWITCH:
      return switchTask(p, op);
    case OP_UD2:
      return raise(p, UD_VECTOR, 0);
    case OP_INVD:
    case OP_WBINVD:
      if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
      if (p.virtualization.invalidate(p, op === OP_WBINVD)) return;
      p.charge(p.cost.system);
      p.retire(op);
      return;
    default:
      throw p.error(`it yielded ${op}, which is no opcode`);
  }
}

function lidt(p: Processor, op: number): void {
  if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  // SDM 2A, LGDT/LIDT: 64 bits of base in 64-bit mode, 32 in compatibility mode as in protected mode.
  const operand = readOperand(p, p.longMode ? DESCRIPTOR_PTR64.size : 6, READS);
  if (operand === undefined) return;
  const low = operand.getUint32(2, true);
  const high = p.longMode ? operand.getUint32(6, true) : 0;
  // The base must be canonical (APM 3, LIDT): KVM's emulator asks no vendor, and only in 64-bit mode (em_lgdt_lidt).
  if (linearAddress(low, high) === undefined) return raise(p, GP_VECTOR, 0);
  p.sys[SYS_IDT_LIMIT] = operand.getUint16(0, true);
  p.sys[SYS_IDT_BASE] = low;
  p.sys[SYS_IDT_BASE + 1] = high;
  p.idtChanged();
  p.charge(p.cost.system);
  p.retire(op);
}

function loadCs(p: Processor, op: number): void {
  const selector = p.regs[RAX] & 0xffff;
  if (p.realMode || !knownSelector(selector) || (selector & 3) !== p.cpl) {
    return raise(p, GP_VECTOR, selector & 0xfffc);
  }
  p.regs[CS] = selector;
  p.charge(p.cost.system);
  p.retire(op);
}

function syscall(p: Processor, op: number): void {
  const { sys } = p;
  if ((sys[SYS_EFER] & EFER_SCE) === 0 || !p.longMode) return raise(p, UD_VECTOR, 0);
  p.retire(op);
  const next = p.rip;
  pushFrame(p, entryAt(p, linear(sys[SYS_LSTAR], sys[SYS_LSTAR + 1])));
  const { regs } = p;
  regs[RCX] = next;
  regs[RCX + 1] = next / HIGH;
  regs[R11] = regs[RFLAGS];
  regs[RFLAGS] = (regs[RFLAGS] & ~sys[SYS_FMASK]) | FLAG_FIXED;
  regs[CS] = KERNEL_CS;
  regs[VECTOR] = SYSCALL_ENTRY;
  regs[ERROR_CODE] = 0;
  p.charge(p.cost.iret);
}

function sysret(p: Processor, op: number): void {
  if ((p.sys[SYS_EFER] & EFER_SCE) === 0 || !p.longMode) return raise(p, UD_VECTOR, 0);
  if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  const entry = linear(p.regs[RCX], p.regs[RCX + 1]);
  const flags = p.regs[R11];
  p.retire(op);
  pushFrame(p, entryAt(p, entry));
  const { regs } = p;
  regs[RFLAGS] = (flags & 0x3c7fd7) | FLAG_FIXED; // SDM 2B, SYSRET: RF, VM and reserved bits are cleared.
  regs[CS] = USER_CS;
  regs[VECTOR] = NO_VECTOR;
  regs[ERROR_CODE] = 0;
  p.charge(p.cost.iret);
}

function switchTask(p: Processor, op: number): void {
  const { context } = p;
  const next = context.next;
  if (p.cpl !== 0) throw p.error("it switched tasks, which is the kernel's to do");
  context.next = undefined;
  if (next === undefined || next === context) throw p.error("it switched to no other task");
  p.retire(op);
  p.storeRip(p.rip);
  switchContext(p, next);
  p.charge(p.cost.insn);
}
