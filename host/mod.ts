/**
 * The host: the stepping core, the machine, and KVM.
 *
 * @module
 */

export * from "./core/mod.ts";
export * from "./cost/mod.ts";
export * from "./cpu/errors.ts";
export { type BackendName, BACKENDS } from "./kvm/backends.ts";
export { type CpuidEntry, type CpuidLeaf, CpuidTable } from "./kvm/cpuid.ts";
export { MpState, VcpuMode } from "./kvm/modes.ts";
export { Vcpu, type VcpuStats } from "./kvm/vcpu.ts";
export { type UserspaceDevice, Vm, type VmOptions } from "./kvm/vm.ts";
export * from "./devices/mod.ts";
export * from "./irqchip/mod.ts";
export * from "./machine.ts";
export * from "./memory/mod.ts";
export * from "./quirks.ts";
export * from "./sched/mod.ts";
export * from "./semantics.ts";
export * from "./trace/mod.ts";
