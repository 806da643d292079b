/**
 * What user space and the host do with a running guest's memory: take pages away, log what is written, remove a slot. Each
 * ends when no vCPU can use what was before. Call them in a {@linkcode HostTask}; while no vCPU is in guest mode, all at
 * once will do. Hardware keeps no log of its own: page-modification logging is left out.
 *
 * @module
 */

import { lowestBit, PAGE_SHIFT_2M, PHYSICAL_ADDRESS_LIMIT } from "../../abi/mod.ts";
import type { Steps } from "../core/mod.ts";
import { type DirtyLogOptions, type LoggedPages, PAGE_SIZE, type Slot } from "../memory/mod.ts";
import * as requests from "./requests.ts";
import { locked, spinWhile } from "./tdp/locks.ts";
import { flushRemoteTlbs, requestAllAndWait } from "./tdp/requests.ts";
import type { Invalidating } from "./tdp/vm_mmu.ts";
import type { Vm } from "./vm.ts";

const { REQ_MMU_FREE_OBSOLETE_ROOTS } = requests;
const HUGE = 2 ** PAGE_SHIFT_2M;

/**
 * The host takes the pages of a range out of its memory, where it can. How many those are. Between the two ends of the
 * invalidation (kvm_mmu_notifier_invalidate_range_start, _end) no fault maps them again. Throws `TypeError` where the
 * virtual machine has no disk for them to go to.
 */
export function* evictPages(vm: Vm, address: number, bytes: number): Steps<number> {
  const { engine, mmu, residency } = vm;
  if (residency === undefined) {
    throw new TypeError("Cannot evict pages: the virtual machine was made without the option disk");
  }
  const most = PHYSICAL_ADDRESS_LIMIT - address;
  if (!Number.isInteger(address) || !Number.isInteger(bytes) || address < 0 || bytes <= 0 || bytes > most) {
    throw new RangeError(
      `Cannot evict ${bytes} bytes at ${address}: allowed are whole numbers within the physical addresses`,
    );
  }
  // Behind the last slot no page is anybody's: the first of them says so.
  const end = vm.memory.slots.at(-1)?.end ?? 0;
  bytes = Math.min(bytes, Math.max(PAGE_SIZE, end + PAGE_SIZE - address));
  // Where the host has huge pages it splits them first, and what goes is all of them.
  const unit = mmu.hostHugePages ? HUGE : PAGE_SIZE;
  const range = { start: Math.floor(address / unit) * unit, end: Math.ceil((address + bytes) / unit) * unit };
  yield* locked(vm, mmu.lock, invalidateBegin(vm, range));
  if (engine.explores) yield;
  for (let at = range.start; at < range.end; at += unit) mmu.hostSplits(at);
  try {
    return residency.evictRange(address, bytes);
  } finally {
    mmu.invalidateSeq++;
    mmu.invalidating.delete(range);
  }
}

function* invalidateBegin(vm: Vm, range: Invalidating): Steps {
  vm.mmu.invalidating.add(range);
  yield* unmap(vm, range.start, range.end);
}

/** kvm_unmap_gfn_range, with the flush that it asks for. */
function* unmap(vm: Vm, start: number, end: number): Steps {
  const { mmu } = vm;
  const { tables } = mmu;
  if (tables === undefined || !tables.zap(start, end)) return;
  mmu.changed(start, end, tables);
  yield* flushRemoteTlbs(vm);
  mmu.gone(start, end, { tables, reason: "page taken away" });
}

/** KVM_SET_USER_MEMORY_REGION sets or clears KVM_MEM_LOG_DIRTY_PAGES (kvm_mmu_slot_apply_flags). */
export function logDirtyPages(vm: Vm, slot: Slot, on: boolean): Steps {
  return locked(vm, vm.mmu.slotsLock, applyFlags(vm, slot, on));
}

function* applyFlags(vm: Vm, slot: Slot, on: boolean): Steps {
  const { dirtyLog, memory } = vm;
  if (dirtyLog.logs(slot) === on) return;
  if (on) {
    const steps = dirtyLog.startInSteps(slot);
    steps.next(); // Up to the flush, with the slots locked.
    memory.generation++;
    yield;
    yield* steps;
  } else {
    dirtyLog.stop(slot);
    memory.generation++;
    if (!slot.readonly) yield* recoverHugePages(vm, slot);
  }
}

/** How the dirty log gets at the page tables: W goes, of single pages, and then every vCPU's translations. */
export function loggedBy(vm: Vm): Pick<DirtyLogOptions, "flush" | "protect"> {
  return {
    *flush(slot) {
      const { tables } = vm.mmu;
      yield* flushRemoteTlbs(vm);
      if (tables !== undefined) vm.mmu.gone(slot.base, slot.end, { tables, reason: "write access removed" });
    },
    protect(slot, pages) {
      const { tables } = vm.mmu;
      if (tables === undefined) return;
      for (const [start, end] of runs(slot, pages)) {
        tables.split(start, end);
        tables.writeProtect(start, end);
        vm.mmu.changed(start, end, tables);
      }
    },
  };
}

/** The addresses of pages of a slot. */
function* runs(slot: Slot, { first, mask }: LoggedPages): Generator<[start: number, end: number]> {
  if (mask === undefined) return yield [slot.base, slot.end];
  for (let rest = mask; rest !== 0; rest &= rest - 1) {
    const page = slot.base + (first + lowestBit(rest)) * PAGE_SIZE;
    yield [page, page + PAGE_SIZE];
  }
}

/** kvm_mmu_recover_huge_pages: one huge page takes the place of a table whose pages it can map. */
function* recoverHugePages(vm: Vm, slot: Slot): Steps {
  const { mmu } = vm;
  const { tables } = mmu;
  if (tables === undefined || !mmu.hostHugePages) return;
  const gone = tables.collapse(slot.base, slot.end, (gpa) => mmu.mappingLevel(slot, gpa));
  if (gone.length === 0) return;
  yield* flushRemoteTlbs(vm);
  for (const entry of gone) tables.unlink(entry);
}

/**
 * KVM_SET_USER_MEMORY_REGION removes a slot (kvm_invalidate_memslot): first nothing is mapped any more and no fault maps it
 * again, then the slot goes. With KVM_X86_QUIRK_SLOT_ZAP_ALL every vCPU gets a new, empty root.
 */
export function removeMemoryRegion(vm: Vm, slot: Slot): Steps {
  return locked(vm, vm.mmu.slotsLock, invalidateMemslot(vm, slot));
}

function* invalidateMemslot(vm: Vm, slot: Slot): Steps {
  const { engine, memory, mmu } = vm;
  if (!memory.slots.includes(slot)) {
    throw new RangeError(`Cannot remove memory slot ${slot}: it is not in use`);
  }
  mmu.removing.add(slot);
  if (engine.explores) yield;
  const zapAll = vm.kvmQuirk("SLOT_ZAP_ALL");
  yield* locked(vm, mmu.lock, zapAll ? zapAllFast(vm) : unmap(vm, slot.base, slot.end));
  // kvm_swap_active_memslots: whoever takes pages away has looked the slots up.
  yield* spinWhile(vm, () => mmu.invalidating.size > 0, "an invalidation to end");
  vm.dirtyLog.stop(slot);
  memory.removeSlot(slot);
  mmu.removing.delete(slot);
}

/** kvm_mmu_zap_all_fast. It flushes nothing: whoever loads a root flushes what its CPU remembers of that address. */
function* zapAllFast(vm: Vm): Steps {
  const tables = vm.mmu.invalidateRoot();
  if (tables === undefined) return;
  yield* requestAllAndWait(vm, REQ_MMU_FREE_OBSOLETE_ROOTS);
  vm.mmu.changed(0, PHYSICAL_ADDRESS_LIMIT, tables);
  tables.zapAll();
  vm.mmu.gone(0, PHYSICAL_ADDRESS_LIMIT, { tables, reason: "root invalidated" });
  tables.put();
}
