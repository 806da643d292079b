/**
 * KVM's CPUID leaves: signature, features, hints (Documentation/virt/kvm/x86/cpuid.rst;
 * arch/x86/include/uapi/asm/kvm_para.h).
 *
 * @module
 */

/** The first leaf of the hypervisor range, and the step to the next base (SDM 2A CPUID: reserved for software). */
export const HYPERVISOR_CPUID_BASE = 0x4000_0000;
/** Bases stand this far apart. */
export const HYPERVISOR_CPUID_STEP = 0x100;
/** One past the last base that Linux scans. */
export const HYPERVISOR_CPUID_END = 0x4001_0000;

/** EBX of KVM's base leaf: "KVMK". */
export const KVM_SIGNATURE_EBX = 0x4b4d_564b;
/** ECX of KVM's base leaf: "VMKV". */
export const KVM_SIGNATURE_ECX = 0x564b_4d56;
/** EDX of KVM's base leaf: "M\0\0\0". */
export const KVM_SIGNATURE_EDX = 0x0000_004d;
/** The feature leaf, relative to the base. */
export const KVM_CPUID_FEATURES = 1;

/** A bit of the feature leaf's EAX, or of its EDX for hints. */
export interface KvmFeatureSpec {
  /** Bit number. */
  readonly bit: number;
  /** Name without its `KVM_FEATURE_` or `KVM_HINTS_` prefix. */
  readonly name: string;
  /** Whether KVM v6.19 itself offers it in KVM_GET_SUPPORTED_CPUID; `steal` where only with scheduler statistics. */
  readonly offered: "kvm" | "steal" | "user-space" | "no";
  /** What a guest may do when it is set. */
  readonly meaning: string;
}

/** The names of KVM's features. */
export type KvmFeature =
  | "CLOCKSOURCE"
  | "NOP_IO_DELAY"
  | "MMU_OP"
  | "CLOCKSOURCE2"
  | "ASYNC_PF"
  | "STEAL_TIME"
  | "PV_EOI"
  | "PV_UNHALT"
  | "PV_TLB_FLUSH"
  | "ASYNC_PF_VMEXIT"
  | "PV_SEND_IPI"
  | "POLL_CONTROL"
  | "PV_SCHED_YIELD"
  | "ASYNC_PF_INT"
  | "MSI_EXT_DEST_ID"
  | "HC_MAP_GPA_RANGE"
  | "MIGRATION_CONTROL"
  | "CLOCKSOURCE_STABLE_BIT";

/** KVM's features: bits of EAX. */
export const KVM_FEATURES: Readonly<Record<KvmFeature, KvmFeatureSpec>> = {
  CLOCKSOURCE: feature(0, "CLOCKSOURCE", "kvm", "kvmclock through MSRs 0x11 and 0x12"),
  NOP_IO_DELAY: feature(1, "NOP_IO_DELAY", "kvm", "no delay is needed on PIO"),
  MMU_OP: feature(2, "MMU_OP", "no", "deprecated"),
  CLOCKSOURCE2: feature(3, "CLOCKSOURCE2", "kvm", "kvmclock through MSRs 0x4b564d00 and 0x4b564d01"),
  ASYNC_PF: feature(4, "ASYNC_PF", "kvm", "asynchronous page faults through MSR 0x4b564d02"),
  STEAL_TIME: feature(5, "STEAL_TIME", "steal", "steal time through MSR 0x4b564d03"),
  PV_EOI: feature(6, "PV_EOI", "kvm", "paravirtual end of interrupt through MSR 0x4b564d04"),
  PV_UNHALT: feature(7, "PV_UNHALT", "kvm", "paravirtual spinlocks through KVM_HC_KICK_CPU"),
  PV_TLB_FLUSH: feature(9, "PV_TLB_FLUSH", "kvm", "paravirtual TLB flush through the steal-time area"),
  ASYNC_PF_VMEXIT: feature(10, "ASYNC_PF_VMEXIT", "kvm", "async page faults may be delivered as VM exits"),
  PV_SEND_IPI: feature(11, "PV_SEND_IPI", "kvm", "multicast IPIs through KVM_HC_SEND_IPI"),
  POLL_CONTROL: feature(12, "POLL_CONTROL", "kvm", "host halt polling is switched through MSR 0x4b564d05"),
  PV_SCHED_YIELD: feature(13, "PV_SCHED_YIELD", "kvm", "yielding to a vCPU through KVM_HC_SCHED_YIELD"),
  ASYNC_PF_INT: feature(14, "ASYNC_PF_INT", "kvm", "async page-ready events come as interrupts"),
  MSI_EXT_DEST_ID: feature(15, "MSI_EXT_DEST_ID", "user-space", "MSI address bits 11:5 carry ID bits 14:8"),
  HC_MAP_GPA_RANGE: feature(16, "HC_MAP_GPA_RANGE", "user-space", "page encryption notes by hypercall"),
  MIGRATION_CONTROL: feature(17, "MIGRATION_CONTROL", "user-space", "MSR 0x4b564d08 allows migration"),
  CLOCKSOURCE_STABLE_BIT: feature(24, "CLOCKSOURCE_STABLE_BIT", "kvm", "the pvclock stable flag counts"),
};

/** The names of KVM's hints. */
export type KvmHint = "REALTIME";

/** KVM's hints: bits of EDX. KVM itself reports none; user space sets them. */
export const KVM_HINTS: Readonly<Record<KvmHint, KvmFeatureSpec>> = {
  REALTIME: feature(0, "REALTIME", "user-space", "vCPUs are never preempted for an unlimited time"),
};

function feature(
  bit: number,
  name: string,
  offered: KvmFeatureSpec["offered"],
  meaning: string,
): KvmFeatureSpec {
  return { bit, name, offered, meaning };
}

/** The EAX (or for hints the EDX) word in which exactly these bits are set. */
export function featureMask(names: Iterable<KvmFeature>): number {
  let mask = 0;
  for (const name of names) mask |= 1 << KVM_FEATURES[name].bit;
  return mask >>> 0;
}

/** CPUID.1:ECX bit 21: x2APIC. */
export const CPUID_1_ECX_X2APIC = 1 << 21;
/** CPUID.1:ECX bit 24: the local APIC timer has TSC-deadline mode. */
export const CPUID_1_ECX_TSC_DEADLINE = 1 << 24;
/** CPUID.1:ECX bit 31: a hypervisor is present. */
export const CPUID_1_ECX_HYPERVISOR = 0x8000_0000;
/** CPUID.1:EDX bit 9: a local APIC is present and enabled in IA32_APICBASE. */
export const CPUID_1_EDX_APIC = 1 << 9;
/** CPUID.7:EBX bit 1: IA32_TSC_ADJUST. */
export const CPUID_7_EBX_TSC_ADJUST = 1 << 1;
/** CPUID.7:ECX bit 22: RDPID, which reads IA32_TSC_AUX. */
export const CPUID_7_ECX_RDPID = 1 << 22;
/** CPUID.80000001H:EDX bit 27: RDTSCP, which reads it too. */
export const CPUID_EXT1_EDX_RDTSCP = 1 << 27;
