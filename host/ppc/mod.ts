/**
 * KVM on PowerPC: vCPUs that fetch, decode and execute words, hypercalls, the magic page.
 *
 * @module
 */

export * from "./decrementer.ts";
export * from "./device_tree.ts";
export type { Emulated } from "./emulate.ts";
export * from "./exits.ts";
export * from "./guest_mode.ts";
export * from "./hosts.ts";
export * from "./interrupts.ts";
export * from "./processor.ts";
export * from "./shared_page.ts";
export * from "./stats.ts";
export * from "./tracepoints.ts";
export * from "./vcpu.ts";
export * from "./vm.ts";
