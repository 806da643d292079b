/**
 * The staleness oracle: whether the use of a cached translation is one that the architecture allows.
 *
 * A processor may use a translation that the tables no longer hold, until an operation that must invalidate it has been
 * executed there (SDM 3A 4.10.4). So an entry that differs from the tables, at the address of a hit, is
 *
 *   - legally stale, while software has executed nothing on that processor that covers it, and has promised nothing;
 *   - a failure of the simulator, where such an operation has been executed since the entry was cached: the processor
 *     kept what it had to drop. When the tables changed does not matter, as entries are cached by walks alone;
 *   - a failure of software, where it has declared the translation gone: its page is freed or used for something else,
 *     or somebody relies on rights that were taken away, while this processor still has what was there before.
 *
 * Software's part is two calls: {@linkcode StalenessOracle.changed} where it writes tables, accessed and dirty flags
 * aside, and {@linkcode StalenessOracle.gone} where its shootdown is complete. Only a change that came before is
 * declared gone: what changes later has its own time to be flushed. Rights that the tables have gained are no failure of
 * software's: an entry without them causes a spurious fault at most (SDM 3A 4.10.4.3).
 *
 * A change of EPT is followed to combined entries by the guest-physical address of their page; not by those of the
 * guest's own tables.
 *
 * @module
 */

import { type Invalidation, scopeOf } from "./invalidate.ts";
import { StaleTranslation } from "./stale_translation.ts";
import type { TlbTags } from "./tlb.ts";
import { ANY, type CachedTranslation, GUEST_PHYSICAL, type Scope, type TlbTranslation } from "./tlb_entry.ts";

/** Translations that software speaks of. A tag that is left out is any. */
export interface TranslationRange {
  /** Linear addresses that the guest's tables translate, or guest-physical ones that EPT or nested tables do. */
  readonly space: "linear" | "guest-physical";
  /** First address. Linear ones are canonical: negative in the upper half. */
  readonly address: number;
  /** How many addresses. */
  readonly bytes: number;
  /** VPID or ASID. */
  readonly vpid?: number;
  /** PCID. Global entries are meant whatever theirs. */
  readonly pcid?: number;
  /** Address of the EPT root. */
  readonly root?: number;
  /** The processor that has cached them: an ASID is one processor's own. */
  readonly cpu?: number;
}

/** Software's word that nobody uses the old translations of a range any more. */
export interface ShootdownComplete extends TranslationRange {
  /** What it relies on: "page freed", "page reused", "write access removed". */
  readonly reason: string;
}

/** What a hit turned out to be, where it is allowed. */
export type Freshness = "fresh" | "legally stale";

/** What the tables say now of an address that `entry` translates on `cpu`; undefined where they map it no more. */
export type WalkNow = (
  cpu: number,
  entry: CachedTranslation,
  address: number,
) =>
  | Pick<TlbTranslation, "physical" | "shift" | "writable" | "user" | "executable" | "memoryType" | "host">
  | undefined;

interface Life {
  readonly entry: CachedTranslation;
  covered: Invalidation | undefined;
  changed: TranslationRange | undefined;
  gone: ShootdownComplete | undefined;
}

/** Watches the TLBs of a machine. */
export class StalenessOracle {
  /** Hits on entries that the tables agree with. */
  fresh = 0;
  /** Hits on entries that were legally stale. */
  legallyStale = 0;
  readonly #walk: WalkNow;
  readonly #processors: ProcessorLives[] = [];

  /** An oracle that compares with what `walk` finds. The walk must not set flags in the tables. */
  constructor(walk: WalkNow) {
    this.#walk = walk;
  }

  /** An entry was cached: `slot` is where, in the array of its kind. */
  filled(cpu: number, slot: number, entry: CachedTranslation): void {
    this.#of(cpu, entry.kind)[slot] = { entry, covered: undefined, changed: undefined, gone: undefined };
  }

  /** An operation was executed on a processor whose accesses had these tags, whatever its TLB has done. */
  invalidated(cpu: number, operation: Invalidation, tags: TlbTags): void {
    const scope = scopeOf(operation, tags);
    for (const life of this.#lives(cpu)) {
      if (life.covered === undefined && covers(scope, life.entry)) life.covered = operation;
    }
  }

  /** Software changed tables: entries cached before may now differ from them. */
  changed(range: TranslationRange): void {
    this.#each(range, (life) => life.changed = range);
  }

  /** Software's shootdown is complete: what was changed before must not be used any more, by any processor. */
  gone(declaration: ShootdownComplete): void {
    this.#each(declaration, (life) => {
      if (life.changed !== undefined) life.gone ??= declaration;
    });
  }

  /**
   * Judges a hit of `slot` at an address. Throws {@linkcode StaleTranslation} for a failure of the simulator or of
   * software.
   */
  used(cpu: number, slot: number, at: { readonly address: number; readonly kind: number }): Freshness {
    const { address, kind } = at;
    const life = this.#of(cpu, kind)[slot];
    if (life === undefined) {
      throw new Error(`Cannot judge slot ${slot} of CPU ${cpu}: the oracle was not told that it was filled`);
    }
    const { entry, covered, changed, gone } = life;
    const now = this.#walk(cpu, entry, address);
    const difference = compare(entry, now, address);
    if (difference === undefined) {
      this.fresh++;
      return "fresh";
    }
    if (covered !== undefined) {
      throw new StaleTranslation({ blame: "simulator", cpu, entry, address, difference, covered });
    }
    if (gone !== undefined && difference !== GAINED) {
      throw new StaleTranslation({
        blame: "software",
        cpu,
        entry,
        address,
        difference,
        declared: gone,
        space: changed!.space,
      });
    }
    this.legallyStale++;
    return "legally stale";
  }

  #of(cpu: number, kind: number): (Life | undefined)[] {
    const lives = this.#processors[cpu] ??= { linear: [], guestPhysical: [] };
    return kind === GUEST_PHYSICAL ? lives.guestPhysical : lives.linear;
  }

  *#lives(cpu: number): Generator<Life> {
    const lives = this.#processors[cpu];
    if (lives === undefined) return;
    for (const life of lives.linear) if (life !== undefined) yield life;
    for (const life of lives.guestPhysical) if (life !== undefined) yield life;
  }

  #each(range: TranslationRange, visit: (life: Life) => void): void {
    for (let cpu = 0; cpu < this.#processors.length; cpu++) {
      if (range.cpu !== undefined && range.cpu !== cpu) continue;
      for (const life of this.#lives(cpu)) {
        if (inRange(range, life.entry)) visit(life);
      }
    }
  }
}

interface ProcessorLives {
  readonly linear: (Life | undefined)[];
  readonly guestPhysical: (Life | undefined)[];
}

/** Whether an invalidation must drop an entry. Written apart from the TLB's own search, which it is held against. */
function covers(scope: Scope, entry: CachedTranslation): boolean {
  const { address } = scope;
  if ((scope.kinds & entry.kind) === 0) return false;
  if (scope.vpid === ANY ? scope.exceptVpid0 && entry.vpid === 0 : scope.vpid !== entry.vpid) return false;
  if (scope.root !== ANY && scope.root !== entry.root) return false;
  const shift = scope.piece ? entry.shift : entry.span;
  if (address !== undefined && pageNumber(address, shift) !== pageNumber(entry.linear, shift)) return false;
  if (entry.global && scope.globals === "kept") return false;
  if (entry.global && scope.globals === "any PCID") return true;
  return scope.pcid === ANY || scope.pcid === entry.pcid;
}

function pageNumber(address: number, shift: number): number {
  return Math.floor(address / 2 ** shift);
}

/** Whether software means an entry by a range. */
function inRange(range: TranslationRange, entry: CachedTranslation): boolean {
  const { vpid, pcid, root } = range;
  const own = entry.kind === GUEST_PHYSICAL ? "guest-physical" : "linear";
  const first = range.space === own ? entry.linear : own === "linear" ? entry.host?.guest : undefined;
  if (
    first === undefined || first >= range.address + range.bytes || first + 2 ** entry.shift <= range.address
  ) {
    return false;
  }
  if (root !== undefined && root !== entry.root) return false;
  if (own === "guest-physical" && entry.root >= 0) return true; // VPID and PCID are none of its tags.
  if (vpid !== undefined && vpid !== entry.vpid) return false;
  return own === "guest-physical" || pcid === undefined || entry.global || pcid === entry.pcid;
}

const GAINED = "the tables allow more";

type Rights = NonNullable<ReturnType<WalkNow>>;

/** How an entry differs from the tables at one address; undefined where it does not. */
function compare(entry: CachedTranslation, now: Rights | undefined, address: number): string | undefined {
  if (now === undefined) return "the tables map it no more";
  const cached = physicalAt(entry, address);
  const real = physicalAt(now, address);
  if (cached !== real) return `the tables map it to 0x${real.toString(16)}, not to 0x${cached.toString(16)}`;
  const had = rights(entry);
  const has = rights(now);
  const lost = Object.keys(had).filter((name) => had[name] && !has[name]);
  if (lost.length > 0) return `the tables do not allow ${lost.join(", ")}`;
  if (entry.memoryType !== undefined && now.memoryType !== undefined && entry.memoryType !== now.memoryType) {
    return `the tables give it memory type ${now.memoryType}, not ${entry.memoryType}`;
  }
  return Object.keys(had).some((name) => !had[name] && has[name]) ? GAINED : undefined;
}

function physicalAt({ physical, shift }: Pick<Rights, "physical" | "shift">, address: number): number {
  return physical + address - pageNumber(address, shift) * 2 ** shift;
}

function rights({ writable, user, executable, host }: Rights): Record<string, boolean> {
  return {
    writes: writable,
    "user mode": user,
    fetches: executable,
    "reads by the host's tables": host?.readable ?? true,
    "writes by the host's tables": host?.writable ?? true,
    "fetches by the host's tables": host?.executable ?? true,
  };
}
