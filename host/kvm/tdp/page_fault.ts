/**
 * Faults of the second dimension (arch/x86/kvm/mmu/mmu.c, kvm_mmu_page_fault and kvm_tdp_mmu_page_fault):
 *
 *     no slot backs the page, or writes to it are MMIO   emulate the instruction
 *     W is missing, and only the dirty log took it       set it again, log the page     (fast_page_fault)
 *     the entry allows the access by now                 nothing: the fault was spurious
 *     the page is there                                  map it
 *     it was taken away meanwhile                        nothing: the access faults again (mmu_invalidate_seq)
 *
 * Then the guest goes on where it was: it repeats the access.
 *
 * Left out: what a fault finds that shadow paging write-protects; MMIO entries, whose pages mmio_marks.ts has; and the
 * APIC's page, which access_page.ts has: neither is in the tables.
 *
 * @module
 */

import {
  EPT_RWX,
  EPT_VIOLATION_FETCH,
  EPT_VIOLATION_LINEAR,
  EPT_VIOLATION_READ,
  EPT_VIOLATION_RIGHTS_SHIFT,
  EPT_VIOLATION_TRANSLATED,
  EPT_VIOLATION_WRITE,
  HIGH,
  LEVEL_PT,
  PFERR_FETCH,
  PFERR_GUEST_FINAL,
  PFERR_GUEST_PAGE,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
} from "../../../abi/mod.ts";
import { type Steps, straight } from "../../core/mod.ts";
import type { Slot } from "../../memory/mod.ts";
import { runFailed } from "../userspace.ts";
import type { Vcpu } from "../vcpu.ts";
import { faultInPage, isAway } from "./fault_in.ts";
import { hostPhysical } from "./host_physical.ts";
import { allows, isLeaf, isMmuWritable, isPresent, makeSpte, SPTE_WRITABLE, spteAddress } from "./spte.ts";
import type { TdpTables } from "./tables.ts";

/** What became of a fault: RET_PF_*, and what user space is told of (-EFAULT). */
type FaultOutcome = "fixed" | "spurious" | "retry" | "efault";

/** A fault (struct kvm_page_fault). */
export interface TdpFault {
  /** The guest-physical address. */
  readonly address: number;
  /** The slot that has it. */
  readonly slot: Slot;
  /** The access was a write. */
  readonly write: boolean;
  /** It was a fetch. */
  readonly exec: boolean;
  /** An entry was there, and allowed less. */
  readonly present: boolean;
}

/** The error code of an EPT violation's qualification (__vmx_handle_ept_violation). */
export function violationErrorCode(qualification: number): number {
  const has = (mask: number): boolean => (qualification & mask) !== 0;
  const code = (has(EPT_VIOLATION_READ) ? PFERR_USER : 0) | (has(EPT_VIOLATION_WRITE) ? PFERR_WRITE : 0) |
    (has(EPT_VIOLATION_FETCH) ? PFERR_FETCH : 0) |
    (has(EPT_RWX << EPT_VIOLATION_RIGHTS_SHIFT) ? PFERR_PRESENT : 0);
  if (!has(EPT_VIOLATION_LINEAR)) return code;
  return code + (has(EPT_VIOLATION_TRANSLATED) ? PFERR_GUEST_FINAL : PFERR_GUEST_PAGE);
}

/**
 * The slot that a fault is about; undefined where KVM emulates the instruction: no slot backs the page, or a write is to
 * one that is KVM_MEM_READONLY (kvm_handle_noslot_fault; KVM_PFN_ERR_RO_FAULT).
 */
export function faultedSlot(vcpu: Vcpu, address: number, errorCode: number): Slot | undefined {
  const slot = vcpu.vm.memory.find(address, 1);
  const code = errorCode % HIGH;
  if (slot !== undefined && !(slot.readonly && (code & PFERR_WRITE) !== 0)) return slot;
  if ((code & PFERR_RSVD) !== 0) return undefined; // Marked as MMIO: KVM counts no fault (handle_mmio_page_fault).
  vcpu.stats.pf_taken++;
  vcpu.stats.pf_emulate++;
  return undefined;
}

/**
 * Serves a fault that a slot backs, and that KVM need not emulate: the vendor module has found that out and traced it. In
 * timed runs that takes no steps of its own, unless the host has to wait for something.
 */
export function handlePageFault(vcpu: Vcpu, slot: Slot, address: number, errorCode: number): void {
  const code = errorCode % HIGH;
  const fault: TdpFault = {
    address,
    slot,
    write: (code & PFERR_WRITE) !== 0,
    exec: (code & PFERR_FETCH) !== 0,
    present: (code & PFERR_PRESENT) !== 0,
  };
  vcpu.stats.pf_taken++;
  vcpu.charge(vcpu.cost.tdpFault);
  const steps = served(vcpu, fault);
  if (vcpu.engine.explores || isAway(vcpu.vm, address)) vcpu.defer(steps);
  else straight(steps);
}

function* served(vcpu: Vcpu, fault: TdpFault): Steps {
  const { stats } = vcpu;
  switch (yield* tdpPageFault(vcpu, fault)) {
    case "fixed":
      stats.pf_fixed++;
      return;
    case "spurious":
      stats.pf_spurious++;
      return;
    case "efault":
      runFailed(vcpu, "EFAULT", fault.address);
  }
}

/** kvm_tdp_mmu_page_fault. Explored runs let others come in wherever it holds no lock. */
function* tdpPageFault(vcpu: Vcpu, fault: TdpFault): Steps<FaultOutcome> {
  const { engine, vm } = vcpu;
  const tables = vcpu.root;
  if (tables === undefined) return "retry";
  const fast = fastPageFault(vcpu, tables, fault);
  if (fast !== undefined) return fast;
  const seq = vm.mmu.invalidateSeq;
  if (engine.explores) yield;
  if (vm.mmu.removing.has(fault.slot)) return "retry";
  // kvm_mmu_faultin_pfn looks twice, so that nobody waits for a lock, or for I/O, in vain.
  if (vm.mmu.retries(fault.address, seq)) return "retry";
  if (!(yield* faultInPage(vcpu, fault))) return "efault";
  if (engine.explores) yield;
  // is_page_fault_stale, with mmu_lock held: until the entry is written nobody comes between.
  if (tables.invalid && !vm.quirk("page-fault-maps-invalid-root")) return "retry";
  if (vm.mmu.retries(fault.address, seq)) return "retry";
  return map(vcpu, tables, fault);
}

/** fast_page_fault: what needs no lock, an entry that is there and lacks W alone. undefined: take the slow way. */
function fastPageFault(vcpu: Vcpu, tables: TdpTables, fault: TdpFault): "fixed" | "spurious" | undefined {
  if (!fault.present || !fault.write) return undefined;
  const entry = tables.find(fault.address);
  const { format } = tables;
  if (!isPresent(entry) || !isLeaf(entry, entry.level)) return undefined;
  if (allows(format, entry, fault)) {
    vcpu.stats.pf_fast++;
    return "spurious";
  }
  const logged = vcpu.vm.dirtyLog.logs(fault.slot);
  if (!isMmuWritable(format, entry) || (entry.level > LEVEL_PT && logged)) return undefined;
  tables.set(entry, { low: (entry.low | SPTE_WRITABLE) >>> 0, high: entry.high });
  if (logged) vcpu.vm.dirtyLog.fault(fault.address);
  vcpu.stats.pf_fast++;
  return "fixed";
}

/**
 * kvm_tdp_mmu_map: makes the tables that are missing, splits a huge page that is too large, and writes the entry. Where
 * there is a table that a huge page could take the place of, small pages go on to be mapped: KVM flushes and frees it here.
 */
function map(vcpu: Vcpu, tables: TdpTables, { address, slot, ...access }: TdpFault): "fixed" | "spurious" {
  const { dirtyLog, mmu } = vcpu.vm;
  let level = mmu.mappingLevel(slot, address);
  let entry = tables.find(address, level);
  if (entry.level === level && isPresent(entry) && !isLeaf(entry, level)) {
    level = LEVEL_PT;
    entry = tables.find(address);
  }
  while (entry.level > level) {
    vcpu.charge(vcpu.cost.tdpTable);
    tables.link(entry);
    entry = tables.find(address, level);
  }
  if (isPresent(entry) && allows(tables.format, entry, access)) return "spurious";
  const physical = hostPhysical(slot, entry.gpa);
  const hostWritable = !slot.readonly;
  const spte = makeSpte(tables.format, { physical, level, hostWritable });
  if (spte.low === entry.low && spte.high === entry.high) return "spurious";
  if (hostWritable && dirtyLog.logs(slot)) dirtyLog.fault(address);
  tables.set(entry, spte);
  return "fixed";
}

/** Where an address's page is mapped, for people and tests: undefined where it is not. */
export function mappingOf(
  tables: TdpTables | undefined,
  address: number,
): { physical: number; level: number; writable: boolean } | undefined {
  const entry = tables?.find(address);
  if (entry === undefined || !isPresent(entry)) return undefined;
  const physical = spteAddress(entry, entry.level) + address - entry.gpa;
  return { physical, level: entry.level, writable: (entry.low & SPTE_WRITABLE) !== 0 };
}
