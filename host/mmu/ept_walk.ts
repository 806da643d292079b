/**
 * Walks of extended page tables (SDM 3C 29.3).
 *
 * A guest-physical address is translated first and its rights are evaluated then (29.3.3.3): a misconfigured entry
 * further down wins over rights that one above denies, an absent one ends the walk.
 *
 * @module
 */

import {
  entryAddress,
  EPT_A,
  EPT_D,
  EPT_IPAT,
  EPT_MEMORY_TYPE_SHIFT,
  EPT_R,
  EPT_RWX,
  EPT_VIOLATION_LINEAR,
  EPT_VIOLATION_NX,
  EPT_VIOLATION_RIGHTS_SHIFT,
  EPT_VIOLATION_TRANSLATED,
  EPT_VIOLATION_USER,
  EPT_VIOLATION_WRITABLE,
  EPT_W,
  EPT_X,
  type EptFeatures,
  eptMisconfigured,
  EPTP_AD,
  eptPointerValid,
  hex,
  LEVEL_PML4,
  mapsPage,
  PAGE_SHIFT_4K,
  pageOffset,
  shiftOf,
  tableIndex,
  tableRoot,
} from "../../abi/mod.ts";
import { orWord, readWord } from "./descent.ts";
import type { HostFault, HostPage, PhysicalAccess, PhysicalMemory, SecondDimension } from "./translation.ts";

/** One past the largest guest-physical address that four levels translate. */
const FOUR_LEVELS = 2 ** 48;

/** What an {@linkcode Ept} is made of. */
export interface EptOptions {
  /** Where the tables are. */
  readonly memory: PhysicalMemory;
  /** The EPT pointer. */
  readonly eptp: number;
  /** What the processor has. */
  readonly features: EptFeatures;
}

/** Extended page tables in use. */
export class Ept implements SecondDimension {
  /** Where the tables are. */
  declare readonly memory: PhysicalMemory;
  /** The EPT pointer. */
  declare readonly eptp: number;
  /** What the processor has. */
  declare readonly features: EptFeatures;

  /** Uses the tables of an EPT pointer. Throws `RangeError` for a pointer that VM entry refuses. */
  constructor({ memory, eptp, features }: EptOptions) {
    if (!eptPointerValid(eptp, features)) {
      throw new RangeError(`Cannot use EPT pointer ${hex(eptp)}: VM entry refuses it (SDM 3C 27.2.1.1)`);
    }
    this.memory = memory;
    this.eptp = eptp;
    this.features = features;
  }

  /** They do with EPTP bit 6 (29.3.3.2). */
  get tableAccessWrites(): boolean {
    return (this.eptp & EPTP_AD) !== 0;
  }

  /** Translates a guest-physical address. */
  translate(physical: number, access: PhysicalAccess): HostPage | HostFault {
    const { memory, features } = this;
    if (physical >= FOUR_LEVELS) return { ...this.#violation(physical, access, 0), accesses: 0 };
    const entries: number[] = [];
    let rights = EPT_RWX;
    let table = tableRoot(this.eptp);
    for (let level = LEVEL_PML4;; level--) {
      const at = table + 8 * tableIndex(physical, level);
      const low = readWord(memory, at);
      const high = readWord(memory, at + 4);
      entries.push(at);
      const accesses = entries.length;
      rights &= low;
      if ((low & EPT_RWX) === 0) return { ...this.#violation(physical, access, 0), accesses };
      if (eptMisconfigured({ low, high }, level, features)) {
        return { kind: "ept misconfiguration", physical, accesses };
      }
      if (!mapsPage(low, level)) {
        table = entryAddress(low, high, PAGE_SHIFT_4K);
        continue;
      }
      const wanted = this.#wanted(access);
      if ((rights & wanted) !== wanted) return { ...this.#violation(physical, access, rights), accesses };
      this.#setFlags(entries, (wanted & EPT_W) !== 0);
      const shift = shiftOf(level);
      return {
        kind: "page",
        guest: physical - pageOffset(physical, shift),
        physical: entryAddress(low, high, shift),
        shift,
        readable: (rights & EPT_R) !== 0,
        writable: (rights & EPT_W) !== 0,
        executable: (rights & EPT_X) !== 0,
        dirty: (this.eptp & EPTP_AD) === 0 || (readWord(memory, at) & EPT_D) !== 0,
        memoryType: (low >>> EPT_MEMORY_TYPE_SHIFT) & 7,
        ignorePat: (low & EPT_IPAT) !== 0,
        accesses,
      };
    }
  }

  /**
   * The rights that an access needs, which are also what it is reported as. With EPTP bit 6 the guest's tables are
   * accessed by writes, which reports both bits (29.3.3.2; table 28-7's note). Whether a read-modify-write
   * that sets a flag reports a read as well is left to processors: here it does not.
   */
  #wanted({ purpose, write, fetch }: PhysicalAccess): number {
    if (purpose === "table") return (this.eptp & EPTP_AD) !== 0 ? EPT_R | EPT_W : EPT_R;
    if (purpose === "table update" || write) return EPT_W;
    return fetch ? EPT_X : EPT_R;
  }

  #violation(physical: number, access: PhysicalAccess, rights: number): HostFault {
    const { linear } = access;
    let qualification = this.#wanted(access) | (rights << EPT_VIOLATION_RIGHTS_SHIFT);
    if (linear !== undefined) {
      qualification |= EPT_VIOLATION_LINEAR;
      if (access.purpose === "final") qualification |= EPT_VIOLATION_TRANSLATED | this.#advanced(access);
    }
    const violation = { kind: "ept violation", qualification, physical, accesses: 0 } as const;
    return linear === undefined ? violation : { ...violation, linear };
  }

  #advanced({ rights }: PhysicalAccess): number {
    if (!this.features.advancedExits || rights === undefined) return 0;
    return (rights.user ? EPT_VIOLATION_USER : 0) | (rights.writable ? EPT_VIOLATION_WRITABLE : 0) |
      (rights.executable ? 0 : EPT_VIOLATION_NX);
  }

  /** Accessed and dirty flags (29.3.5). */
  #setFlags(entries: readonly number[], write: boolean): void {
    if ((this.eptp & EPTP_AD) === 0) return;
    const last = entries.length - 1;
    for (let i = 0; i <= last; i++) {
      const flags = write && i === last ? EPT_A | EPT_D : EPT_A;
      if ((readWord(this.memory, entries[i]) & flags) !== flags) orWord(this.memory, entries[i], flags);
    }
  }
}
