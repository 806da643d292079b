/**
 * Intel's virtualization: hardware, and KVM's module for it.
 *
 * @module
 */

export * from "./hardware.ts";
export * from "./vmcs.ts";
export * from "./vmx.ts";
