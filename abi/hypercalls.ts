/**
 * The KVM_HC_* namespace: one table for x86, PowerPC and MIPS (include/uapi/linux/kvm_para.h,
 * Documentation/virt/kvm/x86/hypercalls.rst). The guest's typed call and the host's typed handler both derive from it.
 *
 * @module
 */

import type { ArgumentsByName } from "./convention.ts";
import type { KvmFeature } from "./x86/kvm_cpuid.ts";

/** The architectures that share the namespace. */
export type HypercallArch = "x86" | "ppc" | "mips";

/** An argument: its name, and what the number in its register stands for. */
export interface HypercallArgument {
  /** Name, as the typed call spells it. */
  readonly name: string;
  /** What the register holds. */
  readonly type: "u64" | "u32" | "bitmap" | "gpa" | "apic-id" | "icr";
  /** What it means. */
  readonly meaning: string;
}

/** A hypercall. */
export interface HypercallSpec {
  /** Its number. */
  readonly nr: number;
  /** Where it exists. */
  readonly arch: readonly HypercallArch[];
  /** Its arguments, in register order. */
  readonly args: readonly HypercallArgument[];
  /** What the result register holds afterwards, besides an error. */
  readonly result: "zero" | "count" | "value" | "none";
  /** The feature bit that offers it on x86. */
  readonly feature: KvmFeature | null;
  /** Purpose. */
  readonly meaning: string;
}

/** Every call of the namespace. */
export const HYPERCALLS = {
  KVM_HC_VAPIC_POLL_IRQ: {
    nr: 1,
    arch: ["x86"],
    args: [],
    result: "zero",
    feature: null,
    meaning: "exits, so that the host looks for pending interrupts before it enters again",
  },
  KVM_HC_MMU_OP: {
    nr: 2,
    arch: ["x86"],
    args: [],
    result: "none",
    feature: "MMU_OP",
    meaning: "deprecated; no host has it",
  },
  KVM_HC_FEATURES: {
    nr: 3,
    arch: ["ppc"],
    args: [],
    result: "value",
    feature: null,
    meaning: "which hypercalls a PowerPC host offers",
  },
  KVM_HC_PPC_MAP_MAGIC_PAGE: {
    nr: 4,
    arch: ["ppc"],
    args: [
      { name: "realAddress", type: "gpa", meaning: "physical address of the page" },
      { name: "effectiveAddress", type: "u64", meaning: "its effective address; flags in bits 11:0" },
    ],
    result: "value",
    feature: null,
    meaning: "maps the page that holds supervisor registers",
  },
  KVM_HC_KICK_CPU: {
    nr: 5,
    arch: ["x86"],
    args: [
      { name: "flags", type: "u64", meaning: "ignored" },
      { name: "apicId", type: "apic-id", meaning: "the vCPU to wake" },
    ],
    result: "zero",
    feature: "PV_UNHALT",
    meaning: "wakes a halted vCPU",
  },
  KVM_HC_MIPS_GET_CLOCK_FREQ: {
    nr: 6,
    arch: ["mips"],
    args: [],
    result: "value",
    feature: null,
    meaning: "the clock's frequency",
  },
  KVM_HC_MIPS_EXIT_VM: {
    nr: 7,
    arch: ["mips"],
    args: [],
    result: "none",
    feature: null,
    meaning: "shuts the virtual machine down",
  },
  KVM_HC_MIPS_CONSOLE_OUTPUT: {
    nr: 8,
    arch: ["mips"],
    args: [
      { name: "port", type: "u64", meaning: "the virtual terminal" },
      { name: "buffer", type: "u64", meaning: "virtual address of the text, in an unmapped segment" },
      { name: "length", type: "u64", meaning: "bytes" },
    ],
    result: "value",
    feature: null,
    meaning: "writes to the console",
  },
  KVM_HC_CLOCK_PAIRING: {
    nr: 9,
    arch: ["x86"],
    args: [
      { name: "gpa", type: "gpa", meaning: "where struct kvm_clock_pairing is written" },
      { name: "clockType", type: "u64", meaning: "0: the host's CLOCK_REALTIME" },
    ],
    result: "zero",
    feature: null,
    meaning: "pairs the host's clock with a guest TSC value",
  },
  KVM_HC_SEND_IPI: {
    nr: 10,
    arch: ["x86"],
    args: [
      { name: "bitmapLow", type: "bitmap", meaning: "destinations min to min + 63 (in 32-bit mode + 31)" },
      { name: "bitmapHigh", type: "bitmap", meaning: "destinations from min + 64 (in 32-bit mode + 32)" },
      { name: "min", type: "apic-id", meaning: "the APIC ID of bit 0" },
      { name: "icr", type: "icr", meaning: "delivery mode and vector, as in the ICR" },
    ],
    result: "count",
    feature: "PV_SEND_IPI",
    meaning: "sends one interrupt to up to 128 (in 32-bit mode 64) APICs",
  },
  KVM_HC_SCHED_YIELD: {
    nr: 11,
    arch: ["x86"],
    args: [{ name: "apicId", type: "apic-id", meaning: "the vCPU to run instead" }],
    result: "zero",
    feature: "PV_SCHED_YIELD",
    meaning: "gives the physical CPU to a preempted vCPU",
  },
  KVM_HC_MAP_GPA_RANGE: {
    nr: 12,
    arch: ["x86"],
    args: [
      { name: "gpa", type: "gpa", meaning: "first page" },
      { name: "npages", type: "u64", meaning: "pages" },
      { name: "attrs", type: "u64", meaning: "page size and encryption" },
    ],
    result: "zero",
    feature: "HC_MAP_GPA_RANGE",
    meaning: "tells user space how pages are mapped",
  },
} as const satisfies Record<string, HypercallSpec>;

/** The name of a call. */
export type HypercallName = keyof typeof HYPERCALLS;

/** The calls that an architecture has. */
export type HypercallOn<Arch extends HypercallArch> = {
  [Name in HypercallName]: Arch extends (typeof HYPERCALLS)[Name]["arch"][number] ? Name : never;
}[HypercallName];

/** The arguments of a call, by name; values are whole numbers below 2^53 or bigints, modulo 2^64. */
export type HypercallArgs<Name extends HypercallName> = ArgumentsByName<(typeof HYPERCALLS)[Name]["args"]>;

const BY_NR: ReadonlyMap<number, HypercallName> = new Map(
  Object.entries(HYPERCALLS).map(([name, spec]) => [spec.nr, name as HypercallName]),
);

/** The name of a call number; undefined where there is none. */
export function hypercallName(nr: number): HypercallName | undefined {
  return BY_NR.get(nr);
}
