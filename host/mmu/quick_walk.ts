/**
 * Walks in a hurry: what {@linkcode translate} does and a TLB then caches, where all entries are in order, in small
 * integers and without an object. {@linkcode translate} is the reference, and does whatever else comes up: a walk that
 * does not know the outcome has done nothing that the reference would do again differently.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { PagingFeatures } from "../../abi/mod.ts";
import { PageWindow, type PhysicalSpace } from "../memory/mod.ts";
import type { CpuTlb } from "./cpu_tlb.ts";
import * as demand from "./demand.ts";
import type { Demand } from "./demand.ts";
import { Ept } from "./ept_walk.ts";
import { Npt } from "./npt_walk.ts";
import * as second from "./quick_second.ts";
import { QuickSecond } from "./quick_second.ts";
import { RepeatedSecond, TableSteps } from "./repeated_second.ts";
import { ordinaryFormat, type TableFormat } from "./table_format.ts";
import * as entry from "./tlb_entry.ts";
import { TlbFill } from "./tlb_entry.ts";
import type { Paging, PagingState, SecondDimension } from "./translation.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CR0_PG,
  CR4_CET,
  CR4_LA57,
  CR4_PGE,
  CR4_PKE,
  CR4_PKS,
  EFER_LMA,
  EFER_NX,
  LEVEL_PML4,
  LEVEL_PT,
  PTE_A,
  PTE_ADDRESS_HIGH,
  PTE_ADDRESS_LOW,
  PTE_D,
  PTE_G,
  PTE_P,
  PTE_PS,
  PTE_RW,
  PTE_US,
} = abi;
const { WRITES } = demand;
const { indexOf, TABLE } = second;
const {
  TLB_DIRTY,
  TLB_EXECUTABLE,
  TLB_GLOBAL,
  TLB_HOST_EXECUTABLE,
  TLB_HOST_READABLE,
  TLB_HOST_WRITABLE,
  TLB_USER,
  TLB_WRITABLE,
} = entry;

/** A page was found: {@linkcode QuickWalk.page} is what a TLB caches. */
export const FOUND = 0;
/** An entry of the guest's is not present. */
export const ABSENT = 1;
/** The guest's tables deny the access. */
export const DENIED = 2;
/** It is for the reference to find out. */
export const UNKNOWN = 3;
/** What comes of a quick walk. */
export type Outcome = typeof FOUND | typeof ABSENT | typeof DENIED | typeof UNKNOWN;

/** The guest's part of an entry's flags. */
const GUEST = TLB_WRITABLE | TLB_USER | TLB_EXECUTABLE;
const HOST = TLB_HOST_READABLE | TLB_HOST_WRITABLE | TLB_HOST_EXECUTABLE;
const HUGE_SHIFT = 30;
const UNMODELLED = CR4_LA57 | CR4_PKE | CR4_CET | CR4_PKS;

/** Walks for one processor. */
export class QuickWalk {
  /** The page that was found. */
  readonly page = new TlbFill();
  /** Entries that the walk read, of both dimensions. */
  accesses = 0;

  readonly #space: PhysicalSpace;
  readonly #windows: readonly PageWindow[];
  readonly #steps: TableSteps;
  #second: QuickSecond | undefined = undefined;
  /** A processor mostly comes back to the tables and the CPU that it has left. */
  #lastSecond: QuickSecond | undefined = undefined;
  #features: PagingFeatures | undefined = undefined;
  #format: TableFormat | undefined = undefined;
  #nx = false;
  #paging = false;
  #modelled = true;
  #pge = false;
  #rootHigh = 0;
  #rootLow = 0;

  /** A walker that does not know where it is: it knows nothing. */
  constructor(space: PhysicalSpace) {
    this.#space = space;
    this.#windows = Array.from({ length: LEVEL_PML4 + 1 }, () => new PageWindow(space));
    this.#steps = new TableSteps(this.#windows);
  }

  /** Takes up what `cpu` knows, and tables of the second dimension. `features` are those of the guest's tables. */
  attach(cpu: CpuTlb, tables: SecondDimension, features: PagingFeatures): void {
    this.#second = undefined;
    if (tables instanceof Ept || tables instanceof Npt) {
      const last = this.#lastSecond;
      this.#second = last?.does(tables, cpu) ? last : new QuickSecond(this.#space, cpu, tables);
      this.#lastSecond = this.#second;
    }
    if (features === this.#features) return;
    this.#features = features;
    this.#format = ordinaryFormat(features, this.#nx);
  }

  /** The second dimension is another, or unknown. */
  detach(): void {
    this.#second = undefined;
  }

  /** CR0, CR4 or EFER has changed. */
  setModes({ cr0, cr4, efer }: Pick<PagingState, "cr0" | "cr4" | "efer">): void {
    this.#paging = (cr0 & CR0_PG) !== 0;
    this.#modelled = !this.#paging || ((efer & EFER_LMA) !== 0 && (cr4 & UNMODELLED) === 0);
    this.#pge = (cr4 & CR4_PGE) !== 0;
    this.#nx = (efer & EFER_NX) !== 0;
    if (this.#features !== undefined) this.#format = ordinaryFormat(this.#features, this.#nx);
  }

  /** CR3 was loaded: its halves. */
  setRoot(high: number, low: number): void {
    this.#rootHigh = high | 0;
    this.#rootLow = low & PTE_ADDRESS_LOW;
  }

  /** Walks for an access to a canonical linear address, given by bits 63:32 and 31:0, signed. */
  walk(high: number, low: number, demand: Demand): Outcome {
    this.accesses = 0;
    this.#steps.length = 0;
    const host = this.#second;
    if (host === undefined || !this.#modelled) return UNKNOWN;
    const { page } = this;
    page.linearHigh = high;
    page.linearLow = low;
    if (this.#paging) return this.#descend(host, demand);
    page.guestHigh = high;
    page.guestLow = low;
    page.span = HUGE_SHIFT;
    return this.#end(host, demand.access, GUEST | TLB_DIRTY);
  }

  /** Down the guest's tables. */
  #descend(host: QuickSecond, demand: Demand): Outcome {
    const { page } = this;
    const { linearHigh, linearLow } = page;
    const { reservedHigh, reservedInPage, reservedInTable } = this.#format!;
    let tableHigh = this.#rootHigh;
    let tableLow = this.#rootLow;
    let rights = PTE_A | PTE_RW | PTE_US;
    let highs = 0;
    for (let level = LEVEL_PML4;; level--) {
      const index = indexOf(linearHigh, linearLow, level);
      if (!host.find(tableHigh, tableLow | (index << 2), TABLE)) return UNKNOWN;
      const window = this.#windows[level];
      // Aligned to the page that the second dimension has: the offset in that is the table's.
      const hostLow = host.page.physicalLow | (tableLow & ~(-1 << host.page.shift));
      const there = window.open(host.page.physicalHigh, hostLow);
      this.#steps.add(host.page.flags, host.accesses);
      if (!there) return UNKNOWN;
      this.accesses += host.accesses + 1;
      const entryLow = window.word(index);
      const entryHigh = window.word(index + 1);
      if ((entryLow & PTE_P) === 0) return ABSENT;
      if ((entryHigh & reservedHigh) !== 0) return UNKNOWN;
      rights &= entryLow;
      highs |= entryHigh;
      tableHigh = entryHigh & PTE_ADDRESS_HIGH;
      tableLow = entryLow & PTE_ADDRESS_LOW;
      if (level !== LEVEL_PT && (entryLow & PTE_PS) === 0) {
        if ((entryLow & reservedInTable[level]) !== 0) return UNKNOWN;
        continue;
      }
      if ((entryLow & reservedInPage[level]) !== 0) return UNKNOWN;
      const flags = ((rights & PTE_RW) !== 0 ? TLB_WRITABLE : 0) | ((rights & PTE_US) !== 0 ? TLB_USER : 0) |
        (highs < 0 ? 0 : TLB_EXECUTABLE);
      if ((~flags & demand.needs & GUEST) !== 0 || (flags & demand.forbids) !== 0) return DENIED;
      const write = demand.access === WRITES;
      const set = write ? PTE_A | PTE_D : PTE_A;
      if ((rights & PTE_A) === 0 || (entryLow & set) !== set) {
        if (!this.#setFlags(level, write)) return UNKNOWN;
      }
      const shift = 3 + 9 * level;
      const inPage = ~(-1 << shift);
      page.guestHigh = tableHigh;
      page.guestLow = (tableLow & ~inPage) | (linearLow & inPage);
      page.span = shift;
      const global = this.#pge && (entryLow & PTE_G) !== 0 ? TLB_GLOBAL : 0;
      const dirty = write || (entryLow & PTE_D) !== 0 ? TLB_DIRTY : 0;
      return this.#end(host, demand.access, flags | global | dirty);
    }
  }

  /** Sets accessed and dirty flags from the root down to a level. false where the second dimension may refuse that. */
  #setFlags(last: number, write: boolean): boolean {
    for (let level = LEVEL_PML4; level >= last; level--) {
      const wanted = write && level === last ? PTE_A | PTE_D : PTE_A;
      const window = this.#windows[level];
      const index = indexOf(this.page.linearHigh, this.page.linearLow, level);
      if ((window.word(index) & wanted) === wanted) continue;
      if (!this.#steps.writable(LEVEL_PML4 - level)) return false;
      window.or(index, wanted);
    }
    return true;
  }

  /** Has the second dimension find the page at the guest-physical address, and puts both together. */
  #end(host: QuickSecond, access: number, flags: number): Outcome {
    const { page } = this;
    const { guestHigh, guestLow } = page;
    if (!host.find(guestHigh, guestLow, access)) return UNKNOWN;
    this.accesses += host.accesses;
    const { page: behind } = host;
    const shift = behind.shift < page.span ? behind.shift : page.span;
    const mask = -1 << shift;
    page.shift = shift;
    // Without paging there is no page that this could be a part of.
    if (!this.#paging) page.span = shift;
    page.linearLow &= mask;
    page.guestLow = guestLow & mask;
    page.physicalHigh = behind.physicalHigh;
    page.physicalLow = (behind.physicalLow | (guestLow & ~(-1 << behind.shift))) & mask;
    page.memoryType = behind.memoryType;
    const clean = (behind.flags & TLB_DIRTY) === 0 ? TLB_DIRTY : 0;
    page.flags = (flags & ~clean) | (behind.flags & HOST);
    return FOUND;
  }

  /** What the reference goes on with where the outcome is unknown: the tables that were found are not looked up again. */
  rest(paging: Paging): Paging {
    return { ...paging, second: new RepeatedSecond(paging.second!, this.#steps) };
  }
}
