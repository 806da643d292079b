/**
 * What a TLB's entries hold, and what an invalidation names of them.
 *
 * @module
 */

import { HIGH, type PageShift } from "../../abi/mod.ts";

/** The mappings that a processor caches (SDM 3C 29.4.1), as bits. */
export const LINEAR = 1;
/** From guest-physical to host-physical addresses, through EPT alone. */
export const GUEST_PHYSICAL = 2;
/** From linear to host-physical addresses, through the guest's tables and EPT. */
export const COMBINED = 4;

/** Any value of a tag. */
export const ANY: number = -1;
/** The tag of an entry that was made without EPT. */
export const NO_EPT: number = -2;

/** Flag of an entry: writes are allowed. */
export const TLB_WRITABLE = 1;
/** Flag of an entry: accesses in user mode are allowed. */
export const TLB_USER = 2;
/** Flag of an entry: instruction fetches are allowed. */
export const TLB_EXECUTABLE = 4;
/** Flag of an entry: used whatever the PCID. */
export const TLB_GLOBAL = 8;
/** Flag of an entry: all dirty flags in memory are set, a write need not walk the tables. */
export const TLB_DIRTY = 16;
/** Flag of an entry: EPT or nested tables allow reads, or there are none. */
export const TLB_HOST_READABLE = 32;
/** Flag of an entry: EPT or nested tables allow writes, or there are none. */
export const TLB_HOST_WRITABLE = 64;
/** Flag of an entry: EPT or nested tables allow fetches, or there are none. */
export const TLB_HOST_EXECUTABLE = 128;

/** What the second dimension allows. */
export interface HostRights {
  /** A guest-physical address: of the page, or of a larger one around it. */
  readonly guest: number;
  /** Where that is. */
  readonly physical: number;
  /** Reads are allowed. */
  readonly readable: boolean;
  /** Writes are allowed. */
  readonly writable: boolean;
  /** Instruction fetches are allowed. */
  readonly executable: boolean;
  /** A write sets no dirty flag any more. */
  readonly dirty: boolean;
}

/** A translation to cache, as a walk finds it. Its tags are those of the array at that time. */
export interface TlbTranslation {
  /** First address of the page, linear or guest-physical. Linear addresses are canonical: negative in the upper half. */
  readonly linear: number;
  /** First address that it translates to. */
  readonly physical: number;
  /** Log2 of the bytes that the entry maps. */
  readonly shift: PageShift;
  /**
   * Log2 of the page that the guest's own tables specify, where EPT maps it by smaller pages: what is said about a
   * page's linear address goes for all its fragments (SDM 3A 4.10.4.1). `shift` unless given.
   */
  readonly span?: PageShift;
  /** Writes are allowed. */
  readonly writable: boolean;
  /** Accesses in user mode are allowed. */
  readonly user: boolean;
  /** Instruction fetches are allowed. */
  readonly executable: boolean;
  /** Used whatever the PCID. */
  readonly global: boolean;
  /** A write sets no dirty flag of the guest's any more. */
  readonly dirty: boolean;
  /** The memory type, where one is modelled. */
  readonly memoryType?: number;
  /** What the second dimension allows, where there is one. */
  readonly host?: HostRights;
}

/**
 * A translation to cache, in small integers: who finds many fills the same one in again. An address's upper half, bits
 * 63:32, is signed where it is linear; the lower halves are signed too.
 */
export class TlbFill {
  /** First address of the page: its upper half. */
  linearHigh = 0;
  /** And its lower half. The bits within the page do not count. */
  linearLow = 0;
  /** First address that it translates to: its upper half. */
  physicalHigh = 0;
  /** And its lower half. */
  physicalLow = 0;
  /** Its guest-physical address: the upper half. Negative where there is no second dimension. */
  guestHigh = 0;
  /** And the lower half. */
  guestLow = 0;
  /** Log2 of the bytes that the entry maps. */
  shift = 0;
  /** Log2 of the page that the guest's own tables specify. */
  span = 0;
  /** TLB_WRITABLE and so on. */
  flags = 0;
  /** The memory type; negative where none is modelled. */
  memoryType: number = -1;

  /** Takes a translation's fields. */
  take(translation: TlbTranslation): void {
    const { linear, physical, shift, span = shift, host, memoryType = -1 } = translation;
    const guest = host === undefined ? -1 : host.guest + physical - host.physical;
    this.linearHigh = Math.floor(linear / HIGH);
    this.linearLow = linear | 0;
    this.physicalHigh = Math.floor(physical / HIGH);
    this.physicalLow = physical | 0;
    this.guestHigh = Math.floor(guest / HIGH);
    this.guestLow = guest | 0;
    this.shift = shift;
    this.span = span;
    this.flags = flagsOf(translation);
    this.memoryType = memoryType;
  }
}

/** What an invalidation has to drop, and nothing else. */
export interface Scope {
  /** Mappings: LINEAR, GUEST_PHYSICAL, COMBINED or several. */
  readonly kinds: number;
  /** VPID or ASID, or ANY. */
  readonly vpid: number;
  /** Whether ANY leaves VPID 0 out. */
  readonly exceptVpid0: boolean;
  /** PCID, or ANY. */
  readonly pcid: number;
  /** Address of the EPT root, or ANY. */
  readonly root: number;
  /** Global entries: kept; dropped like others; dropped with any PCID. */
  readonly globals: "kept" | "dropped" | "any PCID";
  /** One address of the page, linear or guest-physical; undefined for all pages. */
  readonly address: number | undefined;
  /** Of a page that the guest's tables specify, and that the TLB holds in pieces, the address's piece alone. */
  readonly piece: boolean;
}

/** An entry of a TLB, with its tags. */
export interface CachedTranslation extends TlbTranslation {
  /** LINEAR, GUEST_PHYSICAL or COMBINED. */
  readonly kind: number;
  /** VPID or ASID; 0 where it is no tag of that kind. */
  readonly vpid: number;
  /** PCID; 0 where it is no tag of that kind. */
  readonly pcid: number;
  /** Address of the EPT root, or NO_EPT. */
  readonly root: number;
  /** Log2 of the page that the guest's own tables specify. */
  readonly span: PageShift;
}

/** A translation's flags in one word. */
export function flagsOf(translation: TlbTranslation): number {
  const { writable, user, executable, global, dirty, host } = translation;
  return (writable ? TLB_WRITABLE : 0) | (user ? TLB_USER : 0) | (executable ? TLB_EXECUTABLE : 0) |
    (global ? TLB_GLOBAL : 0) | (dirty && (host?.dirty ?? true) ? TLB_DIRTY : 0) |
    (host?.readable ?? true ? TLB_HOST_READABLE : 0) | (host?.writable ?? true ? TLB_HOST_WRITABLE : 0) |
    (host?.executable ?? true ? TLB_HOST_EXECUTABLE : 0);
}

/** A translation's rights from its flags; `guest` is negative where there is no second dimension. */
export function rightsOf(
  flags: number,
  { guest, physical }: { readonly guest: number; readonly physical: number },
): Omit<TlbTranslation, "linear" | "physical" | "shift" | "span" | "memoryType"> {
  const dirty = (flags & TLB_DIRTY) !== 0;
  const host = {
    guest,
    physical,
    readable: (flags & TLB_HOST_READABLE) !== 0,
    writable: (flags & TLB_HOST_WRITABLE) !== 0,
    executable: (flags & TLB_HOST_EXECUTABLE) !== 0,
    dirty,
  };
  return {
    writable: (flags & TLB_WRITABLE) !== 0,
    user: (flags & TLB_USER) !== 0,
    executable: (flags & TLB_EXECUTABLE) !== 0,
    global: (flags & TLB_GLOBAL) !== 0,
    dirty,
    ...(guest >= 0 ? { host } : {}),
  };
}
