/**
 * What KVM counts for each vCPU beside its tracepoints (arch/x86/kvm/x86.c, kvm_vcpu_stats_desc).
 *
 * @module
 */

/** Per-vCPU statistics, by the names of KVM's binary stats; those that a tracepoint counts as well are left to it. */
export class VcpuStats {
  // What every interrupt counts comes first: it shares cache lines.
  /** Exits for physical interrupts. */
  irq_exits = 0;
  /** Interrupts injected. */
  irq_injections = 0;
  /** Passes through the event block. */
  req_event = 0;
  /** HLT exits. */
  halt_exits = 0;
  /** Blocks that ended. */
  halt_wakeup = 0;
  /** Polls that saw their event. */
  halt_successful_poll = 0;
  /** Polls that were begun. */
  halt_attempted_poll = 0;
  /** NMIs injected. */
  nmi_injections = 0;
  /** Exits at an interrupt window. */
  irq_window_exits = 0;
  /** Exits at an NMI window. */
  nmi_window_exits = 0;
  /** Instructions emulated. */
  insn_emulation = 0;
  /** Port accesses. */
  io_exits = 0;
  /** MMIO accesses. */
  mmio_exits = 0;
  /** Faults of the second dimension. */
  pf_taken = 0;
  /** Those that mapped something. */
  pf_fixed = 0;
  /** Those that were over before they were looked at. */
  pf_spurious = 0;
  /** Those whose instruction was emulated. */
  pf_emulate = 0;
  /** Those that were served without a lock. */
  pf_fast = 0;
  /** Times that a fault had to wait for a page to be read. KVM has no such count. */
  pf_waits = 0;
  /** Flushes of translations that were asked for. */
  tlb_flush = 0;
  /** Directed yields asked for. */
  directed_yield_attempted = 0;
  /** Directed yields that ran somebody. */
  directed_yield_successful = 0;
}
