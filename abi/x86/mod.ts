/**
 * The x86 side of the contract: registers, instructions, exceptions, MSRs, CPUID, the APICs, and the exit codes of
 * VMX and SVM.
 *
 * @module
 */

export * from "./apic.ts";
export * from "./avic.ts";
export * from "./context.ts";
export * from "./convention.ts";
export * from "./cpu.ts";
export * from "./ept.ts";
export * from "./exceptions.ts";
export * from "./instructions.ts";
export * from "./ioapic.ts";
export * from "./kvm_cpuid.ts";
export * from "./msi.ts";
export * from "./msrs.ts";
export * from "./operands.ts";
export * from "./page_tables.ts";
export * from "./paging.ts";
export * from "./registers.ts";
export * from "./shared.ts";
export * from "./svm_exits.ts";
export * from "./system_instructions.ts";
export * from "./text.ts";
export * from "./vmcs.ts";
export * from "./vmx_controls.ts";
export * from "./vmx_exits.ts";
export * from "./vmx_features.ts";
export * from "./vmx_msrs.ts";
