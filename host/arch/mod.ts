/**
 * What the hosts of s390, PowerPC and MIPS share: a vCPU on the stepping core, its run loop, guest memory with a byte
 * order, counted exits.
 *
 * @module
 */

export * from "./activations.ts";
export * from "./errors.ts";
export * from "./kvm_run.ts";
export * from "./ordered_memory.ts";
export * from "./tracepoints.ts";
export * from "./vcpu.ts";
export * from "./vm.ts";
