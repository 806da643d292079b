/**
 * What a translation is asked, and what comes of it.
 *
 * @module
 */

import type { PageShift, PagingFeatures, TableMemory } from "../../abi/mod.ts";

/** Physical memory, as a processor walks tables in it. */
export interface PhysicalMemory extends TableMemory {
  /** Whether every byte of a range is there. */
  backed(address: number, bytes: number): boolean;
}

/** An access to a linear address; a data read where it neither writes nor fetches. */
export interface AccessKind {
  /** It writes, or reads and writes. */
  readonly write: boolean;
  /** It was made at CPL 3. */
  readonly user: boolean;
  /** It fetches an instruction. */
  readonly fetch: boolean;
  /** The processor makes it for itself, to a system structure: a supervisor-mode access at any CPL (SDM 3A 4.6). */
  readonly implicit?: boolean;
}

/** The registers that paging depends on. CPL is the access's own. */
export interface PagingState {
  /** CR0. */
  readonly cr0: number;
  /** CR3. */
  readonly cr3: number;
  /** CR4. */
  readonly cr4: number;
  /** IA32_EFER. */
  readonly efer: number;
  /** RFLAGS.AC. */
  readonly ac: boolean;
}

/** The rights that all entries of a walk allow together. */
export interface Rights {
  /** U/S is set in each: a user-mode address. */
  readonly user: boolean;
  /** R/W is set in each. */
  readonly writable: boolean;
  /** XD is set in none. */
  readonly executable: boolean;
}

/** A page of guest-physical addresses, as EPT or nested tables map it. */
export interface HostPage {
  /** Tells it from a fault. */
  readonly kind: "page";
  /** The page's own guest-physical address. */
  readonly guest: number;
  /** Where it is. */
  readonly physical: number;
  /** Its size. */
  readonly shift: PageShift;
  /** Reads are allowed: EPT may allow fetches alone. */
  readonly readable: boolean;
  /** Writes are allowed. */
  readonly writable: boolean;
  /** Fetches are allowed. */
  readonly executable: boolean;
  /** A write sets no dirty flag any more, or there are none. */
  readonly dirty: boolean;
  /** The type that EPT gives the memory; undefined in nested tables. */
  readonly memoryType?: number;
  /** EPT has the guest's PAT ignored. */
  readonly ignorePat?: boolean;
  /** Entries that the walk read. */
  readonly accesses: number;
}

/**
 * A page of linear addresses: what a TLB holds. Its rights are the guest's own; what the host allows stands apart, as
 * faults of the two go to different places.
 */
export interface Mapping extends Rights {
  /** The page's linear address, a signed number. */
  readonly linear: number;
  /** The page's physical address: through EPT or nested tables where there are such. */
  readonly physical: number;
  /** Its size: in two dimensions the smaller one. */
  readonly shift: PageShift;
  /** The size that the guest's own tables specify, where that is larger. */
  readonly span?: PageShift;
  /** It is kept over changes of PCID: G is set where CR4.PGE is. */
  readonly global: boolean;
  /** A write sets no dirty flag of the guest's any more. */
  readonly dirty: boolean;
  /** The type that EPT gives the memory. */
  readonly memoryType?: number;
  /** What the second dimension allows; undefined in one dimension. */
  readonly host?: HostPage;
}

/** The guest's tables, or none, allow no such access: #PF. */
export interface PageFaultFound {
  /** Tells it from other outcomes. */
  readonly kind: "page fault";
  /** The error code. */
  readonly errorCode: number;
  /** The linear address, which goes to CR2. */
  readonly address: number;
}

/** EPT allows no such access. */
export interface EptViolationFound {
  /** Tells it from other outcomes. */
  readonly kind: "ept violation";
  /** The exit qualification. */
  readonly qualification: number;
  /** The guest-physical address. */
  readonly physical: number;
  /** The guest-linear address. */
  readonly linear?: number;
}

/** An EPT entry holds what is not supported. */
export interface EptMisconfigurationFound {
  /** Tells it from other outcomes. */
  readonly kind: "ept misconfiguration";
  /** The guest-physical address. */
  readonly physical: number;
}

/** Nested tables allow no such access: VMEXIT_NPF. */
export interface NestedPageFaultFound {
  /** Tells it from other outcomes. */
  readonly kind: "nested page fault";
  /** EXITINFO1: more than 32 bits. */
  readonly errorCode: number;
  /** EXITINFO2: the guest-physical address. */
  readonly physical: number;
}

/** A fault of the second dimension: the guest knows nothing of it. */
export type HostFault = (EptViolationFound | EptMisconfigurationFound | NestedPageFaultFound) & {
  /** Entries that the walk read. */
  readonly accesses: number;
};

/** What comes of a walk. `accesses` counts the entries that it read, of both dimensions: what it costs. */
export type Translation =
  | { readonly kind: "mapping"; readonly mapping: Mapping; readonly accesses: number }
  | PageFaultFound & { readonly accesses: number }
  | HostFault;

/** An access to a guest-physical address. */
export interface PhysicalAccess {
  /**
   * What it is for: to read an entry of the guest's tables, to set an accessed or dirty flag in one, or what a linear
   * address translates to.
   */
  readonly purpose: "table" | "table update" | "final";
  /** A final access writes. */
  readonly write: boolean;
  /** A final access fetches. */
  readonly fetch: boolean;
  /** The linear address; undefined where the access has none. */
  readonly linear?: number;
  /** A final access: what the guest's tables allow. */
  readonly rights?: Rights;
}

/** EPT or nested tables. */
export interface SecondDimension {
  /** Translates a guest-physical address. */
  translate(physical: number, access: PhysicalAccess): HostPage | HostFault;
  /** Whether reads of the guest's tables count as writes: on AMD, and on Intel where EPT has accessed and dirty flags. */
  readonly tableAccessWrites: boolean;
}

/** What a processor walks with. */
export interface Paging {
  /** Where the guest's tables are: in two dimensions, the memory that the second one leads to. */
  readonly memory: PhysicalMemory;
  /** The registers. */
  readonly state: PagingState;
  /** What the processor has. */
  readonly features: PagingFeatures;
  /** EPT or nested tables, where they are in use. */
  readonly second?: SecondDimension;
}
