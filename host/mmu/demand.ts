/**
 * What an access demands of the translation that it uses: flags of a TLB's entry, by the registers as they are.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { pageFaultCode } from "./permissions.ts";
import * as entry from "./tlb_entry.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { CR0_PG, CR0_WP, CR4_SMAP, CR4_SMEP, EFER_NX } = abi;
const {
  TLB_DIRTY,
  TLB_EXECUTABLE,
  TLB_HOST_EXECUTABLE,
  TLB_HOST_READABLE,
  TLB_HOST_WRITABLE,
  TLB_USER,
  TLB_WRITABLE,
} = entry;

/** Access: a read by the program. */
export const READS = 0;
/** Access: a write, or a read and a write. */
export const WRITES = 1;
/** Access: an instruction fetch. */
export const FETCHES = 2;
/** Access: the processor reads a table of the system's for itself. */
export const READS_SYSTEM = 3;
/** What an access does. */
export type Access = typeof READS | typeof WRITES | typeof FETCHES | typeof READS_SYSTEM;

/** The demands of one access. */
export interface Demand {
  /** What the access does. */
  readonly access: Access;
  /** Flags that an entry must have. */
  readonly needs: number;
  /** And must not have. */
  readonly forbids: number;
  /** What a page fault's error code says of the access. */
  readonly errorCode: number;
}

/** The registers that demands depend on. */
export interface DemandState {
  /** CR0. */
  readonly cr0: number;
  /** CR4. */
  readonly cr4: number;
  /** IA32_EFER. */
  readonly efer: number;
}

/** In {@linkcode demandsOf}'s list: the access was made at CPL 3. */
export const DEMAND_USER = 1;
/** The same: RFLAGS.AC is set, so that CR4.SMAP lets explicit accesses pass. */
export const DEMAND_AC = 8;

/** The demands by 2 * access, {@linkcode DEMAND_USER} and {@linkcode DEMAND_AC}. They say what {@linkcode permits} does. */
export function demandsOf({ cr0, cr4, efer }: DemandState): readonly Demand[] {
  const paging = (cr0 & CR0_PG) !== 0;
  const smep = paging && (cr4 & CR4_SMEP) !== 0 ? TLB_USER : 0;
  const smap = paging && (cr4 & CR4_SMAP) !== 0 ? TLB_USER : 0;
  const write = TLB_DIRTY | TLB_HOST_WRITABLE;
  const supervisorWrite = write | ((cr0 & CR0_WP) !== 0 ? TLB_WRITABLE : 0);
  const fetch = TLB_HOST_EXECUTABLE | ((efer & EFER_NX) !== 0 ? TLB_EXECUTABLE : 0);
  const read = TLB_HOST_READABLE;
  const rows = (explicit: number): Omit<Demand, "errorCode">[] => [
    { access: READS, needs: read, forbids: explicit },
    { access: READS, needs: read | TLB_USER, forbids: 0 },
    { access: WRITES, needs: supervisorWrite, forbids: explicit },
    { access: WRITES, needs: write | TLB_WRITABLE | TLB_USER, forbids: 0 },
    { access: FETCHES, needs: fetch, forbids: smep },
    { access: FETCHES, needs: fetch | TLB_USER, forbids: 0 },
    // A supervisor-mode access at any CPL (SDM 3A 4.6).
    { access: READS_SYSTEM, needs: read, forbids: smap },
    { access: READS_SYSTEM, needs: read, forbids: smap },
  ];
  return [...rows(smap), ...rows(0)].map((row, index) => {
    const { access } = row;
    const user = (index & DEMAND_USER) !== 0;
    const kind = {
      write: access === WRITES,
      fetch: access === FETCHES,
      implicit: access === READS_SYSTEM,
      user,
    };
    return { ...row, errorCode: pageFaultCode(kind, { cr4, efer }, 0) };
  });
}
