/**
 * What the processor reads for itself at linear addresses: operands of system instructions, and code.
 *
 * @module
 */

import { GP_VECTOR, HIGH, instructionText, isCanonical, PHYSICAL_ADDRESS_LIMIT, RDI } from "../../abi/mod.ts";
import { PAGE_SIZE } from "../memory/mod.ts";
import { raise } from "./events.ts";
import { type Access, FAULTED, VIRTUALIZED } from "./mmu.ts";
import type { Processor } from "./processor.ts";

/** The operand that RDI points to; undefined where that has faulted, or exited. */
export function readOperand(p: Processor, bytes: number, access: Access): DataView | undefined {
  const linear = addressIn(p, p.regs[RDI], p.regs[RDI + 1]);
  if (isAddress(p, linear, bytes)) return readLinear(p, linear, bytes, access);
  raise(p, GP_VECTOR, 0);
  return undefined;
}

/** The address that a register holds, by its halves: a signed number under tables, else a physical address. */
export function addressIn(p: Processor, low: number, high: number): number {
  return (p.paged ? high | 0 : high) * HIGH + low;
}

/** Whether `bytes` from a number on are addresses: canonical ones under tables, else physical ones. */
export function isAddress(p: Processor, address: number, bytes: number): boolean {
  return p.paged
    ? isCanonical(address) && isCanonical(address + bytes - 1)
    : address >= 0 && address + bytes <= PHYSICAL_ADDRESS_LIMIT;
}

/** Bytes from an address on; undefined where that has faulted, or exited. */
export function readLinear(
  p: Processor,
  linear: number,
  bytes: number,
  access: Access,
): DataView | undefined {
  const view = new DataView(new ArrayBuffer(bytes));
  if (!p.translates) {
    if (!p.memory.backed(linear, bytes)) throw outside(p);
    for (let i = 0; i < bytes; i++) view.setUint8(i, p.memory.byte(linear + i));
    return view;
  }
  const mmu = p.mmu!;
  for (let i = 0; i < bytes;) {
    const physical = mmu.translate(linear + i, access, bytes);
    if (physical === FAULTED) return undefined;
    if (physical === VIRTUALIZED) throw outside(p);
    const end = Math.min(bytes, i + PAGE_SIZE - ((linear + i) & (PAGE_SIZE - 1)));
    for (let at = physical; i < end; i++, at++) view.setUint8(i, mmu.physical.byte(at));
  }
  return view;
}

function outside(p: Processor): Error {
  const { pending } = p.context;
  return p.error(`the operand of ${instructionText(pending)}, or its code, is not in plain memory`);
}
