import {
  EPTP_AD,
  EPTP_WALK_4,
  MEMORY_TYPE_WB,
  type PageTables,
  type PagingFeatures,
} from "../../../abi/mod.ts";
import {
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_PAE,
  CR4_PGE,
  EFER_LMA,
  EFER_LME,
  EFER_NX,
  type EptFeatures,
} from "../../../abi/mod.ts";
import { GuestMemory } from "../../../host/mod.ts";
import type { AccessKind, PagingState, Translation } from "../../../host/mmu/mod.ts";

export const READ: AccessKind = { write: false, user: false, fetch: false };
export const WRITE: AccessKind = { write: true, user: false, fetch: false };
export const FETCH: AccessKind = { write: false, user: false, fetch: true };
export const USER_READ: AccessKind = { ...READ, user: true };
export const USER_WRITE: AccessKind = { ...WRITE, user: true };
export const USER_FETCH: AccessKind = { ...FETCH, user: true };

/** A processor of 46 bits. */
export const FEATURES: PagingFeatures = { maxPhysicalBits: 46, pages1G: true };
export const EPT_FEATURES: EptFeatures = {
  maxPhysicalBits: 46,
  executeOnly: true,
  pages2M: true,
  pages1G: true,
  accessedDirty: true,
  advancedExits: true,
};

/** 2 MiB of memory at 0; tables are made from 64 KiB on. */
export class Tables {
  readonly memory = new GuestMemory();
  #free = 0x1_0000;

  constructor() {
    this.memory.addSlot({ base: 0, size: 0x20_0000 });
  }

  page(): number {
    return (this.#free += 0x1000) - 0x1000;
  }

  /** An empty hierarchy. */
  hierarchy(ept = false): PageTables {
    return { memory: this.memory, root: this.page(), ept, allocate: () => this.page() };
  }
}

/** A 64-bit guest's registers, as Linux sets them but for SMEP and SMAP. */
export function longMode(root: number, change: Partial<PagingState> = {}): PagingState {
  return {
    cr0: CR0_PG | CR0_WP | CR0_PE,
    cr3: root,
    cr4: CR4_PAE | CR4_PGE,
    efer: EFER_LME | EFER_LMA | EFER_NX,
    ac: false,
    ...change,
  };
}

/** An EPT pointer to a root. */
export function eptPointer(root: number, accessedDirty = false): number {
  return root + (EPTP_WALK_4 | MEMORY_TYPE_WB | (accessedDirty ? EPTP_AD : 0));
}

/** The outcome in brief: `physical address`, or `#PF(code)`, or what the second dimension says. */
export function outcome(found: Translation, linear = 0): string {
  const hex = (value: number) => `0x${value.toString(16)}`;
  switch (found.kind) {
    case "mapping":
      return hex(found.mapping.physical + (linear - found.mapping.linear));
    case "page fault":
      return `#PF(${hex(found.errorCode)})`;
    case "ept violation":
      return `violation ${hex(found.qualification)} at ${hex(found.physical)}`;
    case "ept misconfiguration":
      return `misconfiguration at ${hex(found.physical)}`;
    case "nested page fault":
      return `#NPF(${hex(found.errorCode)}) at ${hex(found.physical)}`;
  }
}
