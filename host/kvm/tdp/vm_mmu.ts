/**
 * What KVM keeps for the memory of one virtual machine: the valid root of its page tables, which invalidations go on,
 * and how the host backs its pages (struct kvm: mmu_invalidate_seq and its like; struct kvm_arch). All of it is v6.19's,
 * whatever the host's year.
 *
 * @module
 */

import { LEVEL_PD, LEVEL_PT, PAGE_SHIFT_2M } from "../../../abi/mod.ts";
import type { Slot } from "../../memory/mod.ts";
import type { TranslationRange } from "../../mmu/mod.ts";
import type { Vm } from "../vm.ts";
import { hostPhysical } from "./host_physical.ts";
import type { HostLock } from "./locks.ts";
import { EPT_SPTE, ORDINARY_SPTE } from "./spte.ts";
import { TdpTables } from "./tables.ts";

const HUGE = 2 ** PAGE_SHIFT_2M;

/** What is being invalidated, from an mmu_notifier's invalidate_range_start to its end. */
export interface Invalidating {
  /** First address. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
}

/** How the host backs memory. */
export interface VmMmuOptions {
  /** The host backs memory with pages of 2 MiB where it can. */
  readonly hostHugePages?: boolean;
}

/** The memory management of one virtual machine. */
export class VmMmu {
  /** Counts invalidations that are over: a fault that began before one maps nothing (mmu_invalidate_seq). */
  invalidateSeq = 0;
  /** Those that go on (mmu_invalidate_in_progress, with their ranges). */
  readonly invalidating: Set<Invalidating> = new Set();
  /** Held for writing to the tables (mmu_lock). Faults, which read-lock it, find out otherwise that they must try again. */
  readonly lock: HostLock = { held: false };
  /** Held by whoever changes the slots, or asks for their dirty logs (slots_lock). */
  readonly slotsLock: HostLock = { held: false };
  /** Slots that are being removed: no fault maps their pages (KVM_MEMSLOT_INVALID). */
  readonly removing: Set<Slot> = new Set();
  /** Flushes of all vCPUs' translations that were asked for (remote_tlb_flush_requests). */
  remoteTlbFlushRequests = 0;
  /** Those that somebody had to be told of (remote_tlb_flush). */
  remoteTlbFlush = 0;
  /** The host backs memory with pages of 2 MiB where it can. */
  readonly hostHugePages: boolean;
  readonly #vm: Vm;
  #tables: TdpTables | undefined = undefined;
  /** Huge pages of the host that it has split, by number: what was evicted comes back in small ones. */
  readonly #splitByHost = new Set<number>();

  /** Nothing is mapped, and there is no root. */
  constructor(vm: Vm, { hostHugePages = false }: VmMmuOptions = {}) {
    this.#vm = vm;
    this.hostHugePages = hostHugePages;
  }

  /** The valid root; undefined until a vCPU needs one. */
  get tables(): TdpTables | undefined {
    return this.#tables;
  }

  /** The valid root, made where there is none (kvm_tdp_mmu_alloc_root). */
  allocateRoot(): TdpTables {
    const { backend, machine } = this.#vm;
    return this.#tables ??= new TdpTables(machine.hostMemory, backend === "vmx" ? EPT_SPTE : ORDINARY_SPTE);
  }

  /** The root is valid no more: the next that loads one gets a new one (kvm_tdp_mmu_invalidate_roots). */
  invalidateRoot(): TdpTables | undefined {
    const tables = this.#tables;
    this.#tables = undefined;
    if (tables !== undefined) tables.invalid = true;
    return tables;
  }

  /** Tells the oracle of stale translations that entries were taken away, or rights. */
  changed(start: number, end: number, tables: TdpTables): void {
    for (const range of this.#ranges(start, end, tables)) this.#vm.machine.staleness?.changed(range);
  }

  /** And that no vCPU can use what was there before. */
  gone(start: number, end: number, { tables, reason }: { tables: TdpTables; reason: string }): void {
    for (const range of this.#ranges(start, end, tables)) {
      this.#vm.machine.staleness?.gone({ ...range, reason });
    }
  }

  /** What translations of this virtual machine's are tagged with: on VMX the root, on SVM each vCPU's ASID. */
  #ranges(start: number, end: number, tables: TdpTables): TranslationRange[] {
    const { backend, vcpus } = this.#vm;
    const range = { space: "guest-physical", address: start, bytes: end - start } as const;
    if (backend === "vmx") return [{ ...range, root: tables.root.address }];
    const tags = vcpus.map((vcpu) => vcpu.backend.asidTag()).filter((tag) => tag !== undefined);
    return tags.map((tag) => ({ ...range, ...tag }));
  }

  /** mmu_invalidate_retry_gfn: whether a fault that began at `seq` must begin anew. */
  retries(gpa: number, seq: number): boolean {
    for (const { start, end } of this.invalidating) if (gpa >= start && gpa < end) return true;
    return seq !== this.invalidateSeq;
  }

  /** The host has had to split the huge page around an address. */
  hostSplits(gpa: number): void {
    if (this.hostHugePages) this.#splitByHost.add(Math.floor(gpa / HUGE));
  }

  /**
   * The level at which an address of a slot is mapped (kvm_mmu_hugepage_adjust): large only where the host's page is, the
   * slot has all of it at the same offset, and the dirty log does not want to see single pages.
   */
  mappingLevel(slot: Slot, gpa: number): number {
    if (!this.hostHugePages || this.#vm.dirtyLog.logs(slot)) return LEVEL_PT;
    const start = Math.floor(gpa / HUGE) * HUGE;
    const whole = start >= slot.base && start + HUGE <= slot.end;
    const aligned = (hostPhysical(slot, slot.base) - slot.base) % HUGE === 0;
    return whole && aligned && !this.#splitByHost.has(start / HUGE) ? LEVEL_PD : LEVEL_PT;
  }
}
