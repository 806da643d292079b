/**
 * s390 hosts: KVM with its user space, or an emulator.
 *
 * What is not there says so, or is told by whoever builds the virtual machine: dynamic address translation (an error),
 * SIGP (vCPUs are started from outside), channel programs (devices are added with their rings), I/O interruptions, and what
 * follows an IPL (the virtual machine ends).
 *
 * @module
 */

export {
  type CcwDevice,
  ChannelSubsystem,
  type LegacyTransport,
  subchannelOf,
  VIRTUAL_CSSID,
} from "./css.ts";
export * from "./directed_yield.ts";
export * from "./exits.ts";
export * from "./host_cpus.ts";
export * from "./hosts.ts";
export { LocalInterrupts, type ProgramInterruption } from "./interrupts.ts";
export * from "./io_bus.ts";
export * from "./ioeventfd.ts";
export { type IplState, kernelResetFlags } from "./ipl.ts";
export * from "./pfault.ts";
export * from "./release_pages.ts";
export type { S390Stats } from "./stats.ts";
export * from "./storage.ts";
export {
  nameVirtualMachine,
  storeSystemInformation,
  type StsiAnswer,
  type StsiBlocks,
  type StsiRequest,
  type VirtualMachine,
  virtualMachines,
} from "./stsi.ts";
export * from "./stsi_emulated.ts";
export * from "./tracepoints.ts";
export * from "./vcpu.ts";
export * from "./virtqueue.ts";
export * from "./vm.ts";
