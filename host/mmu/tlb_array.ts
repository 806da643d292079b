/**
 * One set-associative array of cached translations, with a bank for each page size. Replacement is true LRU within a
 * set: no manual says what processors do, and this is repeatable and easy to reason about.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { PageShift } from "../../abi/mod.ts";
import { type ArrayGeometry, type Bank, banksOf, setOf } from "./tlb_banks.ts";
import { ContextChains, PCID_BITS } from "./tlb_chains.ts";
import { SlotHints } from "./tlb_hints.ts";
import * as entry from "./tlb_entry.ts";
import {
  type CachedTranslation,
  NO_EPT,
  rightsOf,
  type Scope,
  TlbFill,
  type TlbTranslation,
} from "./tlb_entry.ts";
import type { HostPage } from "./translation.ts";

const { HIGH } = abi;
const {
  ANY,
  COMBINED,
  GUEST_PHYSICAL,
  LINEAR,
  TLB_DIRTY,
  TLB_GLOBAL,
  TLB_HOST_EXECUTABLE,
  TLB_HOST_READABLE,
  TLB_HOST_WRITABLE,
} = entry;

const VALID = 1;
const PCID_MASK = (1 << PCID_BITS) - 1;
/** An id that no root has. */
const UNKNOWN = -2;
/** Where an entry's traits are, and how large; the memory type, at the top, is signed. */
const FLAGS = 0xff;
const SIZE = 31;
const SHIFT_SHIFT = 8;
const SPAN_SHIFT = 13;
const TYPE_SHIFT = 18;
/** Log2 of the smallest page's bytes. */
const SMALL_SHIFT = 12;
/** And of the next one's. */
const LARGE_SHIFT = 21;

/** An array of cached translations. A slot is an entry's place, a small integer. */
export class TlbArray {
  /** Lookups that found an entry. */
  hits = 0;
  /** Lookups that found none. */
  misses = 0;

  #context = 0;
  #root = 0;
  #rootAddress: number = NO_EPT;
  #tick = 0;
  #valid = 0;
  /** Valid entries by bank. */
  readonly #population = new Int32Array(3);
  /** Entries whose page the guest's tables specify larger: an address does not tell their sets. */
  #fragments = 0;

  readonly #guest: boolean;
  readonly #addressMask: number;
  readonly #banks: readonly Bank[];
  /** The address's bits 31:12, and VALID. */
  readonly #low: Int32Array;
  /** The address's bits 47:32 or 51:32. */
  readonly #high: Int32Array;
  /** VPID and PCID. */
  readonly #contexts: Int32Array;
  readonly #roots: Int32Array;
  /** Flags, and above them shift, span and memory type: one store for all. */
  readonly #traits: Int32Array;
  readonly #physicalHigh: Int32Array;
  readonly #physicalLow: Int32Array;
  readonly #guestPhysical: Float64Array;
  readonly #used: Float64Array;
  /** Of the linear addresses' array: guest-physical ones have no PCID. */
  readonly #chains: ContextChains | undefined;
  readonly #fill = new TlbFill();
  readonly #hints = new SlotHints();
  /** Roots by id: entries compare small integers. Id 0 is "no EPT". */
  readonly #rootIds: number[] = [NO_EPT];

  /** An empty array. `kind` is what it caches by: linear addresses or guest-physical ones. */
  constructor(kind: "linear" | "guest-physical", geometry: ArrayGeometry) {
    this.#guest = kind === "guest-physical";
    this.#addressMask = this.#guest ? 0xf_ffff : 0xffff;
    this.#banks = banksOf(geometry);
    const size = this.#banks.reduce((slots, { setMask, ways }) => slots + (setMask + 1) * ways, 0);
    this.#low = new Int32Array(size);
    this.#high = new Int32Array(size);
    this.#contexts = new Int32Array(size);
    this.#roots = new Int32Array(size);
    this.#traits = new Int32Array(size);
    this.#physicalHigh = new Int32Array(size);
    this.#physicalLow = new Int32Array(size);
    this.#guestPhysical = new Float64Array(size);
    this.#used = new Float64Array(size);
    this.#chains = this.#guest ? undefined : new ContextChains(size);
  }

  /** Entries that the array has room for. */
  get size(): number {
    return this.#low.length;
  }

  /** Entries that are valid. */
  get valid(): number {
    return this.#valid;
  }

  /** Sets the tags that lookups compare and fills give. `root` is an address or NO_EPT. */
  setTags(vpid: number, pcid: number, root: number): void {
    const context = vpid << PCID_BITS | pcid;
    if (context === this.#context && root === this.#rootAddress) return;
    this.#context = context;
    this.#hints.retag(vpid, pcid);
    if (root !== this.#rootAddress) {
      this.#rootAddress = root;
      this.#root = this.#rootId(root, true);
    }
  }

  /**
   * The slot of an address, given by bits 63:32 and 31:0; -1 where there is none. Where pages of several sizes match,
   * the smallest answers (SDM 3A 4.10.2.3 leaves the choice open).
   */
  lookup(high: number, low: number): number {
    const slot = this.peek(high, low);
    this.use(slot);
    return slot;
  }

  /** What {@linkcode lookup} would find, which is no use of it. */
  peek(high: number, low: number): number {
    const slot = this.#hints.at(low);
    const page = low & -(1 << this.shift(slot)) | VALID;
    if (this.#low[slot] === page && this.#high[slot] === (high & this.#addressMask) && this.#tagged(slot)) {
      return slot;
    }
    return this.#search(high, low);
  }

  /** What {@linkcode peek} has found is used, or nothing is: the rest of {@linkcode lookup}. */
  use(slot: number): void {
    if (slot < 0) {
      this.misses++;
      return;
    }
    this.#used[slot] = ++this.#tick;
    this.hits++;
  }

  #search(high: number, low: number): number {
    const banks = this.#banks;
    for (let i = 0; i < banks.length; i++) {
      if (this.#population[i] === 0) continue;
      const slot = this.#find(banks[i], high, low);
      if (slot >= 0) {
        this.#hints.remember(low, slot, i === 0);
        return slot;
      }
    }
    return -1;
  }

  /** {@linkcode lookup} of an address as a number. */
  lookupAddress(address: number): number {
    return this.lookup(Math.floor(address / HIGH) | 0, address | 0);
  }

  /** Where a slot's page begins in physical memory. */
  physical(slot: number): number {
    return this.#physicalHigh[slot] * HIGH + (this.#physicalLow[slot] >>> 0);
  }

  /** Bits 63:32 of that. */
  physicalHigh(slot: number): number {
    return this.#physicalHigh[slot];
  }

  /** And bits 31:0, signed. */
  physicalLow(slot: number): number {
    return this.#physicalLow[slot];
  }

  /** The memory type of a slot's page; negative where none is modelled. */
  memoryType(slot: number): number {
    return this.#traits[slot] >> TYPE_SHIFT;
  }

  /** The flags of a slot: TLB_WRITABLE and so on. */
  flags(slot: number): number {
    return this.#traits[slot] & FLAGS;
  }

  /** Log2 of the bytes that a slot maps. */
  shift(slot: number): number {
    return (this.#traits[slot] >>> SHIFT_SHIFT) & SIZE;
  }

  /** Log2 of the page that the guest's tables specify. */
  #span(slot: number): number {
    return (this.#traits[slot] >>> SPAN_SHIFT) & SIZE;
  }

  /** A slot of guest-physical mappings as the page that a walk had found. */
  hostPage(slot: number): HostPage {
    const flags = this.flags(slot);
    const memoryType = this.memoryType(slot);
    return {
      kind: "page",
      guest: addressOf(this.#high[slot], this.#low[slot] & ~VALID, true),
      physical: this.physical(slot),
      shift: this.shift(slot) as PageShift,
      readable: (flags & TLB_HOST_READABLE) !== 0,
      writable: (flags & TLB_HOST_WRITABLE) !== 0,
      executable: (flags & TLB_HOST_EXECUTABLE) !== 0,
      dirty: (flags & TLB_DIRTY) !== 0,
      ...(memoryType >= 0 ? { memoryType } : {}),
      accesses: 0,
    };
  }

  /** A slot's entry, for people to look at; undefined where it is not valid. */
  entry(slot: number): CachedTranslation | undefined {
    const low = this.#low[slot];
    if ((low & VALID) === 0) return undefined;
    return {
      kind: this.#kind(slot),
      vpid: this.#contexts[slot] >>> PCID_BITS,
      pcid: this.#contexts[slot] & PCID_MASK,
      root: this.#rootIds[this.#roots[slot]],
      linear: addressOf(this.#high[slot], low & ~VALID, this.#guest),
      physical: this.physical(slot),
      shift: this.shift(slot) as PageShift,
      span: this.#span(slot) as PageShift,
      ...rightsOf(this.flags(slot), { guest: this.#guestPhysical[slot], physical: this.physical(slot) }),
      ...(this.memoryType(slot) >= 0 ? { memoryType: this.memoryType(slot) } : {}),
    };
  }

  /** Caches a translation with the tags set: in place of the entry that answered, of none, or of the oldest. */
  insert(translation: TlbTranslation): number {
    this.#fill.take(translation);
    return this.fill(this.#fill);
  }

  /** {@linkcode insert} of a translation in small integers. */
  fill(found: TlbFill): number {
    const { linearHigh, linearLow, shift, span, flags, guestHigh } = found;
    const number = bankOf(shift);
    const bank = this.#banks[number];
    const slot = this.#placeFor(bank, linearHigh, linearLow);
    this.#remove(slot);
    this.#low[slot] = linearLow & bank.pageMask | VALID;
    this.#high[slot] = linearHigh & this.#addressMask;
    this.#contexts[slot] = this.#context;
    this.#roots[slot] = this.#root;
    this.#traits[slot] = flags | shift << SHIFT_SHIFT | span << SPAN_SHIFT | found.memoryType << TYPE_SHIFT;
    this.#physicalHigh[slot] = found.physicalHigh;
    this.#physicalLow[slot] = found.physicalLow;
    this.#guestPhysical[slot] = guestHigh < 0 ? -1 : guestHigh * HIGH + (found.guestLow >>> 0);
    this.#used[slot] = ++this.#tick;
    this.#valid++;
    this.#population[number]++;
    if (span > shift) this.#fragments++;
    if (this.#chains !== undefined) this.#chains.add(slot, this.#context);
    if (shift === SMALL_SHIFT) this.#hints.remember(linearLow, slot, true);
    else this.#hints.forgetLarge();
    return slot;
  }

  /** Drops the entries of a scope. Returns how many there were. */
  drop(scope: Scope): number {
    const before = this.#valid;
    if (before === 0) return 0;
    const root = scope.root === ANY ? ANY : this.#rootId(scope.root, false);
    const { address } = scope;
    if (address === undefined) {
      const { vpid, pcid, globals } = scope;
      const visit = (slot: number): void => {
        if (this.#covered(slot, scope, root)) this.#remove(slot);
      };
      if (this.#chains === undefined) { for (let slot = 0; slot < this.size; slot++) visit(slot); }
      else this.#chains.visit(vpid, globals === "any PCID" ? ANY : pcid, visit);
      return before - this.#valid;
    }
    const high = Math.floor(address / HIGH) & this.#addressMask;
    const low = address | 0;
    const { piece } = scope;
    const all = this.#fragments > 0 && !piece;
    for (let i = 0; i < this.#banks.length; i++) {
      if (this.#population[i] === 0) continue;
      const bank = this.#banks[i];
      const first = all ? bank.first : setOf(bank, high, low);
      const end = first + bank.ways * (all ? bank.setMask + 1 : 1);
      for (let slot = first; slot < end; slot++) {
        const inside = this.#high[slot] === high &&
          ((this.#low[slot] ^ low) & -(1 << (piece ? this.shift(slot) : this.#span(slot)))) === 0;
        if (inside && this.#covered(slot, scope, root)) this.#remove(slot);
      }
    }
    return before - this.#valid;
  }

  #find(bank: Bank, high: number, low: number): number {
    const key = low & bank.pageMask | VALID;
    const highKey = high & this.#addressMask;
    const first = setOf(bank, highKey, low);
    const end = first + bank.ways;
    const lows = this.#low;
    for (let slot = first; slot < end; slot++) {
      if (lows[slot] === key && this.#high[slot] === highKey && this.#tagged(slot)) return slot;
    }
    return -1;
  }

  /** Whether accesses with the tags set may use an entry. */
  #tagged(slot: number): boolean {
    if (this.#roots[slot] !== this.#root) return false;
    const other = this.#contexts[slot] ^ this.#context;
    return other === 0 || ((other & ~PCID_MASK) === 0 && (this.#traits[slot] & TLB_GLOBAL) !== 0);
  }

  /** Where an entry goes: in place of the one that answers for its page, of none, or of the one used longest ago. */
  #placeFor(bank: Bank, high: number, low: number): number {
    const key = low & bank.pageMask | VALID;
    const highKey = high & this.#addressMask;
    const first = setOf(bank, highKey, low);
    const end = first + bank.ways;
    const lows = this.#low;
    let place = first;
    let longest = Infinity;
    for (let slot = first; slot < end; slot++) {
      const known = lows[slot];
      if (known === key && this.#high[slot] === highKey && this.#tagged(slot)) return slot;
      const used = (known & VALID) === 0 ? -1 : this.#used[slot];
      if (used < longest) {
        longest = used;
        place = slot;
      }
    }
    return place;
  }

  #remove(slot: number): void {
    if ((this.#low[slot] & VALID) === 0) return;
    this.#low[slot] = 0;
    this.#valid--;
    this.#population[bankOf(this.shift(slot))]--;
    if (this.#chains !== undefined) this.#chains.remove(slot, this.#contexts[slot]);
    if (this.#span(slot) > this.shift(slot)) this.#fragments--;
  }

  #kind(slot: number): number {
    return this.#guest ? GUEST_PHYSICAL : this.#roots[slot] === 0 ? LINEAR : COMBINED;
  }

  /** Whether a scope holds an entry, its address aside. */
  #covered(slot: number, scope: Scope, root: number): boolean {
    if ((this.#low[slot] & VALID) === 0 || (this.#kind(slot) & scope.kinds) === 0) return false;
    const context = this.#contexts[slot];
    const vpid = context >>> PCID_BITS;
    if (scope.vpid === ANY ? scope.exceptVpid0 && vpid === 0 : vpid !== scope.vpid) return false;
    if (root !== ANY && root !== this.#roots[slot]) return false;
    const global = (this.flags(slot) & TLB_GLOBAL) !== 0;
    if (global && scope.globals !== "dropped") return scope.globals === "any PCID";
    return scope.pcid === ANY || scope.pcid === (context & PCID_MASK);
  }

  #rootId(root: number, add: boolean): number {
    const known = this.#rootIds.indexOf(root);
    if (known >= 0) return known;
    return add ? this.#rootIds.push(root) - 1 : UNKNOWN;
  }
}

function bankOf(shift: number): number {
  return shift === SMALL_SHIFT ? 0 : shift === LARGE_SHIFT ? 1 : 2;
}

/** An address from its halves; linear ones are canonical for 48 bits. */
function addressOf(high: number, low: number, guest: boolean): number {
  return (guest ? high : high << 16 >> 16) * HIGH + (low >>> 0);
}
