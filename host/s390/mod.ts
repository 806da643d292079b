/**
 * s390 hosts: KVM with its user space, or an emulator.
 *
 * @module
 */

export * from "./css.ts";
export * from "./directed_yield.ts";
export * from "./exits.ts";
export * from "./host_cpus.ts";
export * from "./hosts.ts";
export { LocalInterrupts, type ProgramInterruption } from "./interrupts.ts";
export * from "./io_bus.ts";
export * from "./ioeventfd.ts";
export * from "./ipl.ts";
export * from "./pfault.ts";
export * from "./release_pages.ts";
export * from "./stats.ts";
export * from "./storage.ts";
export * from "./stsi.ts";
export * from "./tracepoints.ts";
export * from "./vcpu.ts";
export * from "./virtqueue.ts";
export * from "./vm.ts";
