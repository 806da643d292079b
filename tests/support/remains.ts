/**
 * Everything that a delivery may leave behind in a virtual machine that stands still: two ways to do the same are
 * compared by it.
 *
 * @module
 */

import { assert } from "@std/assert";
import { GuestError, type Vm } from "../../host/mod.ts";

/** What is left behind: vCPUs and their APICs, processors, what their vendor's hardware holds, CPUs, events. */
export function remains(vm: Vm, hardware: (index: number) => unknown): unknown {
  return {
    vcpus: vm.vcpus.map((
      { time, requests, mode, woken, asleep, blocked, lapic, processor, queued },
      index,
    ) => ({
      ...{ time, requests, mode, woken, asleep, blocked, queued },
      page: [...lapic.page],
      hints: [lapic.irrRegisters, lapic.irrPending, lapic.isrCount],
      exit: [processor.guestMode, processor.exitReason, processor.exitInfo1, processor.exitInfo2],
      instruction: [processor.context.pending, processor.context.last, processor.instructions],
      due: [processor.asyncAt, processor.eventAt],
      hardware: hardware(index),
    })),
    pcpus: vm.scheduler.pcpus.map(({ interruptAt, notifiedAt }) => ({ interruptAt, notifiedAt })),
    wakeups: vm.engine.threads.filter(({ queued }) => queued).map(({ name, clock }) => [name, clock]),
    counters: vm.counters(),
    events: [...vm.tracer.records()].map(({ event, vcpu, time, args }) => [event, vcpu, time, ...args]),
  };
}

/**
 * Delivers through the IDT, of which a virtual machine that stands still has none: what the virtual APIC does comes before
 * that. Whether anything was delivered.
 */
export function handled(deliver: () => boolean): boolean {
  try {
    return deliver();
  } catch (error) {
    assert(error instanceof GuestError);
    return true;
  }
}
