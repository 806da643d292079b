/**
 * What a walk that was given up had found of the guest's tables, for the walk that goes on from there: each is looked up
 * once, and charged once.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { PageWindow } from "../memory/mod.ts";
import * as entry from "./tlb_entry.ts";
import type { HostFault, HostPage, PhysicalAccess, SecondDimension } from "./translation.ts";

const { HIGH, LEVEL_PML4, PAGE_SHIFT_4K } = abi;
const { TLB_DIRTY, TLB_HOST_EXECUTABLE, TLB_HOST_READABLE, TLB_HOST_WRITABLE } = entry;

const FLAG_BITS = 8;

/** The guest's tables on the way, from the PML4's on. */
export class TableSteps {
  /** How many there are. */
  length = 0;
  readonly #windows: readonly PageWindow[];
  /** What the second dimension allows, and above that the entries that were read to find out. */
  readonly #found = new Int32Array(LEVEL_PML4);

  /** The tables that `windows` look at, by level. */
  constructor(windows: readonly PageWindow[]) {
    this.#windows = windows;
  }

  /** The next table was found: the flags of its page in the second dimension, and the entries read. */
  add(flags: number, accesses: number): void {
    this.#found[this.length++] = accesses << FLAG_BITS | flags;
  }

  /** Whether the second dimension allows writes to a table. */
  writable(step: number): boolean {
    return (this.#found[step] & TLB_HOST_WRITABLE) !== 0;
  }

  /** A table's page, as walks of the second dimension find it: that table and no more of it. */
  page(step: number, address: number): HostPage {
    const flags = this.#found[step];
    const { high, low } = this.#windows[LEVEL_PML4 - step];
    return {
      kind: "page",
      guest: address - abi.pageOffset(address, PAGE_SHIFT_4K),
      physical: high * HIGH + (low >>> 0),
      shift: PAGE_SHIFT_4K,
      readable: (flags & TLB_HOST_READABLE) !== 0,
      writable: (flags & TLB_HOST_WRITABLE) !== 0,
      executable: (flags & TLB_HOST_EXECUTABLE) !== 0,
      dirty: (flags & TLB_DIRTY) !== 0,
      accesses: flags >>> FLAG_BITS,
    };
  }
}

/** The second dimension for a walk that was begun: its first answers are known. */
export class RepeatedSecond implements SecondDimension {
  readonly #second: SecondDimension;
  readonly #steps: TableSteps;
  #next = 0;

  /** Answers with `steps` first, and asks `second` behind those. */
  constructor(second: SecondDimension, steps: TableSteps) {
    this.#second = second;
    this.#steps = steps;
  }

  /** Translates a guest-physical address. */
  translate(physical: number, access: PhysicalAccess): HostPage | HostFault {
    if (this.#next < this.#steps.length) return this.#steps.page(this.#next++, physical);
    return this.#second.translate(physical, access);
  }

  /** As the tables have it. */
  get tableAccessWrites(): boolean {
    return this.#second.tableAccessWrites;
  }
}
