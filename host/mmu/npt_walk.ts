/**
 * Walks of AMD's nested page tables (APM 2 15.25.5): the ordinary format, in which every access is a user's. Read-only
 * guest page tables, with which a walk of the guest's tables counts as a write only where it sets a flag, are not
 * modelled.
 *
 * @module
 */

import {
  pageOffset,
  type PagingFeatures,
  PFERR_FETCH,
  PFERR_GUEST_FINAL,
  PFERR_GUEST_PAGE,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
  PTE_D,
  tableRoot,
} from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { descend, readWord, setAccessedDirty } from "./descent.ts";
import type { HostFault, HostPage, PhysicalAccess, PhysicalMemory, SecondDimension } from "./translation.ts";

/** What an {@linkcode Npt} is made of. */
export interface NptOptions {
  /** Where the tables are. */
  readonly memory: PhysicalMemory;
  /** N_CR3. */
  readonly ncr3: number;
  /** EFER.NXE of the host. */
  readonly nx: boolean;
  /** What the processor has. */
  readonly features: PagingFeatures;
}

/** Nested page tables in use. */
export class Npt implements SecondDimension {
  /** Where the tables are. */
  declare readonly memory: PhysicalMemory;
  /** N_CR3. */
  declare readonly ncr3: number;
  /** EFER.NXE of the host. */
  declare readonly nx: boolean;
  /** What the processor has. */
  declare readonly features: PagingFeatures;

  /** They do. */
  readonly tableAccessWrites = true;

  /** Uses the tables at N_CR3. */
  constructor({ memory, ncr3, nx, features }: NptOptions) {
    this.memory = memory;
    this.ncr3 = ncr3;
    this.nx = nx;
    this.features = features;
  }

  /** Translates a guest-physical address. Accesses to the guest's tables count as writes, whatever they are for. */
  translate(physical: number, access: PhysicalAccess): HostPage | HostFault {
    if (physical >= 2 ** 48) {
      throw new NotModelled("a guest-physical address above 2^48 under nested paging", "APM 2 15.25");
    }
    const { memory, nx, features } = this;
    const final = access.purpose === "final";
    const write = !final || access.write;
    const fetch = final && access.fetch;
    const descent = descend({ memory, root: tableRoot(this.ncr3), nx, features }, physical);
    const { accesses, user, writable, executable, shift } = descent;
    // The bits are those of 15.25.6. Not confirmed: that the fetch bit needs EFER.NXE, as it does for page faults.
    const fault = (cause: number): HostFault => ({
      kind: "nested page fault",
      errorCode: (cause | (write ? PFERR_WRITE : 0) | PFERR_USER | (fetch && nx ? PFERR_FETCH : 0)) +
        (final ? PFERR_GUEST_FINAL : PFERR_GUEST_PAGE),
      physical,
      accesses,
    });
    if (descent.end === "absent") return fault(0);
    if (descent.end === "reserved") return fault(PFERR_PRESENT | PFERR_RSVD);
    if (!user || (write && !writable) || (fetch && !executable)) return fault(PFERR_PRESENT);
    setAccessedDirty(memory, descent, write);
    const { at } = descent.entries[descent.entries.length - 1];
    return {
      kind: "page",
      guest: physical - pageOffset(physical, shift),
      physical: descent.physical,
      shift,
      readable: true,
      writable,
      executable,
      dirty: (readWord(memory, at) & PTE_D) !== 0,
      accesses,
    };
  }
}
