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
import { TlbFill } from "./tlb_entry.ts";

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
export class QuickSecond {
  /** The page: as a walk has found it, or of what is known {@linkcode TlbFill.flags} and where it is. */
  readonly page = new TlbFill();
  /** Entries that were read. */
  accesses = 0;
  readonly #windows: readonly PageWindow[];
  readonly #cpu: CpuTlb;
  readonly #tables: Ept | Npt;
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
    this.#windows = Array.from({ length: LEVEL_PML4 + 1 }, () => new PageWindow(space));
    this.#cpu = cpu;
    this.#tables = tables;
    this.#ept = ept;
    this.#tableWrites = tables.tableAccessWrites;
    this.#format = ept
      ? eptFormat(tables.features, tables.tableAccessWrites)
      : ordinaryFormat(tables.features, tables.nx);
    this.#rootHigh = high(root);
    this.#rootLow = low(root) | 0;
  }

  /** Whether it does what other tables would do, over what a CPU knows of them. */
  does(tables: Ept | Npt, cpu: CpuTlb): boolean {
    const own = this.#tables;
    if (cpu !== this.#cpu || tables.features !== own.features) return false;
    if ("eptp" in tables) return "eptp" in own && tables.eptp === own.eptp;
    return "ncr3" in own && tables.ncr3 === own.ncr3 && tables.nx === own.nx;
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
    if (slot < 0 || (array.flags(slot) & needs) !== needs) {
      if (!this.#walk(high, low, needs)) return false;
      array.use(slot); // Counts, as the reference does.
      this.#cpu.fillHostPage(this.page);
      return true;
    }
    array.use(slot);
    if (this.#cpu.oracle !== undefined) this.#cpu.judgeHostPage(slot, high * HIGH + (low >>> 0));
    const { page } = this;
    page.shift = array.shift(slot);
    page.flags = array.flags(slot);
    page.memoryType = array.memoryType(slot);
    page.physicalHigh = array.physicalHigh(slot);
    page.physicalLow = array.physicalLow(slot);
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
      if (!window.open(tableHigh, tableLow)) return false;
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
        const { page } = this;
        page.linearHigh = high;
        page.linearLow = low;
        page.physicalHigh = entryHigh & PTE_ADDRESS_HIGH;
        page.physicalLow = entryLow & PTE_ADDRESS_LOW;
        page.memoryType = this.#ept ? (entryLow >>> EPT_MEMORY_TYPE_SHIFT) & 7 : -1;
        const set = (needs & TLB_DIRTY) !== 0 ? format.accessed | format.dirty : format.accessed;
        const clean = format.dirty !== 0 && ((entryLow | set) & format.dirty) === 0;
        this.#found(level, flags | (clean ? 0 : TLB_DIRTY));
        if ((rights & format.accessed) !== format.accessed || (entryLow & set) !== set) {
          this.#setFlags(level, set);
        }
        return true;
      }
      if ((entryLow & format.reservedInTable[level]) !== 0) return false;
      tableHigh = entryHigh & PTE_ADDRESS_HIGH;
      tableLow = entryLow & PTE_ADDRESS_LOW;
    }
  }

  /** The walk has ended at a page of a level: what of it is cached. */
  #found(level: number, flags: number): void {
    const shift = 3 + 9 * level;
    this.accesses = LEVEL_PML4 + 1 - level;
    const { page } = this;
    page.shift = shift;
    page.span = shift;
    page.physicalLow &= -1 << shift;
    page.guestHigh = page.linearHigh;
    page.guestLow = page.linearLow & (-1 << shift);
    page.flags = flags;
  }

  /** Sets accessed flags from the root down to a level, and `set` there. */
  #setFlags(last: number, set: number): void {
    const { linearHigh, linearLow } = this.page;
    for (let level = LEVEL_PML4; level >= last; level--) {
      const wanted = level === last ? set : this.#format.accessed;
      const window = this.#windows[level];
      const index = indexOf(linearHigh, linearLow, level);
      if ((window.word(index) & wanted) !== wanted) window.or(index, wanted);
    }
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
