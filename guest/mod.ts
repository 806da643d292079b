/**
 * The guest's side: a small kernel that boots, takes interrupts and sends them, and its paravirtual drivers. It knows
 * the host through the ABI alone.
 *
 * @module
 */

export * from "./apic/driver.ts";
export * from "./apic/x2apic.ts";
export * from "./apic/xapic.ts";
export * from "./drivers/driver.ts";
export * from "./drivers/pv_eoi.ts";
export * from "./drivers/pv_ipi.ts";
export * from "./drivers/registry.ts";
export * from "./instructions.ts";
export * from "./kernel/boot.ts";
export * from "./kernel/cpumask.ts";
export * from "./kernel/kernel.ts";
export * from "./kernel/life_cycle.ts";
export * from "./kernel/long.ts";
export * from "./kernel/memory_map.ts";
export * from "./kernel/smp.ts";
export * from "./kernel/spinlock.ts";
export * from "./kernel/vectors.ts";
export * from "./kvm_para.ts";
export * from "./mips/mod.ts";
export * from "./ppc/mod.ts";
export * from "./mm/layout.ts";
export * from "./mm/manager.ts";
export type { FlushRange } from "./mm/shootdown.ts";
export * from "./mm/uaccess.ts";
export * from "./mm/witness.ts";
export * from "./s390/mod.ts";
export * from "./sched/calls.ts";
export * from "./sched/layout.ts";
export * from "./sched/scheduler.ts";
export * from "./sched/syscalls.ts";
export * from "./sched/task.ts";
export * from "./sched/tick.ts";
export * from "./sched/user.ts";
export * from "./sched/wait.ts";
export * from "./semantics.ts";
