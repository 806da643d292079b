/**
 * Model-specific registers. One row a register; access checks, trace names and documentation derive from it. What a
 * host does on an access is not here: hosts register handlers for rows.
 *
 * Sources: KVM's from Documentation/virt/kvm/x86/msr.rst and arch/x86/include/uapi/asm/kvm_para.h; the others from
 * SDM volume 4, table 2-2, and APM volume 2, appendix A.
 *
 * @module
 */

import type { MsrIndex } from "../brand.ts";

/** A model-specific register. */
export interface MsrSpec {
  /** Its index. */
  readonly index: MsrIndex;
  /** Its name: the manual's for the architecture's own, the kernel's without `MSR_` for KVM's. */
  readonly name: string;
  /** Whose state it is. */
  readonly scope: "vcpu" | "vm";
  /** What it holds after reset. The bootstrap processor's IA32_APIC_BASE has bit 8 set besides. */
  readonly reset: bigint;
  /** Bits whose setting raises #GP whatever the CPU model; models reserve more. */
  readonly reserved: bigint;
  /** Whether KVM clears it when the vCPU takes INIT. */
  readonly clearedByInit: boolean;
  /** What it is for. */
  readonly meaning: string;
}

function msr(
  index: number,
  name: string,
  meaning: string,
  rest: Partial<Omit<MsrSpec, "index" | "name" | "meaning">> = {},
): MsrSpec {
  return {
    index: index as MsrIndex,
    name,
    scope: "vcpu",
    reset: 0n,
    reserved: 0n,
    clearedByInit: false,
    meaning,
    ...rest,
  };
}

/** IA32_TIME_STAMP_COUNTER. */
export const IA32_TSC = 0x10 as MsrIndex;
/** IA32_APIC_BASE. */
export const IA32_APICBASE = 0x1b as MsrIndex;
/** IA32_TSC_ADJUST. */
export const IA32_TSC_ADJUST = 0x3b as MsrIndex;
/** IA32_TSC_DEADLINE. */
export const IA32_TSC_DEADLINE = 0x6e0 as MsrIndex;
/** IA32_EFER. */
export const IA32_EFER = 0xc000_0080 as MsrIndex;
/** IA32_STAR. */
export const IA32_STAR = 0xc000_0081 as MsrIndex;
/** IA32_LSTAR. */
export const IA32_LSTAR = 0xc000_0082 as MsrIndex;
/** IA32_CSTAR. */
export const IA32_CSTAR = 0xc000_0083 as MsrIndex;
/** IA32_FMASK. */
export const IA32_FMASK = 0xc000_0084 as MsrIndex;
/** IA32_FS_BASE. */
export const IA32_FS_BASE = 0xc000_0100 as MsrIndex;
/** IA32_GS_BASE. */
export const IA32_GS_BASE = 0xc000_0101 as MsrIndex;
/** IA32_KERNEL_GS_BASE. */
export const IA32_KERNEL_GS_BASE = 0xc000_0102 as MsrIndex;
/** IA32_TSC_AUX. */
export const IA32_TSC_AUX = 0xc000_0103 as MsrIndex;

/** The first x2APIC MSR; register at page offset `o` is at 0x800 + o / 16 (SDM 3A 11.12.1.2). */
export const X2APIC_MSR_BASE = 0x800 as MsrIndex;
/** The last MSR of the x2APIC range. */
export const X2APIC_MSR_LAST = 0x8ff as MsrIndex;
/** The x2APIC task-priority register. */
export const X2APIC_TPR = 0x808 as MsrIndex;
/** The x2APIC end-of-interrupt register. */
export const X2APIC_EOI = 0x80b as MsrIndex;
/** The x2APIC interrupt command register. */
export const X2APIC_ICR = 0x830 as MsrIndex;
/** The x2APIC self-IPI register. */
export const X2APIC_SELF_IPI = 0x83f as MsrIndex;

/** Wall clock, old index. */
export const MSR_KVM_WALL_CLOCK = 0x11 as MsrIndex;
/** System time, old index. */
export const MSR_KVM_SYSTEM_TIME = 0x12 as MsrIndex;
/** Wall clock. */
export const MSR_KVM_WALL_CLOCK_NEW = 0x4b56_4d00 as MsrIndex;
/** System time. */
export const MSR_KVM_SYSTEM_TIME_NEW = 0x4b56_4d01 as MsrIndex;
/** Async page faults: enabling and area. */
export const MSR_KVM_ASYNC_PF_EN = 0x4b56_4d02 as MsrIndex;
/** Steal time: enabling and area. */
export const MSR_KVM_STEAL_TIME = 0x4b56_4d03 as MsrIndex;
/** PV EOI: enabling and the address of the flag. */
export const MSR_KVM_PV_EOI_EN = 0x4b56_4d04 as MsrIndex;
/** Host halt polling. */
export const MSR_KVM_POLL_CONTROL = 0x4b56_4d05 as MsrIndex;
/** Async page faults: the page-ready vector. */
export const MSR_KVM_ASYNC_PF_INT = 0x4b56_4d06 as MsrIndex;
/** Async page faults: acknowledgement. */
export const MSR_KVM_ASYNC_PF_ACK = 0x4b56_4d07 as MsrIndex;
/** Migration control, served by user space. */
export const MSR_KVM_MIGRATION_CONTROL = 0x4b56_4d08 as MsrIndex;

/** Bit 0 of every KVM MSR that names a shared area: the area is in use. */
export const KVM_MSR_ENABLED = 1;

const ALL = 0xffff_ffff_ffff_ffffn;

/** Every register that has a row of its own; the x2APIC range follows from the APIC's register map. */
export const MSRS: readonly MsrSpec[] = [
  msr(IA32_TSC, "IA32_TIME_STAMP_COUNTER", "the time-stamp counter"),
  msr(MSR_KVM_WALL_CLOCK, "KVM_WALL_CLOCK", "writes the wall clock at this address", { scope: "vm" }),
  msr(MSR_KVM_SYSTEM_TIME, "KVM_SYSTEM_TIME", "kvmclock's area", { clearedByInit: true }),
  msr(IA32_APICBASE, "IA32_APIC_BASE", "local APIC: base address and mode", {
    reset: 0xfee0_0800n,
    reserved: 0x2ffn,
  }),
  msr(IA32_TSC_ADJUST, "IA32_TSC_ADJUST", "what software added to the TSC"),
  msr(IA32_TSC_DEADLINE, "IA32_TSC_DEADLINE", "TSC value at which the APIC timer fires", {
    clearedByInit: true,
  }),
  msr(MSR_KVM_WALL_CLOCK_NEW, "KVM_WALL_CLOCK_NEW", "writes the wall clock at this address", { scope: "vm" }),
  msr(MSR_KVM_SYSTEM_TIME_NEW, "KVM_SYSTEM_TIME_NEW", "kvmclock's area", { clearedByInit: true }),
  msr(MSR_KVM_ASYNC_PF_EN, "KVM_ASYNC_PF_EN", "async page faults: area and enabling", {
    reserved: 0x30n,
    clearedByInit: true,
  }),
  msr(MSR_KVM_STEAL_TIME, "KVM_STEAL_TIME", "steal time: area and enabling", {
    reserved: 0x3en,
    clearedByInit: true,
  }),
  msr(MSR_KVM_PV_EOI_EN, "KVM_PV_EOI_EN", "PV EOI: the flag's address and enabling", {
    reserved: 0x2n,
    clearedByInit: true,
  }),
  msr(MSR_KVM_POLL_CONTROL, "KVM_POLL_CONTROL", "bit 0: the host may poll before it blocks this vCPU", {
    reset: 1n,
    reserved: ALL & ~1n,
  }),
  msr(MSR_KVM_ASYNC_PF_INT, "KVM_ASYNC_PF_INT", "async page faults: the page-ready vector", {
    reserved: ALL & ~0xffn,
    clearedByInit: true,
  }),
  msr(MSR_KVM_ASYNC_PF_ACK, "KVM_ASYNC_PF_ACK", "async page faults: page-ready acknowledgement"),
  msr(MSR_KVM_MIGRATION_CONTROL, "KVM_MIGRATION_CONTROL", "bit 0: the guest can be migrated; user space's", {
    scope: "vm",
  }),
  msr(IA32_EFER, "IA32_EFER", "extended features: SYSCALL, long mode, NX", { clearedByInit: true }),
  msr(IA32_STAR, "IA32_STAR", "SYSCALL's segments"),
  msr(IA32_LSTAR, "IA32_LSTAR", "SYSCALL's target in 64-bit mode"),
  msr(IA32_CSTAR, "IA32_CSTAR", "SYSCALL's target in compatibility mode"),
  msr(IA32_FMASK, "IA32_FMASK", "flags that SYSCALL clears"),
  msr(IA32_FS_BASE, "IA32_FS_BASE", "the FS segment's base", { clearedByInit: true }),
  msr(IA32_GS_BASE, "IA32_GS_BASE", "the GS segment's base", { clearedByInit: true }),
  msr(IA32_KERNEL_GS_BASE, "IA32_KERNEL_GS_BASE", "what SWAPGS exchanges with the GS base"),
  msr(IA32_TSC_AUX, "IA32_TSC_AUX", "what RDTSCP returns in ECX"),
];

const BY_INDEX: ReadonlyMap<number, MsrSpec> = new Map(MSRS.map((spec) => [spec.index, spec]));

/** The row of an MSR; undefined where the table has none. */
export function msrSpec(index: number): MsrSpec | undefined {
  return BY_INDEX.get(index);
}

/** The name of an MSR, with the x2APIC range as `x2APIC+0xNNN`; hexadecimal where there is none. */
export function msrName(index: number): string {
  const spec = BY_INDEX.get(index);
  if (spec !== undefined) return spec.name;
  if (index >= X2APIC_MSR_BASE && index <= X2APIC_MSR_LAST) {
    return `x2APIC+0x${((index - X2APIC_MSR_BASE) << 4).toString(16).padStart(3, "0")}`;
  }
  return `0x${index.toString(16)}`;
}
