/**
 * Loads, stores and read-modify-writes of a processor that translates: page by page, before anything is read or written.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as memories from "../memory/mod.ts";
import { raise } from "./events.ts";
import { ACCESS, computeFrom, linearOperand, newHigh, newLow, price, writesLocked } from "./memory_access.ts";
import * as mmus from "./mmu.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { GP_VECTOR, HIGH, OP_BTR, OP_BTS, OP_LOCK_BTR, OP_LOCK_BTS, RCX, RDI } = abi;
const { PAGE_SIZE } = memories;
const { FAULTED, READS, VIRTUALIZED, WRITES } = mmus;

/** Bits 63:48 of a canonical address are as bit 47: what is left of the upper half. */
const CANONICAL_SHIFT = 15;

/** Executes an instruction whose operand's address is translated. */
export function accessLinear(p: Processor, op: number): void {
  const { bytes, writes } = ACCESS[op]!;
  const { regs } = p;
  if (writes && !p.paged && writesOwn(p, op)) return;
  const low = regs[RDI] | 0;
  const high = regs[RDI + 1] | 0;
  const sign = high >> CANONICAL_SHIFT;
  const plain = bytes >= 4 && (low & (bytes - 1)) === 0 && (sign === 0 || sign === -1) && !reachesFar(p, op);
  if (!plain) return accessAnywhere(p, op);
  const mmu = p.mmu!;
  const access = writes ? WRITES : READS;
  let slot = mmu.hit(high, low, access);
  let walked = 0;
  if (slot < 0) {
    const begun = p.thread.time;
    slot = mmu.miss(high * HIGH + (low >>> 0), access, bytes);
    if (slot === FAULTED) return;
    if (slot === VIRTUALIZED) return virtualized(p, op);
    walked = p.thread.time - begun;
    p.thread.time = begun;
  }
  if (!mmu.open(slot, low)) {
    place = mmu.place(slot, low);
    bytesBefore = bytes;
    return perform(p, op, walked);
  }
  const { window } = mmu;
  const at = (low & (PAGE_SIZE - 1)) >>> 2;
  if (computeFrom(p, op, window.word(at), bytes === 8 ? window.word(at + 1) : 0)) {
    window.store(at, newLow);
    if (bytes === 8) window.store(at + 1, newHigh);
    window.stored(at, bytes);
  }
  // Walks come after, in time: who waits for the store has seen it when the instruction began.
  p.charge(walked + price(p, op));
  p.retire(op);
}

/** A guest without tables may have mapped a slot read-only for itself all the same: whether a write to one has faulted. */
function writesOwn(p: Processor, op: number): boolean {
  const linear = linearOperand(p, op);
  return linear !== undefined && writesLocked(p, linear, ACCESS[op]!.bytes);
}

/** Where the operand is in the host's physical memory; behind its first bytes, so many of them, it may go on elsewhere. */
let place = 0;
let placeBehind = 0;
let bytesBefore = 0;

/** The same wherever the operand is: it may be in two pages, and not aligned. */
function accessAnywhere(p: Processor, op: number): void {
  const { bytes, writes } = ACCESS[op]!;
  const linear = linearOperand(p, op);
  if (linear === undefined) return raise(p, GP_VECTOR, 0);
  const mmu = p.mmu!;
  const access = writes ? WRITES : READS;
  const begun = p.thread.time;
  const first = Math.min(bytes, PAGE_SIZE - (linear & (PAGE_SIZE - 1)));
  const physical = mmu.translate(linear, access, bytes);
  if (physical === FAULTED) return;
  const behind = first < bytes && physical !== VIRTUALIZED ? mmu.translate(linear + first, access, bytes) : 0;
  if (behind === FAULTED) return;
  if (physical === VIRTUALIZED || behind === VIRTUALIZED) return virtualized(p, op);
  place = physical;
  placeBehind = behind;
  bytesBefore = first;
  const walked = p.thread.time - begun;
  p.thread.time = begun;
  perform(p, op, walked);
}

/** The hardware has done what there is to do: a read has its value. */
function virtualized(p: Processor, op: number): void {
  if (!ACCESS[op]!.writes) computeFrom(p, op, p.virtualValue, 0);
  p.charge(price(p, op));
  p.retire(op);
}

/** The access itself, at {@linkcode place}. Walks come after, in time, as above. */
function perform(p: Processor, op: number, walked: number): void {
  const { bytes, reads } = ACCESS[op]!;
  const { physical: space } = p.mmu!;
  let low = 0;
  let high = 0;
  if (reads) {
    for (let i = 0; i < bytes && i < 4; i++) low |= space.byte(placeOf(i)) << (8 * i);
    for (let i = 4; i < bytes; i++) high |= space.byte(placeOf(i)) << (8 * (i - 4));
  }
  if (computeFrom(p, op, low, high)) {
    for (let i = 0; i < bytes && i < 4; i++) space.setByte(placeOf(i), newLow >>> (8 * i));
    for (let i = 4; i < bytes; i++) space.setByte(placeOf(i), newHigh >>> (8 * (i - 4)));
  }
  p.charge(walked + price(p, op));
  p.retire(op);
}

function placeOf(byte: number): number {
  return byte < bytesBefore ? place + byte : placeBehind + byte - bytesBefore;
}

/** Whether a bit string's bit is not in the word at its base. */
function reachesFar(p: Processor, op: number): boolean {
  return (op === OP_BTR || op === OP_BTS || op === OP_LOCK_BTR || op === OP_LOCK_BTS) && p.regs[RCX] > 31;
}
