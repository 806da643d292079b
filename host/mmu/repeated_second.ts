/**
 * What a walk that was given up had found of the guest's tables, for the walk that goes on from there: each is looked up
 * once, and charged once.
 *
 * @module
 */

import type { PageShift } from "../../abi/mod.ts";
import { HIGH, LEVEL_PML4 } from "../../abi/mod.ts";
import * as entry from "./tlb_entry.ts";
import type { HostFault, HostPage, PhysicalAccess, SecondDimension } from "./translation.ts";

const { TLB_DIRTY, TLB_HOST_EXECUTABLE, TLB_HOST_READABLE, TLB_HOST_WRITABLE } = entry;

/** A page of the second dimension, in small integers. */
export interface FoundPage {
  /** Its host-physical address. */
  readonly physicalHigh: number;
  /** The low half. */
  readonly physicalLow: number;
  /** Log2 of its bytes. */
  readonly shift: number;
  /** Its flags, as a TLB has them. */
  readonly flags: number;
  /** Entries that were read. */
  readonly accesses: number;
}

/** The pages of the guest's tables on the way, from the PML4's on. */
export class TableSteps {
  /** How many there are. */
  length = 0;
  readonly #guestHigh = new Int32Array(LEVEL_PML4);
  readonly #guestLow = new Int32Array(LEVEL_PML4);
  readonly #physicalHigh = new Int32Array(LEVEL_PML4);
  readonly #physicalLow = new Int32Array(LEVEL_PML4);
  readonly #shifts = new Int32Array(LEVEL_PML4);
  readonly #flags = new Int32Array(LEVEL_PML4);
  readonly #accesses = new Int32Array(LEVEL_PML4);

  /** The next table, at a guest-physical address, was found in `page`. */
  add(page: FoundPage, guestHigh: number, guestLow: number): void {
    const step = this.length++;
    this.#guestHigh[step] = guestHigh;
    this.#guestLow[step] = guestLow & (-1 << page.shift);
    this.#physicalHigh[step] = page.physicalHigh;
    this.#physicalLow[step] = page.physicalLow;
    this.#shifts[step] = page.shift;
    this.#flags[step] = page.flags;
    this.#accesses[step] = page.accesses;
  }

  /** Whether the second dimension allows writes to a table. */
  writable(step: number): boolean {
    return (this.#flags[step] & TLB_HOST_WRITABLE) !== 0;
  }

  /** A table's page, as walks of the second dimension find it. */
  page(step: number): HostPage {
    const flags = this.#flags[step];
    return {
      kind: "page",
      guest: this.#guestHigh[step] * HIGH + (this.#guestLow[step] >>> 0),
      physical: this.#physicalHigh[step] * HIGH + (this.#physicalLow[step] >>> 0),
      shift: this.#shifts[step] as PageShift,
      readable: (flags & TLB_HOST_READABLE) !== 0,
      writable: (flags & TLB_HOST_WRITABLE) !== 0,
      executable: (flags & TLB_HOST_EXECUTABLE) !== 0,
      dirty: (flags & TLB_DIRTY) !== 0,
      accesses: this.#accesses[step],
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
    if (this.#next < this.#steps.length) return this.#steps.page(this.#next++);
    return this.#second.translate(physical, access);
  }

  /** As the tables have it. */
  get tableAccessWrites(): boolean {
    return this.#second.tableAccessWrites;
  }
}
