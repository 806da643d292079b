/**
 * The TLB of one processor: which translations it caches, and by what they are told apart.
 *
 *     kind             made while             tags on Intel (SDM 3C 29.4.1)     tags on AMD (APM 2 15.16)
 *     linear           EPT is not in use      VPID, PCID                        ASID, PCID
 *     combined         EPT is in use          VPID, PCID, EPT root              (cached as linear)
 *     guest-physical   EPT is in use          EPT root                          ASID
 *
 * The EPT root is what the SDM calls EP4TA, bits 51:12 of the EPTP. Outside VMX non-root operation, and without
 * "enable VPID", the VPID is 0; while CR4.PCIDE is 0, the PCID is 0. A global entry is used whatever the PCID, not
 * whatever the VPID or root (SDM 3C 29.4.2). AMD's entries name no nested root: who changes it, flushes the ASID.
 *
 * Paging-structure caches are not modelled: every miss walks from the root. Processors may do without them, and what
 * software has to invalidate because of them goes unnoticed here.
 *
 * @module
 */

import type { PageShift } from "../../abi/mod.ts";
import { TlbArray } from "./tlb_array.ts";
import type { ArrayGeometry } from "./tlb_banks.ts";
import { type CachedTranslation, GUEST_PHYSICAL, type HostRights, NO_EPT, type Scope } from "./tlb_entry.ts";

/** How large a TLB is. */
export interface TlbGeometry {
  /** For linear and combined mappings. */
  readonly linear: ArrayGeometry;
  /** For guest-physical mappings. */
  readonly guestPhysical: ArrayGeometry;
}

/**
 * The default: 1536 entries of 4 KiB in 12 ways as the second level of Skylake's server cores has; the rest is
 * assumed. Nobody publishes how guest-physical mappings are kept.
 */
export const DEFAULT_TLB_GEOMETRY: TlbGeometry = {
  linear: { small: { sets: 128, ways: 12 }, large: { sets: 8, ways: 4 }, huge: { sets: 1, ways: 4 } },
  guestPhysical: { small: { sets: 16, ways: 4 }, large: { sets: 8, ways: 4 }, huge: { sets: 1, ways: 4 } },
};

/** A page of guest-physical addresses, as a walk of EPT or nested tables finds it. */
export interface HostPageTranslation extends HostRights {
  /** Log2 of its bytes. */
  readonly shift: PageShift;
  /** The type that EPT gives the memory. */
  readonly memoryType?: number;
}

/** What a processor's accesses are tagged with now. */
export interface TlbTags {
  /** The VPID, or AMD's ASID. 0 for the host. */
  readonly vpid: number;
  /** The PCID; 0 while CR4.PCIDE is 0. */
  readonly pcid: number;
  /** Address of the EPT root; NO_EPT where EPT is not in use. */
  readonly root: number;
}

/** The translations that one processor has cached. */
export class Tlb {
  /** Linear and combined mappings. */
  declare readonly linear: TlbArray;
  /** Guest-physical mappings. */
  declare readonly guestPhysical: TlbArray;
  /** Whose rules tell entries apart. */
  declare readonly vendor: "vmx" | "svm";

  /** Counts what was dropped: who remembers an entry must look again. */
  generation = 0;
  /** The VPID or ASID of accesses from now on. */
  vpid = 0;
  /** Their PCID. */
  pcid = 0;
  /** The address of their EPT root. */
  root: number = NO_EPT;

  /** An empty TLB, as after a reset. Throws `RangeError` for a geometry that cannot be. */
  constructor(vendor: "vmx" | "svm", geometry: TlbGeometry = DEFAULT_TLB_GEOMETRY) {
    this.vendor = vendor;
    this.linear = new TlbArray("linear", geometry.linear);
    this.guestPhysical = new TlbArray("guest-physical", geometry.guestPhysical);
  }

  /** The tags set last. */
  get tags(): TlbTags {
    return { vpid: this.vpid, pcid: this.pcid, root: this.root };
  }

  /**
   * Changes the tags that accesses have from now on: at VM entry and exit, and where CR3, CR4.PCIDE or the EPTP change.
   * It drops nothing: what a change invalidates is for the operation that makes it.
   */
  setTags({ vpid, pcid, root }: TlbTags): void {
    this.vpid = vpid;
    this.root = root;
    this.setPcid(pcid);
    if (this.vendor === "vmx") this.guestPhysical.setTags(0, 0, root);
    else this.guestPhysical.setTags(vpid, 0, NO_EPT);
  }

  /** Changes the PCID alone: guest-physical mappings have none. */
  setPcid(pcid: number): void {
    this.pcid = pcid;
    this.linear.setTags(this.vpid, pcid, this.vendor === "vmx" ? this.root : NO_EPT);
  }

  /** Caches what EPT or nested tables say of a page: a guest-physical mapping. Returns its slot. */
  insertHostPage(page: HostPageTranslation): number {
    const { guest, physical, shift, writable, executable, dirty, memoryType } = page;
    return this.guestPhysical.insert({
      linear: guest,
      physical,
      shift,
      writable,
      user: true,
      executable,
      global: false,
      dirty,
      host: page,
      ...(memoryType === undefined ? {} : { memoryType }),
    });
  }

  /** Drops what a scope covers. Returns how many entries there were. */
  drop(scope: Scope): number {
    this.generation++;
    const dropped = (scope.kinds & ~GUEST_PHYSICAL) !== 0 ? this.linear.drop(scope) : 0;
    return (scope.kinds & GUEST_PHYSICAL) !== 0 ? dropped + this.guestPhysical.drop(scope) : dropped;
  }

  /** All entries, for people to look at. */
  entries(): CachedTranslation[] {
    return [this.linear, this.guestPhysical].flatMap((array) =>
      Array.from({ length: array.size }, (_, slot) => array.entry(slot)).filter((entry) =>
        entry !== undefined
      )
    );
  }
}
