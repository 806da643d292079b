/**
 * KVM on MIPS, as far as hypercalls need it.
 *
 * @module
 */

export { type Branch, branchOf, type BranchRegisters } from "./branches.ts";
export * from "./hypercall.ts";
export { type MipsNowhere, mipsPhysical } from "./segments.ts";
export { MIPS_EXIT_NAMES, MIPS_TP, MIPS_TRACEPOINTS, type MipsTracepoint } from "./tracepoints.ts";
export * from "./userspace.ts";
export { type MipsAccess, MipsVcpu } from "./vcpu.ts";
export * from "./vm.ts";
