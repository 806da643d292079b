/**
 * What KVM asks of its vendor module: kvm_x86_ops, for one vCPU.
 *
 * @module
 */

import type { Steps } from "../core/mod.ts";
import type { Virtualization } from "../cpu/mod.ts";
import type { Straight } from "./modes.ts";
import type { Lapic } from "../lapic/mod.ts";
import type { Pcpu } from "../sched/mod.ts";

/** What a fast path made of an exit. */
export enum FastPath {
  /** Nothing: the slow path handles it. */
  None,
  /** Everything; the guest can be entered again at once. */
  Reenter,
  /** Everything; the run loop goes round. */
  Handled,
}

/** The exits that every interrupt costs, by their numbers. */
export interface CommonExits {
  /** A physical interrupt. */
  readonly interrupt: number;
  /** WRMSR. */
  readonly wrmsr: number;
  /** What that tells first. */
  readonly wrmsrInfo: number;
}

/** A vendor module's part of a vCPU. */
export interface Backend {
  /** Which vendor. */
  readonly name: "vmx" | "svm";
  /** The hardware under it. */
  readonly hardware: Virtualization;
  /** Whether a timer can count down in guest mode and exit. */
  readonly hasPreemptionTimer: boolean;
  /** Whether the x2APIC ICR's halves stand at 0x300 and 0x310. */
  readonly x2apicIcrIsSplit: boolean;
  /** Whether a notification of a posted interrupt is an interrupt to the host as well; a doorbell is nothing to it. */
  readonly notifiedByInterrupt: boolean;
  /** The exits that every interrupt costs. */
  readonly commonExits: CommonExits;
  /** One past the highest place of an exit: see {@linkcode exitPlace}. */
  readonly exitPlaces: number;

  /** Bits 63:32 of what the present exit tells first: a number may not hold all 64. */
  readonly exitInfo1High: number;

  /** The name that kvm_exit prints for an exit number. */
  exitName(reason: number): string;
  /** RESET, or INIT. */
  reset(init: boolean): void;
  /** The local APIC is about to be reset: what was posted and not seen yet is gone (apicv_pre_state_restore). */
  discardPosted(): void;
  /** The local APIC was enabled, disabled, or switched between xAPIC and x2APIC mode. */
  apicModeChanged(): void;

  // Interrupts that hardware delivers. What others touch at the same time comes as steps; undefined is nothing to do.

  /** APICv is to be used from the next entry on, or not any more (refresh_apicv_exec_ctrl). */
  refreshApicv(): void;
  /** The highest vector in service has changed while hardware keeps track of it; -1 for none (hwapic_isr_update). */
  serviceChanged(highestIsr: number): void;
  /** The vectors whose EOI the I/O APIC must see have changed (load_eoi_exitmap). */
  loadEoiExitmap(): void;
  /** Hands an interrupt to the hardware of the target, or, where that is not used, to its run loop (deliver_interrupt). */
  deliver(target: Lapic, deliveryMode: number, vector: number, levelTriggered: boolean): void;
  /** Moves what was posted to the IRR (sync_pir_to_irr); comes to the highest request, -1 for none. */
  syncPirToIrr(): Steps<number> | undefined;
  /** The thread is on a CPU again (vcpu_load). */
  load(): Steps | undefined;
  /** The thread is about to leave its CPU: to sleep, or preempted (vcpu_put). */
  put(): Steps | undefined;
  /** The vCPU is about to look for events before it sleeps (vcpu_blocking). */
  blocking(): Steps | undefined;
  /** It goes on (vcpu_unblocking). */
  unblocking(): Steps | undefined;

  // Translations.

  /** The thread was put on a CPU, which may be another one: what that remembers may be old. */
  loadedOn(pcpu: Pcpu): void;
  /** Uses a root of the second dimension's tables from the next entry on (load_mmu_pgd). */
  loadMmuPgd(root: number): void;
  /** Before the next entry: takes an ASID of the CPU's present generation. */
  renewAsid(): void;
  /** The vCPU's ASID, and the CPU whose it is; undefined where it has none, or none that a CPU knows any more. */
  asidTag(): { readonly cpu: number; readonly vpid: number } | undefined;
  /** Flushes what this CPU remembers of any root or guest (flush_tlb_all). */
  flushTlbAll(): void;
  /** Flushes what it remembers of the root that is loaded (flush_tlb_current). */
  flushTlbCurrent(): void;
  /** Flushes what it remembers of the guest's own translations (flush_tlb_guest). */
  flushTlbGuest(): void;
  /** Flushes what it remembers of one linear address (flush_tlb_gva). */
  flushTlbGva(address: number): void;

  /** The next entry is to exit as soon as it has delivered its event. */
  requestImmediateExit(): void;
  /** What stands between the run loop's last check and the hardware entry. */
  prepareEntry(): void;
  /** What follows a hardware exit at once: which event was delivered, what the hardware kept for the APIC. */
  completeExit(): void;
  /** Serves an exit before the slow path, where it can. */
  fastPath(): FastPath;
  /** Serves an exit. */
  handleExit(): void;
  /** The straight ways that are open behind the entry that comes: it delivers an event at most, and its exit completes that. */
  straightWays(): Straight;

  /** Moves RIP behind the instruction that exited. */
  skipInstruction(): void;
  /** Whether an interrupt could be delivered now: RFLAGS.IF, and no shadow. */
  interruptAllowed(): boolean;
  /** Whether an NMI could be delivered now. */
  nmiAllowed(): boolean;
  /** Whether NMIs are blocked. */
  nmiMasked(): boolean;
  /** Writes an interrupt for injection. */
  injectInterrupt(vector: number, reinjected: boolean): void;
  /** Writes an NMI for injection. */
  injectNmi(): void;
  /** Writes an exception for injection; `errorCode` is -1 where there is none. */
  injectException(vector: number, errorCode: number): void;
  /** Takes back what was written for injection: the entry is cancelled. */
  cancelInjection(): void;
  /** Asks for an exit as soon as an interrupt could be delivered. */
  enableInterruptWindow(): void;
  /** Asks for an exit as soon as an NMI could be delivered. */
  enableNmiWindow(): void;
  /** Asks for an exit when the task priority falls below the class of a requested vector (-1 for none). */
  updateCr8Intercept(taskPriorityClass: number, requestedClass: number): void;
}
