/**
 * The host: the stepping core, the machine, and KVM.
 *
 * @module
 */

export * from "./arch/mod.ts";
export * from "./core/mod.ts";
export * from "./cost/mod.ts";
export { GuestError, NotModelled } from "./cpu/errors.ts";
export { type Access, FETCHES, type Mmu, READS, READS_SYSTEM, type SystemFault, WRITES } from "./cpu/mmu.ts";
export type {
  Dealt,
  HostThread,
  Processor,
  ProcessorFeatures,
  ProcessorState,
  Virtualization,
} from "./cpu/mod.ts";
export { type Acceleration, ACCELERATIONS, AVIC_KICKS, type AvicKick } from "./kvm/acceleration.ts";
export { APICV_INHIBITS, type ApicvInhibit } from "./kvm/apicv.ts";
export type { Backend, CommonExits, FastPath } from "./kvm/backend.ts";
export { type BackendName, BACKENDS } from "./kvm/backends.ts";
export { type CpuidEntry, type CpuidLeaf, CpuidTable } from "./kvm/cpuid.ts";
export type { Explanation } from "./kvm/explain.ts";
export type { HaltPolling } from "./kvm/halt.ts";
export { HostTask } from "./kvm/host_task.ts";
export { MpState, type Phase, type Straight, type Turn, VcpuMode } from "./kvm/modes.ts";
export type { MsrState } from "./kvm/msr_state.ts";
export { Vcpu } from "./kvm/vcpu.ts";
export type { QueuedException, VcpuState } from "./kvm/vcpu_state.ts";
export type { VcpuStats } from "./kvm/vcpu_stats.ts";
export * from "./kvm/tdp/mod.ts";
export { RunFailed, type UserspaceDevice } from "./kvm/userspace.ts";
export { Vm } from "./kvm/vm.ts";
export type { VmConfiguration } from "./kvm/vm_configuration.ts";
export type { VmOptions } from "./kvm/vm_options.ts";
export * from "./devices/mod.ts";
export * from "./irqchip/mod.ts";
export type {
  ApicMap,
  ApicPage,
  InterruptMessage,
  Lapic,
  LapicTimer,
  LogicalMode,
  MapSlot,
  MapState,
  VectorState,
} from "./lapic/mod.ts";
export * from "./machine.ts";
export * from "./memory/mod.ts";
export * from "./mips/mod.ts";
export {
  type CachedTranslation,
  type CpuTlb,
  Ept,
  type EptMisconfigurationFound,
  type EptViolationFound,
  type Freshness,
  type HostFault,
  type HostPage,
  type HostPageTranslation,
  type HostRights,
  type Invalidation,
  type InvalidationName,
  type MappedNow,
  type Mapping,
  type NestedPageFaultFound,
  Npt,
  type Paging,
  type PagingState,
  type PhysicalAccess,
  type PhysicalMemory,
  type Rights,
  type Scope,
  type SecondDimension,
  type ShootdownComplete,
  StalenessOracle,
  StaleTranslation,
  type Tlb,
  type TlbArray,
  type TlbFill,
  type TlbTags,
  type TlbTranslation,
  type TranslationRange,
} from "./mmu/mod.ts";
export * from "./ppc/mod.ts";
export type { PvEoi, PvEoiState } from "./pv/pv_eoi.ts";
export * from "./quirks.ts";
export * from "./s390/mod.ts";
export * from "./sched/mod.ts";
export * from "./semantics.ts";
export { AVIC_RULES, type AvicRule, type Vmcb, VmrunFailed } from "./svm/mod.ts";
export * from "./trace/mod.ts";
export {
  type AllowedSettings,
  type Decision,
  type DroppedControl,
  dumpVmcs,
  ENTRY_CHECKS,
  type EntryCheck,
  type EntryControls,
  failedEntryChecks,
  type FeatureControlOptions,
  initFeatCtl,
  type MsrBitmap,
  type ReadsCapabilities,
  setupVmx,
  Vmcs,
  type VmcsConfig,
  type VmcsConfigOptions,
  VmEntryFailed,
  VmInstructionError,
  VMX_PROCESSORS,
  VmxCapabilities,
  type VmxCapabilitiesOptions,
  type VmxFeatures,
  type VmxParameters,
  type VmxProcessor,
  type VmxSetup,
  type VmxSetupOptions,
  VmxUnusable,
} from "./vmx/mod.ts";
