/**
 * Puts pages into 4-level tables in memory: a guest's own, a host's nested tables, and extended page tables.
 *
 * @module
 */

import { hex, high, low } from "../bits.ts";
import { EPT_MEMORY_TYPE_SHIFT, EPT_RWX, MEMORY_TYPE_WB } from "./ept.ts";
import {
  checkPage,
  entryAddress,
  LEVEL_PML4,
  LEVEL_PT,
  mapsPage,
  PAGE_SHIFT_4K,
  type PageShift,
  PTE_NX_HIGH,
  PTE_P,
  PTE_PS,
  PTE_RW,
  PTE_US,
  shiftOf,
  tableIndex,
} from "./paging.ts";

/** Memory that holds tables, by physical address. */
export interface TableMemory {
  /** Reads 32 bits. */
  word(address: number): number;
  /** Writes 32 bits. */
  setWord(address: number, value: number): void;
}

/** A hierarchy of tables. */
export interface PageTables {
  /** Where they are. */
  readonly memory: TableMemory;
  /** The physical address of the PML4 table. */
  readonly root: number;
  /** They are extended page tables. */
  readonly ept?: boolean;
  /** The physical address of a page of zeroes that becomes a table. */
  allocate(): number;
}

/** A page to be mapped. */
export interface PageMapping {
  /** Its physical address. */
  readonly physical: number;
  /** Bits 11:0 of the last entry: `PTE_*`, or `EPT_*`. Bit 7 of a page above 4 KiB is set by itself. */
  readonly flags: number;
  /** XD is set in the last entry. Of no meaning in EPT. */
  readonly noExecute?: boolean;
  /** Its size; 4 KiB where nothing is said. */
  readonly shift?: PageShift;
}

/** Write-back memory, in the place where an EPT entry has its type. */
export const EPT_WB: number = MEMORY_TYPE_WB << EPT_MEMORY_TYPE_SHIFT;

/**
 * Maps an address: a linear one, as a signed number, or a guest-physical one in EPT and nested tables. New tables allow
 * everything. Throws `RangeError` where a larger page is in the way, or the page does not start at its size.
 */
export function mapPage(tables: PageTables, address: number, page: PageMapping): void {
  const shift = page.shift ?? PAGE_SHIFT_4K;
  checkPage(page.physical, shift);
  const { memory } = tables;
  const all = tables.ept === true ? EPT_RWX : PTE_P | PTE_RW | PTE_US;
  let table = tables.root;
  for (let level = LEVEL_PML4;; level--) {
    const at = table + 8 * tableIndex(address, level);
    if (shiftOf(level) === shift) {
      const size = level === LEVEL_PT ? 0 : PTE_PS;
      memory.setWord(at + 4, (high(page.physical) | (page.noExecute === true ? PTE_NX_HIGH : 0)) >>> 0);
      memory.setWord(at, (low(page.physical) | page.flags | size) >>> 0);
      return;
    }
    const entry = memory.word(at);
    if ((entry & presence(tables)) === 0) {
      table = tables.allocate();
      memory.setWord(at + 4, high(table));
      memory.setWord(at, (low(table) | all) >>> 0);
    } else if (mapsPage(entry, level)) {
      throw new RangeError(
        `Cannot map ${2 ** shift} bytes at ${hex(address)}: a page of ${2 ** shiftOf(level)} bytes is there`,
      );
    } else {
      table = entryAddress(entry, memory.word(at + 4), PAGE_SHIFT_4K);
    }
  }
}

/** The bits of which a present entry has one. */
function presence(tables: PageTables): number {
  return tables.ept === true ? EPT_RWX : PTE_P;
}

/**
 * The physical address of the entry of a level that an address uses, for software that changes one. undefined where no
 * table of that level is there.
 */
export function entryOf(tables: PageTables, address: number, level: number): number | undefined {
  let table = tables.root;
  for (let above = LEVEL_PML4; above > level; above--) {
    const at = table + 8 * tableIndex(address, above);
    const entry = tables.memory.word(at);
    if ((entry & presence(tables)) === 0 || mapsPage(entry, above)) return undefined;
    table = entryAddress(entry, tables.memory.word(at + 4), PAGE_SHIFT_4K);
  }
  return table + 8 * tableIndex(address, level);
}
