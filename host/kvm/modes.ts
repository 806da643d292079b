/**
 * The states of a vCPU: where it is, as others see it, and where in the run loop.
 *
 * @module
 */

/** Where a vCPU is, as others see it (vcpu->mode). */
export enum VcpuMode {
  /** In the host. */
  Outside,
  /** In guest mode, or about to be: a kick needs an IPI. */
  InGuest,
  /** In guest mode, and an IPI is on its way. */
  Exiting,
}

/** KVM_MP_STATE_*. */
export enum MpState {
  /** It runs, or could. */
  Runnable,
  /** It has never been started. */
  Uninitialized,
  /** It has had INIT and waits for a start-up IPI. */
  InitReceived,
  /** It executed HLT. */
  Halted,
}

/** Which exits may take the straight way to the next entry. */
export enum Straight {
  /** None. */
  None,
  /** Writes of the ICR. */
  Sends,
  /** And physical interrupts and writes of the EOI register. */
  All,
}

/** Where in the loop a vCPU is. */
export enum Phase {
  /** At the top: runnable or not, requests, events. */
  Top,
  /** Ready to enter, but for the last check. */
  Prepared,
  /** In explored runs: seen as in guest mode, and the posted interrupts are synchronized. */
  Synced,
  /** An exit has happened. */
  Exited,
  /** It has been served, but the guest has not been entered behind it. */
  Served,
  /** The exit, or the block, is over. */
  Done,
}

/** What a turn came to. */
export enum Turn {
  /** The vCPU is in guest mode. */
  Guest,
  /** It has nothing to run and must wait. */
  Block,
  /** The APIC map must be rebuilt. */
  ApicMap,
  /** It gave its CPU to somebody who waited. */
  Preempted,
  /** In explored runs: others may come between the checks and the entry. */
  Interleave,
  /** In explored runs: posted interrupts are synchronized, a step at a time. */
  Sync,
  /** In explored runs: accesses to shared state that the turn has begun. In all: a page fault that waits. */
  Steps,
  /** The virtual machine is dead. */
  Dead,
}
