/**
 * Loads, stores and read-modify-writes: on plain memory at once, elsewhere through the virtualization hardware.
 *
 * What an instruction reads and writes is described once, by {@linkcode ACCESS}; software that emulates it for an
 * MMIO exit uses the same description.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { instructionText, u64 } from "../../abi/mod.ts";
import type { Costs } from "../cost/mod.ts";
import * as slots from "../memory/mod.ts";
import { raise } from "./events.ts";
import { additionFlags, comparisonFlags, comparisonFlags64, STATUS_FLAGS } from "./flags.ts";
import { addressIn, isAddress } from "./linear.ts";
import { accessLinear } from "./linear_access.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CR0_WP,
  FLAG_CF,
  GP_VECTOR,
  HIGH,
  OP_BTR,
  OP_BTS,
  OP_CMPXCHG32,
  OP_CMPXCHG64,
  OP_LOAD16,
  OP_LOAD32,
  OP_LOAD64,
  OP_LOAD8,
  OP_LOCK_BTR,
  OP_LOCK_BTS,
  OP_STORE16,
  OP_STORE32,
  OP_STORE64,
  OP_STORE8,
  OP_XADD32,
  OP_XCHG32,
  OP_XCHG64,
  PFERR_PRESENT,
  PFERR_USER,
  PFERR_WRITE,
  PF_VECTOR,
  PHYSICAL_ADDRESS_LIMIT,
  RAX,
  RCX,
  RDI,
  RFLAGS,
  SYS_CR0,
  SYS_CR2,
} = abi;
const { PAGE_SIZE } = slots;

/** How an instruction uses memory. */
export interface AccessSpec {
  /** Operand bytes. */
  readonly bytes: number;
  /** Whether it reads the operand. */
  readonly reads: boolean;
  /** Whether it writes the operand. */
  readonly writes: boolean;
  /** Its price. */
  readonly primitive: "load" | "store" | "locked";
}

function spec(bytes: number, use: "r" | "w" | "rw", primitive: AccessSpec["primitive"]): AccessSpec {
  return { bytes, reads: use !== "w", writes: use !== "r", primitive };
}

/** By opcode: how it uses memory; undefined for instructions without a memory operand. */
export const ACCESS: readonly (AccessSpec | undefined)[] = (() => {
  const table: (AccessSpec | undefined)[] = [];
  table[OP_LOAD8] = spec(1, "r", "load");
  table[OP_LOAD16] = spec(2, "r", "load");
  table[OP_LOAD32] = spec(4, "r", "load");
  table[OP_LOAD64] = spec(8, "r", "load");
  table[OP_STORE8] = spec(1, "w", "store");
  table[OP_STORE16] = spec(2, "w", "store");
  table[OP_STORE32] = spec(4, "w", "store");
  table[OP_STORE64] = spec(8, "w", "store");
  table[OP_BTR] = spec(4, "rw", "store");
  table[OP_BTS] = spec(4, "rw", "store");
  table[OP_LOCK_BTR] = spec(4, "rw", "locked");
  table[OP_LOCK_BTS] = spec(4, "rw", "locked");
  table[OP_XCHG32] = spec(4, "rw", "locked");
  table[OP_XCHG64] = spec(8, "rw", "locked");
  table[OP_CMPXCHG32] = spec(4, "rw", "locked");
  table[OP_CMPXCHG64] = spec(8, "rw", "locked");
  table[OP_XADD32] = spec(4, "rw", "locked");
  return table;
})();

/** The old operand, in halves: what {@linkcode compute} starts from. */
let oldLow = 0;
let oldHigh = 0;
/** The new operand's low half. */
export let newLow = 0;
/** The new operand's high half. */
export let newHigh = 0;

/** Bit strings reach beyond their base: BT's register form addresses the 32-bit word that holds the bit. */
export function effectiveAddress(p: Processor, op: number, address: number): number {
  switch (op) {
    case OP_BTR:
    case OP_BTS:
    case OP_LOCK_BTR:
    case OP_LOCK_BTS:
      return address + 4 * (p.regs[RCX] >> 5);
    default:
      return address;
  }
}

/** What RDI holds, as a number. */
export function operandBase(p: Processor): number {
  const high = p.regs[RDI + 1];
  return high === 0 ? p.regs[RDI] : high * HIGH + p.regs[RDI];
}

/** The short way of {@linkcode accessMemory} for 32 bits, where they are aligned and flat: MOV and BTR. */
export function access32(p: Processor, op: number): void {
  const { direct: memory, regs } = p;
  const address = regs[RDI];
  const word = address >>> 2;
  const bit = regs[RCX];
  const flat = regs[RDI + 1] === 0 && (address & 3) === 0 && word < memory.flatWords;
  if (!flat || (op === OP_BTR && bit > 31)) {
    if (memory === p.memory) accessMemory(p, op);
    else accessLinear(p, op);
    return;
  }
  const old = memory.u32[word];
  if (op === OP_LOAD32) {
    regs[RAX] = old;
    regs[RAX + 1] = 0;
    p.charge(p.cost.load);
  } else {
    if (op === OP_STORE32) {
      memory.u32[word] = regs[RAX];
    } else {
      memory.u32[word] = old & ~(1 << bit);
      regs[RFLAGS] = (regs[RFLAGS] & ~FLAG_CF) | ((old >>> bit) & 1);
    }
    if (memory.watched !== 0) memory.stored(address, 4);
    p.charge(p.cost.store);
  }
  p.retire(op);
}

/** Executes an instruction with a memory operand. */
export function accessMemory(p: Processor, op: number): void {
  const { bytes, reads, writes, primitive } = ACCESS[op]!;
  if (bytes === 8) p.needs64BitMode(op);
  const address = effectiveAddress(p, op, operandBase(p));
  const { direct: memory } = p;
  const flat = address >= 0 && address + bytes <= memory.flat;
  if (!flat && memory !== p.memory) return accessLinear(p, op);
  const slot = flat ? undefined : memory.find(address, bytes);
  if (!flat && (slot === undefined || (writes && (slot.readonly || slot.guestReadonly)))) {
    return elsewhere(p, op, address, bytes, writes);
  }
  if (flat && bytes >= 4 && (address & 3) === 0) return accessWords(p, op, address, bytes);
  const u8 = slot === undefined ? memory.u8 : slot.u8;
  const at = slot === undefined ? address : address - slot.base;
  if (reads) {
    oldLow = 0;
    oldHigh = 0;
    for (let i = 0; i < bytes && i < 4; i++) oldLow |= u8[at + i] << (8 * i);
    for (let i = 4; i < bytes; i++) oldHigh |= u8[at + i] << (8 * (i - 4));
  }
  if (compute(p, op)) {
    for (let i = 0; i < bytes && i < 4; i++) u8[at + i] = newLow >>> (8 * i);
    for (let i = 4; i < bytes; i++) u8[at + i] = newHigh >>> (8 * (i - 4));
    if (memory.watched !== 0) memory.stored(address, bytes);
  }
  p.charge(priceOf(p.cost, primitive));
  p.retire(op);
}

/** One or two aligned words of flat memory: what most accesses are. Halves are kept signed, as small integers. */
function accessWords(p: Processor, op: number, address: number, bytes: number): void {
  const { memory } = p;
  const { u32 } = memory;
  const word = address >>> 2;
  oldLow = u32[word] | 0;
  oldHigh = bytes === 8 ? u32[word + 1] | 0 : 0;
  if (compute(p, op)) {
    u32[word] = newLow;
    if (bytes === 8) u32[word + 1] = newHigh;
    if (memory.watched !== 0) memory.stored(address, bytes);
  }
  p.charge(priceOf(p.cost, ACCESS[op]!.primitive));
  p.retire(op);
}

/** What an instruction's access to memory costs. */
export function price(p: Processor, op: number): number {
  return priceOf(p.cost, ACCESS[op]!.primitive);
}

/** What a memory access costs; asked by name, as a lookup in the table of prices would be a slow one. */
function priceOf(cost: Costs, primitive: AccessSpec["primitive"]): number {
  return primitive === "load" ? cost.load : primitive === "store" ? cost.store : cost.locked;
}

/**
 * The register part of an instruction with a memory operand: reads the old operand from the module's variables,
 * changes registers and flags, and leaves the new operand there. Whether there is one to write.
 */
function compute(p: Processor, op: number): boolean {
  const { regs } = p;
  switch (op) {
    case OP_LOAD8:
    case OP_LOAD16:
    case OP_LOAD32:
    case OP_LOAD64:
      regs[RAX] = oldLow;
      regs[RAX + 1] = oldHigh;
      return false;
    case OP_STORE8:
    case OP_STORE16:
    case OP_STORE32:
    case OP_STORE64:
      newLow = regs[RAX] | 0;
      newHigh = regs[RAX + 1] | 0;
      return true;
    case OP_BTR:
    case OP_LOCK_BTR:
    case OP_BTS:
    case OP_LOCK_BTS: {
      const bit = regs[RCX] & 31;
      const set = op === OP_BTS || op === OP_LOCK_BTS;
      regs[RFLAGS] = (regs[RFLAGS] & ~FLAG_CF) | ((oldLow >>> bit) & 1);
      newLow = set ? oldLow | (1 << bit) : oldLow & ~(1 << bit);
      return true;
    }
    case OP_XCHG32:
    case OP_XCHG64:
      newLow = regs[RAX] | 0;
      newHigh = regs[RAX + 1] | 0;
      regs[RAX] = oldLow;
      regs[RAX + 1] = oldHigh;
      return true;
    case OP_CMPXCHG32:
    case OP_CMPXCHG64: {
      // The destination is written in either case (SDM 2A, CMPXCHG): with the old value when they differ.
      const same = (oldLow >>> 0) === regs[RAX] &&
        (op === OP_CMPXCHG32 || (oldHigh >>> 0) === regs[RAX + 1]);
      const compared = op === OP_CMPXCHG32
        ? comparisonFlags(regs[RAX], oldLow)
        : comparisonFlags64(regs[RAX], regs[RAX + 1], oldLow, oldHigh);
      regs[RFLAGS] = (regs[RFLAGS] & ~STATUS_FLAGS) | compared;
      newLow = same ? regs[RCX] | 0 : oldLow;
      newHigh = same ? regs[RCX + 1] | 0 : oldHigh;
      if (!same) {
        regs[RAX] = oldLow;
        regs[RAX + 1] = oldHigh;
      }
      return true;
    }
    case OP_XADD32:
      regs[RFLAGS] = (regs[RFLAGS] & ~STATUS_FLAGS) | additionFlags(oldLow, regs[RAX]);
      newLow = (oldLow + regs[RAX]) | 0;
      regs[RAX] = oldLow;
      regs[RAX + 1] = 0;
      return true;
    default:
      throw p.error(`${instructionText(op)} has no memory operand`);
  }
}

/** The register part of an instruction whose old operand was read elsewhere. Whether there is a new one to write. */
export function computeFrom(p: Processor, op: number, low: number, high: number): boolean {
  oldLow = low;
  oldHigh = high;
  return compute(p, op);
}

/** An access that no single plain slot serves. */
function elsewhere(p: Processor, op: number, address: number, bytes: number, writes: boolean): void {
  const { memory } = p;
  if (address < 0 || address + bytes > PHYSICAL_ADDRESS_LIMIT) return raise(p, GP_VECTOR, 0);
  if (writes && writesLocked(p, address, bytes)) return;
  if (writes ? memory.writable(address, bytes) : memory.backed(address, bytes)) {
    return acrossSlots(p, op, address, bytes, writes);
  }
  // A page-crossing access leaves at the first page that is not plain memory.
  const boundary = Math.floor((address + bytes - 1) / PAGE_SIZE) * PAGE_SIZE;
  const first = boundary > address ? boundary - address : bytes;
  const firstPlain = first < bytes &&
    (writes ? memory.writable(address, first) : memory.backed(address, first));
  if (p.virtualization.unbacked(p, firstPlain ? boundary : address, bytes, writes)) return;
  if (!writes) {
    oldLow = p.virtualValue;
    oldHigh = 0;
    compute(p, op);
  }
  p.charge(priceOf(p.cost, ACCESS[op]!.primitive));
  p.retire(op);
}

/** The address of the pending instruction's operand, a signed number; undefined where that raises #GP. */
export function linearOperand(p: Processor, op: number): number | undefined {
  const linear = effectiveAddress(p, op, addressIn(p, p.regs[RDI], p.regs[RDI + 1]));
  return isAddress(p, linear, ACCESS[op]!.bytes) ? linear : undefined;
}

/** A write to what a guest without tables has mapped read-only for itself raises #PF. Whether it has. */
export function writesLocked(p: Processor, address: number, bytes: number): boolean {
  const locked = readonlyByte(p, address, bytes);
  if (locked < 0) return false;
  p.sys[SYS_CR2] = locked;
  p.sys[SYS_CR2 + 1] = locked / HIGH;
  const user = p.cpl === 3 ? PFERR_USER : 0;
  raise(p, PF_VECTOR, PFERR_PRESENT | PFERR_WRITE | user);
  return true;
}

/** The first byte of a range that the guest has mapped read-only for itself, -1 for none. */
function readonlyByte(p: Processor, address: number, bytes: number): number {
  if ((p.sys[SYS_CR0] & CR0_WP) === 0 && p.cpl !== 3) return -1;
  for (let at = address; at < address + bytes; at++) {
    if (p.memory.find(at, 1)?.guestReadonly) return at;
  }
  return -1;
}

/** Every byte is plain memory, but not in one slot. */
function acrossSlots(p: Processor, op: number, address: number, bytes: number, writes: boolean): void {
  const { memory } = p;
  const old = memory.read(address, bytes)!;
  oldLow = Number(old & 0xffff_ffffn);
  oldHigh = Number(old >> 32n);
  if (compute(p, op) && writes) memory.write(address, bytes, u64(newLow, newHigh));
  p.charge(priceOf(p.cost, ACCESS[op]!.primitive));
  p.retire(op);
}

/**
 * Finishes a read by software: gives the pending instruction the operand that an MMIO read brought. Answers with what
 * it writes back, undefined where it writes nothing.
 */
export function emulateOperand(p: Processor, op: number, operand: bigint): bigint | undefined {
  oldLow = Number(operand & 0xffff_ffffn);
  oldHigh = Number((operand >> 32n) & 0xffff_ffffn);
  return compute(p, op) ? u64(newLow, newHigh) : undefined;
}
