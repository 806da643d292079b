/**
 * EPT or nested tables in a hurry: what {@linkcode CachedSecond} does over {@linkcode Ept} or {@linkcode Npt} where a
 * page is known or its entries are all in order, in small integers and without an object. Whatever else comes up is for
 * those: nothing has changed then.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { high, low, tableRoot } from "../../abi/mod.ts";
import { PageWindow, type PhysicalSpace } from "../memory/mod.ts";
import type { CpuTlb } from "./cpu_tlb.ts";
import * as demand from "./demand.ts";
import type { Ept } from "./ept_walk.ts";
import type { Npt } from "./npt_walk.ts";
import { eptFormat, ordinaryFormat, type TableFormat } from "./table_format.ts";
import * as entry from "./tlb_entry.ts";
import type { TlbFill } from "./tlb_entry.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  EPT_MEMORY_TYPE_SHIFT,
  EPT_R,
  EPT_W,
  EPT_X,
  HIGH,
  LEVEL_PML4,
  LEVEL_PT,
  PTE_ADDRESS_HIGH,
  PTE_ADDRESS_LOW,
  PTE_PS,
  PTE_RW,
  PTE_US,
} = abi;
const { FETCHES, WRITES } = demand;
const {
  TLB_DIRTY,
  TLB_EXECUTABLE,
  TLB_HOST_EXECUTABLE,
  TLB_HOST_READABLE,
  TLB_HOST_WRITABLE,
  TLB_USER,
  TLB_WRITABLE,
} = entry;

/** What an entry of the guest's tables is read for: beside what accesses to pages are. */
export const TABLE = 4;

const READABLE = TLB_USER | TLB_HOST_READABLE;
const WRITABLE = TLB_WRITABLE | TLB_HOST_WRITABLE;
const EXECUTABLE = TLB_EXECUTABLE | TLB_HOST_EXECUTABLE;
/** Four levels translate addresses of 48 bits. */
const HIGH_LIMIT = 0x1_0000;
/** Memory types that there are, as bits: UC, WC, WT, WP, WB. */
const MEMORY_TYPES = 0b111_0011;
/** The lowest bit says in both formats that an entry can be read: P, or R. */
const PRESENT = 1;

/** The second dimension through a CPU's guest-physical mappings. What it finds it leaves in its fields. */
export class QuickSecond implements TlbFill {
  /** The page's guest-physical address, in halves: {@linkcode TlbFill.linearHigh} and so on. */
  linearHigh = 0;
  linearLow = 0;
  physicalHigh = 0;
  physicalLow = 0;
  guestHigh = 0;
  guestLow = 0;
  shift = 0;
  span = 0;
  flags = 0;
  memoryType = -1;
  /** Entries that were read. */
  accesses = 0;
  readonly #space: PhysicalSpace;
  readonly #windows: readonly PageWindow[] = Array.from({ length: LEVEL_PML4 + 1 }, () => new PageWindow());
  readonly #cpu: CpuTlb;
  readonly #ept: boolean;
  readonly #format: TableFormat;
  readonly #rootHigh: number;
  readonly #rootLow: number;
  /** Whether a read of the guest's tables is a write. */
  readonly #tableWrites: boolean;

  /** Does what `tables` would do, over what `cpu` knows of them. */
  constructor(space: PhysicalSpace, cpu: CpuTlb, tables: Ept | Npt) {
    const ept = "eptp" in tables;
    const root = tableRoot(ept ? tables.eptp : tables.ncr3);
    this.#space = space;
    this.#cpu = cpu;
    this.#ept = ept;
    this.#tableWrites = tables.tableAccessWrites;
    this.#format = ept
      ? eptFormat(tables.features, tables.tableAccessWrites)
      : ordinaryFormat(tables.features, tables.nx);
    this.#rootHigh = high(root);
    this.#rootLow = low(root) | 0;
  }

  /** Finds the page of a guest-physical address, given by its halves, for an access. false where others must. */
  find(high: number, low: number, access: number): boolean {
    const writes = access === WRITES || (access === TABLE && this.#tableWrites);
    const needs = writes
      ? TLB_HOST_WRITABLE | TLB_DIRTY
      : access === FETCHES
      ? TLB_HOST_EXECUTABLE
      : TLB_HOST_READABLE;
    const array = this.#cpu.tlb.guestPhysical;
    const slot = array.peek(high, low);
    if (slot < 0 || (array.flags(slot) & needs) !== needs) return this.#walk(high, low, needs);
    array.use(slot);
    if (this.#cpu.oracle !== undefined) this.#cpu.judgeHostPage(slot, high * HIGH + (low >>> 0));
    this.shift = array.shift(slot);
    this.flags = array.flags(slot);
    this.memoryType = array.memoryType(slot);
    this.physicalHigh = array.physicalHigh(slot);
    this.physicalLow = array.physicalLow(slot);
    this.accesses = 0;
    return true;
  }

  #walk(high: number, low: number, needs: number): boolean {
    if (high < 0 || high >= HIGH_LIMIT) return false;
    const format = this.#format;
    let tableHigh = this.#rootHigh;
    let tableLow = this.#rootLow;
    let rights = -1;
    let highs = 0;
    for (let level = LEVEL_PML4;; level--) {
      const window = this.#windows[level];
      if (!this.#space.open(window, tableHigh, tableLow)) return false;
      const index = indexOf(high, low, level);
      const entryLow = window.word(index);
      const entryHigh = window.word(index + 1);
      if ((entryLow & PRESENT) === 0 || (entryHigh & format.reservedHigh) !== 0) return false;
      rights &= entryLow;
      highs |= entryHigh;
      if (level === LEVEL_PT || (entryLow & PTE_PS) !== 0) {
        if ((entryLow & format.reservedInPage[level]) !== 0) return false;
        const flags = this.#ept ? eptFlags(rights, entryLow) : nestedFlags(rights, highs);
        if ((flags | TLB_DIRTY) !== (flags | TLB_DIRTY | needs)) return false;
        this.linearHigh = high;
        this.linearLow = low;
        this.physicalHigh = entryHigh & PTE_ADDRESS_HIGH;
        this.physicalLow = entryLow & PTE_ADDRESS_LOW;
        this.memoryType = this.#ept ? (entryLow >>> EPT_MEMORY_TYPE_SHIFT) & 7 : -1;
        this.#insert(level, flags, (needs & TLB_DIRTY) !== 0);
        return true;
      }
      if ((entryLow & format.reservedInTable[level]) !== 0) return false;
      tableHigh = entryHigh & PTE_ADDRESS_HIGH;
      tableLow = entryLow & PTE_ADDRESS_LOW;
    }
  }

  /** The walk has ended at a page of a level, and the access is allowed. */
  #insert(level: number, flags: number, write: boolean): void {
    const shift = 3 + 9 * level;
    const { linearHigh, linearLow } = this;
    const dirty = this.#setFlags(level, write);
    this.accesses = LEVEL_PML4 + 1 - level;
    this.shift = shift;
    this.span = shift;
    this.linearLow = linearLow & -(1 << shift);
    this.physicalLow &= -(1 << shift);
    this.guestHigh = linearHigh;
    this.guestLow = this.linearLow;
    this.flags = flags | (dirty ? TLB_DIRTY : 0);
    const { guestPhysical } = this.#cpu.tlb;
    guestPhysical.lookup(linearHigh, linearLow); // Counts, as the reference does.
    this.#cpu.fillHostPage(this);
  }

  /** Sets accessed and dirty flags from the root down to a level. Whether a write sets no dirty flag any more. */
  #setFlags(last: number, write: boolean): boolean {
    const { accessed, dirty } = this.#format;
    if (accessed === 0) return true;
    for (let level = LEVEL_PML4; level >= last; level--) {
      const wanted = write && level === last ? accessed | dirty : accessed;
      const window = this.#windows[level];
      const index = indexOf(this.linearHigh, this.linearLow, level);
      if ((window.word(index) & wanted) !== wanted) window.or(index, wanted);
    }
    return (this.#windows[last].word(indexOf(this.linearHigh, this.linearLow, last)) & dirty) !== 0;
  }
}

/** The index of an entry's low word in the table of a level. */
export function indexOf(high: number, low: number, level: number): number {
  if (level === LEVEL_PT) return (low >>> 11) & 0x3fe;
  if (level === 2) return (low >>> 20) & 0x3fe;
  return level === 3 ? ((high << 3) | (low >>> 29)) & 0x3fe : (high >>> 6) & 0x3fe;
}

/** An EPT entry's rights as flags; none where its memory type is reserved. */
function eptFlags(rights: number, leaf: number): number {
  if (((MEMORY_TYPES >>> ((leaf >>> EPT_MEMORY_TYPE_SHIFT) & 7)) & 1) === 0) return 0;
  return ((rights & EPT_R) !== 0 ? READABLE : 0) | ((rights & EPT_W) !== 0 ? WRITABLE : 0) |
    ((rights & EPT_X) !== 0 ? EXECUTABLE : 0);
}

/** A nested entry's; none where it is the supervisor's, as every access is a user's (APM 2 15.25.5). */
function nestedFlags(rights: number, highs: number): number {
  if ((rights & PTE_US) === 0) return 0;
  return READABLE | ((rights & PTE_RW) !== 0 ? WRITABLE : 0) | (highs < 0 ? 0 : EXECUTABLE);
}
