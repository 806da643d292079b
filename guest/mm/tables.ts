/**
 * 4-level tables, read and written by the kernel's own instructions.
 *
 * @module
 */

import {
  entryAddress,
  type Guest,
  high,
  LEVEL_PML4,
  LEVEL_PT,
  low,
  PAGE_SHIFT_4K,
  PTE_A,
  PTE_D,
  PTE_G,
  PTE_NX_HIGH,
  PTE_P,
  PTE_RW,
  PTE_US,
  shiftOf,
  tableIndex,
  type X86Cpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { allocZeroed } from "./frames.ts";
import { PAGE_BYTES } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";

/** An entry that references a table of user space (_PAGE_TABLE): the last entry decides what is allowed. */
export const TABLE: number = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D;
/** The same of the kernel's own (_KERNPG_TABLE). */
export const KERNEL_TABLE: number = PTE_P | PTE_RW | PTE_A | PTE_D;
/** A page that nobody may use for the time being keeps its frame: G without P (_PAGE_BIT_PROTNONE is _PAGE_BIT_GLOBAL). */
export const PTE_PROTNONE: number = PTE_G;

/** A table entry in two halves. */
export interface Entry {
  /** Bits 31:0. */
  readonly low: number;
  /** Bits 63:32. */
  readonly high: number;
}

/** The physical address in an entry. */
export function frameOf({ low, high }: Entry): number {
  return entryAddress(low, high, PAGE_SHIFT_4K);
}

/** Whether an entry holds a frame, present or not. */
export function holdsFrame({ low }: Entry): boolean {
  return (low & (PTE_P | PTE_PROTNONE)) !== 0;
}

/** An entry for a frame. */
export function entryFor(frame: number, flags: number, noExecute: boolean): Entry {
  return { low: (low(frame) | flags) >>> 0, high: (high(frame) | (noExecute ? PTE_NX_HIGH : 0)) >>> 0 };
}

/** Loads an entry. */
export function* loadEntry(cpu: X86Cpu, address: number): GuestValue<Entry> {
  yield cpu.load64(address);
  return { low: cpu.eax, high: cpu.raxHigh };
}

/** Stores an entry, in one piece. */
export function storeEntry(cpu: X86Cpu, address: number, { low, high }: Entry): number {
  return cpu.store64(address, low, high);
}

/** Takes an entry out (ptep_get_and_clear): what the processors' walks set in it until then is in the answer. */
export function* clearEntry(cpu: X86Cpu, address: number): GuestValue<Entry> {
  yield cpu.xchg64(address, 0);
  return { low: cpu.eax, high: cpu.raxHigh };
}

/** What is asked of {@linkcode entryAt}. */
export interface WalkOptions {
  /** The physical address of the PML4. */
  readonly root: number;
  /** The level of the entry; that of a page of 4 KiB by default. */
  readonly level?: number;
  /** The flags of entries for tables that are missing. Without them those are not made. */
  readonly make?: number;
  /** Is told of each table that is made. */
  readonly made?: () => Guest;
}

/**
 * The linear address of the entry for `address`; 0 where a table is missing, or, if missing ones are to be made, where
 * there is no frame left.
 */
export function* entryAt(
  cpu: X86Cpu,
  mm: MemoryManager,
  address: number,
  { root, level = LEVEL_PT, make, made }: WalkOptions,
): GuestValue<number> {
  let table = root;
  for (let above = LEVEL_PML4;; above--) {
    const at = mm.virtual(table) + 8 * tableIndex(address, above);
    if (above === level) return at;
    const entry = yield* loadEntry(cpu, at);
    if ((entry.low & PTE_P) !== 0) {
      table = frameOf(entry);
      continue;
    }
    if (make === undefined) return 0;
    table = yield* allocZeroed(cpu, mm);
    if (table === 0) return 0;
    yield storeEntry(cpu, at, entryFor(table, make, false));
    if (made !== undefined) yield* made();
  }
}

/** The pages of a range, and for each the linear address of its entry: those that have no table are passed over. */
export function* presentEntries(
  cpu: X86Cpu,
  mm: MemoryManager,
  { root, start, end }: { readonly root: number; readonly start: number; readonly end: number },
  visit: (entry: number, address: number) => Guest,
): Guest {
  let address = start;
  while (address < end) {
    const entry = yield* entryAt(cpu, mm, address, { root });
    const span = entry === 0 ? 2 ** shiftOf(LEVEL_PT + 1) : PAGE_BYTES;
    if (entry !== 0) yield* visit(entry, address);
    address = Math.floor(address / span) * span + span;
  }
}
