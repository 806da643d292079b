/**
 * What a vCPU is asked to do before it enters guest mode again: KVM_REQ_*, as bits. And what its run loop has to look at
 * besides, and which events are on their way into the guest: mostly none, and then one word says so.
 *
 * @module
 */

/** Look at pending events. */
export const REQ_EVENT = 1 << 0;
/** Count NMIs that were queued. */
export const REQ_NMI = 1 << 1;
/** Recompute which vectors the I/O APIC handles. */
export const REQ_SCAN_IOAPIC = 1 << 2;
/** Load the EOI-exit bitmap. */
export const REQ_LOAD_EOI_EXITMAP = 1 << 3;
/** A triple fault: shut down. */
export const REQ_TRIPLE_FAULT = 1 << 4;
/** Leave the blocked state and look. */
export const REQ_UNBLOCK = 1 << 5;
/** The virtual machine is dead. */
export const REQ_VM_DEAD = 1 << 6;
/** An in-kernel state change wants the vCPU out of guest mode, nothing more. */
export const REQ_OUTSIDE_GUEST_MODE = 1 << 7;

/** APICv is, or is no longer, to be used. */
export const REQ_APICV_UPDATE = 1 << 8;

/** Flush every translation that this vCPU's CPU remembers of the second dimension. */
export const REQ_TLB_FLUSH = 1 << 9;
/** Flush those of the root that is loaded. */
export const REQ_TLB_FLUSH_CURRENT = 1 << 10;
/** Flush those of the guest: what it would have flushed itself. */
export const REQ_TLB_FLUSH_GUEST = 1 << 11;
/** A root of the second dimension was invalidated: let go of it. */
export const REQ_MMU_FREE_OBSOLETE_ROOTS = 1 << 12;
/** No root is loaded (KVM looks whether root.hpa is valid; kvm_mmu_reload). */
export const REQ_MMU_RELOAD = 1 << 13;
/** SVM: the ASID is not one of the CPU's present generation (KVM compares at each entry; pre_svm_run). */
export const REQ_NEW_ASID = 1 << 14;

/** Those of translations that are served between KVM_REQ_VM_DEAD and KVM_REQ_TRIPLE_FAULT. */
export const REQ_MMU: number = REQ_TLB_FLUSH | REQ_TLB_FLUSH_CURRENT | REQ_TLB_FLUSH_GUEST |
  REQ_MMU_FREE_OBSOLETE_ROOTS;
/** Those that are served last: behind the event block, which may reset the vCPU. */
export const REQ_BEFORE_RUN: number = REQ_MMU_RELOAD | REQ_NEW_ASID;

/** The APIC timer has expired. */
export const ATTENTION_TIMER = 1 << 0;
/** The host's scheduler wants to run somebody else. */
export const ATTENTION_RESCHED = 1 << 1;
/** A PV EOI is armed (KVM_APIC_PV_EOI_PENDING in apic_attention). */
export const ATTENTION_PV_EOI = 1 << 2;
/** This vCPU has changed what the APIC map is made from. */
export const ATTENTION_APIC_MAP = 1 << 3;
/** Runs are explored: others may come between checks and entry. Never cleared. */
export const ATTENTION_INTERLEAVE = 1 << 4;

/** Accesses to shared state wait to be carried out, a step each; or a page fault has to wait. */
export const ATTENTION_STEPS = 1 << 5;

/** An exception is queued, and not written for injection yet. */
export const EVENT_EXCEPTION_PENDING = 1 << 0;
/** An exception is written for injection, and not known to be delivered; likewise those below. */
export const EVENT_EXCEPTION_INJECTED = 1 << 1;
/** An NMI is. */
export const EVENT_NMI_INJECTED = 1 << 2;
/** An interrupt is. */
export const EVENT_INTERRUPT_INJECTED = 1 << 3;
