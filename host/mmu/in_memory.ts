/**
 * Guest-physical memory in place of EPT and nested tables: where software walks a guest's tables.
 *
 * @module
 */

import { PAGE_SHIFT_4K, pageOffset } from "../../abi/mod.ts";
import type { HostFault, HostPage, PhysicalAccess, PhysicalMemory, SecondDimension } from "./translation.ts";

/** Leads everything to itself, but tables that are in no memory nowhere: who walks gives up there. */
export class InMemory implements SecondDimension {
  /** Software's accesses need no right. */
  readonly tableAccessWrites = false;
  readonly #memory: PhysicalMemory;

  /** Tables are in `memory`. */
  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
  }

  /** Translates a guest-physical address to itself. */
  translate(physical: number, { purpose }: PhysicalAccess): HostPage | HostFault {
    if (purpose !== "final" && !this.#memory.backed(physical, 8)) {
      return { kind: "nested page fault", errorCode: 0, physical, accesses: 0 };
    }
    const guest = physical - pageOffset(physical, PAGE_SHIFT_4K);
    return {
      kind: "page",
      guest,
      physical: guest,
      shift: PAGE_SHIFT_4K,
      readable: true,
      writable: true,
      executable: true,
      dirty: true,
      accesses: 0,
    };
  }
}
