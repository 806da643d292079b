/**
 * AMD's virtualization: hardware, and KVM's module for it.
 *
 * @module
 */

export * from "./avic/mod.ts";
export * from "./entry_failed.ts";
export * from "./hardware.ts";
export * from "./msr_permissions.ts";
export * from "./svm.ts";
export * from "./vmcb.ts";
