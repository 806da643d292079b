/**
 * KVM's page tables of the second dimension for one virtual machine: real ones, in the host's memory, which hardware
 * walks (arch/x86/kvm/mmu/tdp_mmu.c). All vCPUs use one root, as one role fits them all (kvm_tdp_mmu_alloc_root).
 *
 * @module
 */

import { hex, LEVEL_PD, LEVEL_PML4, LEVEL_PT, shiftOf, tableIndex } from "../../../abi/mod.ts";
import type { HostBlock, HostMemory } from "../../memory/mod.ts";
import {
  isLeaf,
  isPresent,
  makeHugeSpte,
  makeSmallSpte,
  makeTableSpte,
  type Spte,
  SPTE_WRITABLE,
  spteAddress,
  type SpteFormat,
} from "./spte.ts";
import { type TablePages, tablePages } from "./table_pages.ts";

const ENTRIES = 512;

/** An entry's place, and what it held. */
export interface TdpEntry extends Spte {
  /** Where the page, or the range of the table, begins that it stands for. */
  readonly gpa: number;
  /** Its level. */
  readonly level: number;
  /** The table. */
  readonly table: HostBlock;
  /** Its number there. */
  readonly index: number;
}

/** Which entries of a table are meant. */
interface Part {
  readonly level: number;
  readonly start?: number | undefined;
  readonly end?: number | undefined;
}

/** A root, and all below it. */
export class TdpTables {
  /** The format of its entries. */
  readonly format: SpteFormat;
  /** The root. */
  readonly root: HostBlock;
  /** Who needs it: vCPUs that have it loaded, and until it has been zapped KVM itself (tdp_mmu_root_count). */
  users = 1;
  /** It was invalidated: nothing is mapped in it any more, and nobody loads it again. */
  invalid = false;
  /** Tables, the root included. */
  count = 1;
  readonly #pages: TablePages;
  readonly #tables = new Map<number, HostBlock>();

  /** An empty root. */
  constructor(memory: HostMemory, format: SpteFormat) {
    this.format = format;
    this.#pages = tablePages(memory);
    this.root = this.#pages.allocate();
  }

  /** The entry that a walk for an address ends at: it maps a page or is empty, or is at `level` already. */
  find(gpa: number, level: number = LEVEL_PT): TdpEntry {
    let table = this.root;
    for (let at = LEVEL_PML4;; at--) {
      const entry = entryAt(table, gpa, at);
      if (at === level || !isPresent(entry) || isLeaf(entry, at)) return entry;
      table = this.#below(entry);
    }
  }

  /** Writes an entry. */
  set({ table, index }: TdpEntry, { low, high }: Spte): void {
    table.words[2 * index + 1] = high;
    table.words[2 * index] = low;
  }

  /** Puts an empty table behind an empty entry, and a table of the same pages behind a huge one. */
  link(entry: TdpEntry): void {
    const table = this.#pages.allocate();
    this.#tables.set(table.address, table);
    this.count++;
    if (isPresent(entry)) {
      for (let index = 0; index < ENTRIES; index++) {
        const small = makeSmallSpte(entry, index);
        table.words[2 * index] = small.low;
        table.words[2 * index + 1] = small.high;
      }
    }
    this.set(entry, makeTableSpte(this.format, table.address));
  }

  /** Frees the table behind an entry that was overwritten, and what is below it. */
  unlink(entry: TdpEntry): void {
    const table = this.#below(entry);
    if (entry.level - 1 > LEVEL_PT) {
      for (const below of entriesOf(table, entry.gpa, { level: entry.level - 1 })) {
        if (isPresent(below) && !isLeaf(below, below.level)) this.unlink(below);
      }
    }
    this.#tables.delete(table.address);
    this.#pages.free(table);
    this.count--;
  }

  /** The entries that map pages of a range of addresses, in whole or in part. */
  *leaves(start: number, end: number): Generator<TdpEntry, void, void> {
    yield* this.#leavesOf(this.root, 0, { level: LEVEL_PML4, start, end });
  }

  *#leavesOf(table: HostBlock, from: number, { level, start, end }: Part): Generator<TdpEntry, void, void> {
    for (const entry of entriesOf(table, from, { level, start, end })) {
      if (!isPresent(entry)) continue;
      if (isLeaf(entry, level)) yield entry;
      else yield* this.#leavesOf(this.#below(entry), entry.gpa, { level: level - 1, start, end });
    }
  }

  /** tdp_mmu_zap_leafs: pages of a range are mapped no more. Whether any was. */
  zap(start: number, end: number): boolean {
    let any = false;
    for (const leaf of this.leaves(start, end)) {
      this.set(leaf, { low: 0, high: 0 });
      any = true;
    }
    return any;
  }

  /** wrprot_gfn_range: pages of a range are writable no more. Whether any was. */
  writeProtect(start: number, end: number): boolean {
    let any = false;
    for (const leaf of this.leaves(start, end)) {
      if ((leaf.low & SPTE_WRITABLE) === 0) continue;
      this.set(leaf, { low: (leaf.low & ~SPTE_WRITABLE) >>> 0, high: leaf.high });
      any = true;
    }
    return any;
  }

  /** Splits the huge pages of a range (tdp_mmu_split_huge_pages_root). No flush: both translate alike. */
  split(start: number, end: number): void {
    for (const leaf of this.leaves(start, end)) if (leaf.level === LEVEL_PD) this.link(leaf);
  }

  /**
   * Puts huge pages in the place of tables all of whose pages one could map, which `level` knows, with the rights of the
   * first page that is mapped there (tdp_mmu_make_huge_spte). The tables are to be unlinked when nobody remembers their pages
   * any more.
   */
  collapse(start: number, end: number, level: (gpa: number) => number): TdpEntry[] {
    const size = 2 ** shiftOf(LEVEL_PD);
    const gone: TdpEntry[] = [];
    for (let gpa = Math.ceil(start / size) * size; gpa + size <= end; gpa += size) {
      const entry = this.find(gpa, LEVEL_PD);
      if (entry.level !== LEVEL_PD || !isPresent(entry) || isLeaf(entry, LEVEL_PD)) continue;
      if (level(gpa) !== LEVEL_PD) continue;
      const { value: first } = this.leaves(gpa, gpa + size).next();
      if (first === undefined) continue;
      this.set(entry, makeHugeSpte(first));
      gone.push(entry);
    }
    return gone;
  }

  /** tdp_mmu_zap_root: nothing is mapped any more. */
  zapAll(): void {
    this.invalid = true;
    for (const entry of entriesOf(this.root, 0, { level: LEVEL_PML4 })) {
      if (!isPresent(entry)) continue;
      this.set(entry, { low: 0, high: 0 });
      this.unlink(entry);
    }
  }

  /** Somebody needs it no more; the last one frees it (kvm_tdp_mmu_put_root). */
  put(): void {
    if (--this.users > 0) return;
    this.#pages.free(this.root);
    this.count = 0;
  }

  #below(entry: TdpEntry): HostBlock {
    const address = spteAddress(entry, entry.level);
    const table = this.#tables.get(address);
    if (table === undefined) {
      throw new Error(`Cannot walk KVM's tables for ${hex(entry.gpa)}: there is no table at ${hex(address)}`);
    }
    return table;
  }
}

/** Log2 of the bytes that an entry of a level stands for. */
function shiftOf4(level: number): number {
  return level === LEVEL_PML4 ? 39 : shiftOf(level);
}

function entryAt(table: HostBlock, gpa: number, level: number): TdpEntry {
  const index = tableIndex(gpa, level);
  const size = 2 ** shiftOf4(level);
  return {
    gpa: Math.floor(gpa / size) * size,
    level,
    table,
    index,
    low: table.words[2 * index],
    high: table.words[2 * index + 1],
  };
}

/** Entries of the table that begins with the address `from`: all, or those that a range of addresses uses. */
function* entriesOf(
  table: HostBlock,
  from: number,
  { level, start = from, end = Infinity }: Part,
): Generator<TdpEntry, void, void> {
  const size = 2 ** shiftOf4(level);
  const first = Math.max(0, Math.floor((start - from) / size));
  const last = Math.min(ENTRIES - 1, Math.ceil((end - from) / size) - 1);
  for (let index = first; index <= last; index++) yield entryAt(table, from + index * size, level);
}
