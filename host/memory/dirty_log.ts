/**
 * The dirty log: which pages of a slot were written since user space last asked (KVM_MEM_LOG_DIRTY_PAGES; kernel
 * documentation: KVM API, 4.8 KVM_GET_DIRTY_LOG, 4.117 KVM_CLEAR_DIRTY_LOG, 7.18 KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
 *
 * A page of a slot that is logged has two bits:
 *
 *     dirty  protected
 *       0        1      nobody has written it; a guest's write will fault
 *       1        0      the guest has written it, or may have: its writes do not fault
 *       1        1      the host has written it; a guest's write will fault, and find it dirty already
 *       0        0      never, but between the two halves of a step of collecting: such a write would be lost
 *
 * Write protection finds the guest's writes, as on processors without page-modification logging. What the log protects,
 * a processor may still write through a translation that it remembers, until those are flushed: user space gets its
 * answer after that flush, and reads a page's contents after the answer. So it sees such a write, too.
 *
 * @module
 */

import type { Steps } from "../core/mod.ts";
import type { GuestMemory } from "./guest_memory.ts";
import { PageBitmap, pageIn, PAGES_PER_UNIT, pagesOf } from "./page_bitmap.ts";
import { PAGE_SIZE, type Slot } from "./slot.ts";

/** How a machine logs. */
export interface DirtyLogOptions {
  /** Flushes what processors remember of a slot's translations (kvm_arch_flush_remote_tlbs_memslot). */
  readonly flush?: (slot: Slot) => Steps | void;
  /** Takes the right to be written from the translations of pages (kvm_arch_mmu_enable_log_dirty_pt_masked). */
  readonly protect?: (slot: Slot, pages: LoggedPages) => void;
  /** KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: asking clears nothing, KVM_CLEAR_DIRTY_LOG does. */
  readonly manualProtect?: boolean;
  /** KVM_DIRTY_LOG_INITIALLY_SET: logging begins with every page dirty, and none protected. Needs `manualProtect`. */
  readonly initiallySet?: boolean;
}

/** Pages of a slot, counted from its first. */
export interface LoggedPages {
  /** The first. */
  readonly first: number;
  /** One bit a page from there on: up to 32, or all up to the slot's end where there is none. */
  readonly mask?: number;
}

/** What KVM_CLEAR_DIRTY_LOG takes. */
export interface ClearDirtyLog {
  /** The first page, counted from the slot's: a multiple of 64. */
  readonly firstPage: number;
  /** Pages: a multiple of 64, or all up to the slot's end. */
  readonly pages: number;
  /** The pages to clear: bit 0 is `firstPage`. */
  readonly bitmap: Readonly<Uint32Array>;
}

interface SlotLog {
  readonly dirty: PageBitmap;
  readonly guarded: PageBitmap;
}

/** The dirty logs of one virtual machine. */
export class DirtyLog {
  readonly #memory: GuestMemory;
  readonly #flush: (slot: Slot) => Steps | void;
  readonly #protect: (slot: Slot, pages: LoggedPages) => void;
  readonly #manualProtect: boolean;
  readonly #initiallySet: boolean;
  readonly #logs = new Map<Slot, SlotLog>();

  /** No slot of `memory` is logged. Throws `RangeError` for options that do not go together. */
  constructor(memory: GuestMemory, options: DirtyLogOptions = {}) {
    const { flush = () => {}, protect = () => {}, manualProtect = false, initiallySet = false } = options;
    if (initiallySet && !manualProtect) {
      throw new RangeError(
        "Cannot begin dirty logs with every page set: it is allowed with manualProtect only",
      );
    }
    this.#memory = memory;
    this.#flush = flush;
    this.#protect = protect;
    this.#manualProtect = manualProtect;
    this.#initiallySet = initiallySet;
  }

  /** Slots that are logged: while there are none, nobody needs to tell the log of a write. */
  get active(): number {
    return this.#logs.size;
  }

  /** Whether a slot is logged. */
  logs(slot: Slot): boolean {
    return this.#logs.has(slot);
  }

  /** Sets KVM_MEM_LOG_DIRTY_PAGES. A slot that is logged already keeps its log. */
  start(slot: Slot): void {
    finish(this.startInSteps(slot));
  }

  /**
   * {@linkcode start}, as others may come between: before the flush, and while it goes on. A slot that is KVM_MEM_READONLY
   * cannot be dirtied: nothing is protected, and nothing flushed (kvm_mmu_slot_apply_flags).
   */
  *startInSteps(slot: Slot): Steps {
    if (!this.#memory.slots.includes(slot)) throw notInUse("log", slot);
    if (this.#logs.has(slot)) return;
    const pages = pagesOf(slot);
    const set = this.#initiallySet;
    this.#logs.set(slot, { dirty: new PageBitmap(pages, set), guarded: new PageBitmap(pages, !set) });
    if (set || slot.readonly) return;
    this.#protect(slot, { first: 0 });
    yield;
    yield* this.#flush(slot) ?? [];
  }

  /** Clears KVM_MEM_LOG_DIRTY_PAGES, or the slot goes: what was logged is forgotten, and nothing is protected. */
  stop(slot: Slot): void {
    this.#logs.delete(slot);
  }

  /** Whether a guest's write to an address must fault first: no translation may let it through. */
  protects(address: number): boolean {
    const slot = this.#memory.find(address, 1);
    const log = slot && this.#logs.get(slot);
    return log !== undefined && log.guarded.has(pageIn(slot!, address));
  }

  /**
   * A guest's write has faulted: its page is dirty, and may be written from now on. Whether the log had protected it;
   * where it had not, the fault was somebody else's, or another vCPU was faster.
   */
  fault(address: number): boolean {
    const slot = this.#memory.find(address, 1);
    const log = slot && this.#logs.get(slot);
    if (log === undefined) return false;
    const page = pageIn(slot!, address);
    log.dirty.set(page);
    return log.guarded.clear(page);
  }

  /** The host has written (mark_page_dirty): the pages are dirty, and stay protected where they are. */
  mark(address: number, bytes: number): void {
    if (this.#logs.size === 0) return;
    const end = address + bytes;
    for (let at = address; at < end; at = Math.floor(at / PAGE_SIZE) * PAGE_SIZE + PAGE_SIZE) {
      const slot = this.#memory.find(at, 1);
      if (slot !== undefined) this.#logs.get(slot)?.dirty.set(pageIn(slot, at));
    }
  }

  /**
   * KVM_GET_DIRTY_LOG: the pages that are dirty. Clears and protects them again, unless `manualProtect` leaves that to
   * {@linkcode clear}. Throws where the slot is not logged (ENOENT).
   */
  get(slot: Slot): Uint32Array {
    return finish(this.getInSteps(slot));
  }

  /**
   * {@linkcode get}, as others may come between: behind taking 64 pages out of the log, before they are protected; and
   * before the flush.
   */
  *getInSteps(slot: Slot): Generator<void, Uint32Array, void> {
    const log = this.#must("get", slot);
    if (this.#manualProtect) return log.dirty.words.slice();
    const all = new Uint32Array(log.dirty.words.length).fill(0xffff_ffff);
    return yield* this.#collect({ slot, log, unit: 0 }, all);
  }

  /**
   * KVM_CLEAR_DIRTY_LOG: clears the pages that are dirty and set in the bitmap, and protects them again. Throws where
   * the slot is not logged (ENOENT), and `RangeError` for a range that is not allowed (EINVAL).
   */
  clear(slot: Slot, range: ClearDirtyLog): void {
    finish(this.clearInSteps(slot, range));
  }

  /** {@linkcode clear}, as others may come between. */
  *clearInSteps(slot: Slot, range: ClearDirtyLog): Generator<void, void, void> {
    const log = this.#must("clear", slot);
    const { firstPage, pages, bitmap } = range;
    const left = log.dirty.pages - firstPage;
    const whole = Number.isInteger(firstPage) && Number.isInteger(pages) && firstPage >= 0 && pages >= 0;
    const aligned = firstPage % PAGES_PER_UNIT === 0 && (pages % PAGES_PER_UNIT === 0 || pages === left);
    const units = Math.ceil(pages / PAGES_PER_UNIT);
    if (!whole || !aligned || pages > left || bitmap.length < 2 * units) {
      throw new RangeError(
        `Cannot clear ${pages} pages from page ${firstPage} in the dirty log of slot ${slot}: allowed are multiples ` +
          `of ${PAGES_PER_UNIT}, or all up to page ${log.dirty.pages}, and a bit for each`,
      );
    }
    yield* this.#collect({ slot, log, unit: firstPage / PAGES_PER_UNIT }, bitmap.subarray(0, 2 * units));
  }

  /** Takes the dirty pages of a mask out of the log, unit by unit, protects them, and flushes if there were any. */
  *#collect(from: { slot: Slot; log: SlotLog; unit: number }, mask: Uint32Array) {
    const dirty = from.log.dirty.words;
    const guarded = from.log.guarded.words;
    const taken = new Uint32Array(mask.length);
    let any = false;
    for (let i = 0; i < mask.length; i += 2) {
      const at = 2 * from.unit + i;
      for (let half = 0; half < 2; half++) {
        const bits = dirty[at + half] & mask[i + half];
        taken[i + half] = bits;
        dirty[at + half] &= ~bits;
      }
      if ((taken[i] | taken[i + 1]) === 0) continue;
      any = true;
      yield;
      for (let half = 0; half < 2; half++) {
        const mask = taken[i + half];
        guarded[at + half] |= mask;
        if (mask !== 0) this.#protect(from.slot, { first: 32 * (at + half), mask });
      }
    }
    if (any) {
      yield;
      yield* this.#flush(from.slot) ?? [];
    }
    return taken;
  }

  #must(verb: string, slot: Slot): SlotLog {
    if (!this.#memory.slots.includes(slot)) throw notInUse(verb, slot);
    const log = this.#logs.get(slot);
    if (log === undefined) {
      throw new Error(`Cannot ${verb} the dirty log of slot ${slot}: KVM_MEM_LOG_DIRTY_PAGES is not set`);
    }
    return log;
  }
}

function finish<T>(steps: Generator<void, T, void>): T {
  for (;;) {
    const { value, done } = steps.next();
    if (done) return value as T;
  }
}

function notInUse(verb: string, slot: Slot): Error {
  return new Error(`Cannot ${verb} the dirty pages of slot ${slot}: it is not in use`);
}
