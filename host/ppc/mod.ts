/**
 * KVM on PowerPC: vCPUs that fetch, decode and execute words, hypercalls, the magic page.
 *
 * @module
 */

export { Decrementer } from "./decrementer.ts";
export type { DeviceTreeOptions } from "./device_tree.ts";
export type { Emulated } from "./emulate.ts";
export { PPC_EXITS, type PpcExit, type ProgramCause } from "./exits.ts";
export * from "./guest_mode.ts";
export * from "./hosts.ts";
export * from "./interrupts.ts";
export type { MagicPlace, Place } from "./places.ts";
export { type DataFault, PpcProcessor } from "./processor.ts";
export * from "./shared_page.ts";
export type { PpcStats } from "./stats.ts";
export * from "./tracepoints.ts";
export * from "./vcpu.ts";
export * from "./vm.ts";
