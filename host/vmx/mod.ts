/**
 * Intel's virtualization: hardware, and KVM's module for it.
 *
 * @module
 */

export * from "./capabilities.ts";
export * from "./config.ts";
export { dumpVmcs } from "./dump.ts";
export { ENTRY_CHECKS, type EntryCheck, type EntryControls, failedEntryChecks } from "./entry_checks.ts";
export { VmEntryFailed } from "./entry_failed.ts";
export { sanitizeForEvmcs } from "./evmcs.ts";
export * from "./exec_controls.ts";
export * from "./feat_ctl.ts";
export * from "./hardware.ts";
export * from "./msr_bitmap.ts";
export { PidPointerTable, pidPointerTable } from "./ipi_virtualization.ts";
export { type PiControl, PiDescriptor } from "./posted_descriptor.ts";
export { PostedInterrupts } from "./posted_interrupts.ts";
export { VMX_PROCESSORS, type VmxProcessor } from "./processors.ts";
export { VirtualApic } from "./virtual_apic.ts";
export { VirtualInterrupts } from "./virtual_interrupts.ts";
export { senduipi, type UittEntry } from "./senduipi.ts";
export * from "./setup.ts";
export * from "./vmcs.ts";
export { VmInstructionError } from "./vmcs_fields.ts";
export * from "./vmx.ts";
