/**
 * Intel's virtualization: hardware, and KVM's module for it.
 *
 * @module
 */

export * from "./hardware.ts";
export * from "./msr_bitmap.ts";
export * from "./vmcs.ts";
export { VmInstructionError } from "./vmcs_fields.ts";
export * from "./vmx.ts";
