/**
 * The way down 4-level tables of the ordinary format, which guests have, and AMD's nested tables too.
 *
 * @module
 */

import {
  entryAddress,
  LEVEL_PML4,
  mapsPage,
  PAGE_SHIFT_4K,
  type PageShift,
  type PagingFeatures,
  PTE_A,
  PTE_D,
  PTE_NX_HIGH,
  PTE_P,
  PTE_RW,
  PTE_US,
  reservedBitSet,
  shiftOf,
  tableIndex,
} from "../../abi/mod.ts";
import type { HostFault, HostPage, PhysicalMemory, Rights } from "./translation.ts";

/** Tables of the ordinary format. */
export interface Tables {
  /** Where their entries are. */
  readonly memory: PhysicalMemory;
  /** The address of the PML4 table. */
  readonly root: number;
  /** IA32_EFER.NXE. */
  readonly nx: boolean;
  /** What the processor has. */
  readonly features: PagingFeatures;
  /** Where the tables' own addresses are guest-physical: what leads to their entries. */
  readonly locate?: (address: number) => HostPage | HostFault;
}

/** An entry on the way. */
export interface UsedEntry {
  /** Its address, as the table above tells it. */
  readonly address: number;
  /** Where it is. */
  readonly at: number;
  /** The page that holds it; undefined where `address` leads there by itself. */
  readonly page: HostPage | undefined;
}

/** How a way down ended. */
export interface Descent extends Rights {
  /** At a page, an entry that is not present, one with a reserved bit set, or a fault on the way to one. */
  readonly end: "page" | "absent" | "reserved" | HostFault;
  /** The entries that were read, from the PML4's on. */
  readonly entries: readonly UsedEntry[];
  /** The last entry's low half. */
  readonly low: number;
  /** The page's address. */
  readonly physical: number;
  /** The page's size. */
  readonly shift: PageShift;
  /** Entries read, with those on the way to them. */
  readonly accesses: number;
}

/** Reads entries from the root on, until one ends the way. Sets no flags: nobody knows yet whether the access is allowed. */
export function descend(tables: Tables, linear: number): Descent {
  const { memory, nx, features } = tables;
  const entries: UsedEntry[] = [];
  let [user, writable, executable] = [true, true, true];
  let accesses = 0;
  let table = tables.root;
  for (let level = LEVEL_PML4;; level--) {
    const shift = shiftOf(level);
    const address = table + 8 * tableIndex(linear, level);
    const page = tables.locate?.(address);
    accesses += page?.accesses ?? 0;
    if (page !== undefined && page.kind !== "page") {
      return { end: page, entries, low: 0, physical: 0, shift, user, writable, executable, accesses };
    }
    const at = page === undefined ? address : page.physical + (address - page.guest);
    entries.push({ address, at, page });
    const low = readWord(memory, at);
    const high = readWord(memory, at + 4);
    accesses++;
    user &&= (low & PTE_US) !== 0;
    writable &&= (low & PTE_RW) !== 0;
    executable &&= (high & PTE_NX_HIGH) === 0;
    const rights = { user, writable, executable };
    if ((low & PTE_P) === 0) {
      return { end: "absent", entries, low, physical: 0, shift, ...rights, accesses };
    }
    if (reservedBitSet({ low, high, nx }, level, features)) {
      return { end: "reserved", entries, low, physical: 0, shift, ...rights, accesses };
    }
    if (mapsPage(low, level)) {
      const physical = entryAddress(low, high, shift);
      return { end: "page", entries, low, physical, shift, ...rights, accesses };
    }
    table = entryAddress(low, high, PAGE_SHIFT_4K);
  }
}

/**
 * Sets the accessed flag of each entry on the way, and the dirty flag of the last one for a write; from the root on,
 * once the access is known to be allowed, as Intel's processors do it. SDM 3A 4.8 leaves open whether a walk that
 * faults sets accessed flags. `mayWrite` is asked before an entry is changed, and stops it with a fault.
 */
export function setAccessedDirty(
  memory: PhysicalMemory,
  { entries }: Descent,
  write: boolean,
  mayWrite?: (entry: UsedEntry) => HostFault | undefined,
): HostFault | undefined {
  const last = entries.length - 1;
  for (let i = 0; i <= last; i++) {
    const entry = entries[i];
    const flags = write && i === last ? PTE_A | PTE_D : PTE_A;
    if ((readWord(memory, entry.at) & flags) === flags) continue;
    const fault = mayWrite?.(entry);
    if (fault !== undefined) return fault;
    orWord(memory, entry.at, flags);
  }
  return undefined;
}

/** Reads 32 bits. Where no memory is, nobody answers: all bits are ones. */
export function readWord(memory: PhysicalMemory, address: number): number {
  return memory.backed(address, 4) ? memory.word(address) : 0xffff_ffff;
}

/** Sets bits of a word in one locked read-modify-write: what others wrote meanwhile stays. */
export function orWord(memory: PhysicalMemory, address: number, bits: number): void {
  if (memory.backed(address, 4)) memory.setWord(address, (memory.word(address) | bits) >>> 0);
}
