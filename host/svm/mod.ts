/**
 * AMD's virtualization: hardware, and KVM's module for it.
 *
 * @module
 */

export * from "./hardware.ts";
export * from "./svm.ts";
export * from "./vmcb.ts";
