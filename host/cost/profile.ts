/**
 * Cost profiles: what each primitive costs on some machine, and who says so.
 *
 * @module
 */

import { type Costs, type Primitive, PRIMITIVES } from "./primitives.ts";

/** How sure a figure is. */
export type Provenance = "measured" | "published" | "fitted" | "assumed";

/** A primitive's price. */
export interface Cost {
  /** Cycles. */
  readonly cycles: number;
  /** How sure the figure is. */
  readonly provenance: Provenance;
  /** Who says so, or what it was derived from. */
  readonly source: string;
}

/** A machine's prices. */
export interface CostProfile {
  /** The profile's name. */
  readonly name: string;
  /** Frequency of the constant-rate TSC, in kHz. */
  readonly tscKhz: number;
  /** The prices. */
  readonly costs: Readonly<Record<Primitive, Cost>>;
}

/** The highest price: the largest machine's dearest step stays within what a clock may move at a time. */
export const COST_LIMIT = 100_000;

/** A profile's prices, as the machine uses them. Throws `RangeError` for a price that is no whole number up to the limit. */
export function costTable(profile: CostProfile): Costs {
  return table((name) => {
    const { cycles } = profile.costs[name];
    if (!Number.isInteger(cycles) || cycles < 0 || cycles > COST_LIMIT) {
      throw new RangeError(
        `Cannot use cost profile ${profile.name}: ${name} costs ${cycles} cycles; allowed are 0 to ${COST_LIMIT}`,
      );
    }
    return cycles;
  });
}

/** The prices of an explored run: everything is free, and time is ticks. */
export function freeTable(): Costs {
  return table(() => 0);
}

function table(price: (name: Primitive) => number): Costs {
  const names = Object.keys(PRIMITIVES) as Primitive[];
  return Object.fromEntries(names.map((name) => [name, price(name)])) as Record<Primitive, number>;
}

function assumed(cycles: number, source: string): Cost {
  return { cycles, provenance: "assumed", source };
}

function published(cycles: number, source: string): Cost {
  return { cycles, provenance: "published", source };
}

const INSTRUCTION = "instruction latency of the class on Skylake, cache-resident operands";
const HARDWARE_APIC = "microcode on cached lines of the virtual APIC";
const KVM_PART = "a share of the kernel part of published exit costs (vmcall 1559, cpuid 1018-1110 cycles)";

/**
 * A Skylake server at 2.5 GHz under KVM with VMX: the machine of the 2018 PV IPI table. The split into primitives is
 * this project's first estimate; its anchors are the published whole-exit figures that the sources name.
 */
export const SKYLAKE_VMX: CostProfile = {
  name: "skylake-vmx",
  tscKhz: 2_500_000,
  costs: {
    insn: assumed(1, INSTRUCTION),
    load: assumed(5, INSTRUCTION),
    store: assumed(5, INSTRUCTION),
    locked: assumed(20, INSTRUCTION),
    pause: published(140, "Intel 64 optimization manual: PAUSE on Skylake takes about 140 cycles"),
    pauseLoop: assumed(146, "PAUSE and a load, compare and branch"),
    rdtsc: assumed(25, INSTRUCTION),
    msr: assumed(100, INSTRUCTION),
    system: assumed(50, INSTRUCTION),
    pageWalk: assumed(6, "most entries hit the first two levels of cache: 4 in one dimension, 24 in two"),
    invlpg: assumed(200, INSTRUCTION),
    invpcid: assumed(200, INSTRUCTION),
    eventDelivery: assumed(300, "IDT delivery with a privilege-neutral stack, published range 300-500"),
    iret: assumed(80, INSTRUCTION),
    vmexit: assumed(450, "hardware exit and entry about 800 cycles, split"),
    vmentry: assumed(800, "350 for the hardware, and 450 for the run loop"),
    reentry: assumed(600, "350 for the hardware, and 250 for the inner loop"),
    hypercall: assumed(150, KVM_PART),
    cpuid: assumed(100, KVM_PART),
    msrEmulation: assumed(150, KVM_PART),
    apicRegister: assumed(60, KVM_PART),
    icr: assumed(150, KVM_PART),
    accept: assumed(120, "atomic bit operations in the target's IRR and request word"),
    slowMatch: assumed(15, "a loop over vCPUs that reads two registers of each"),
    kick: assumed(700, "an x2APIC ICR write on the host, and its call chain"),
    ipiLatency: assumed(800, "published range 600-1000 cycles"),
    hostInterrupt: assumed(500, "the host's reschedule interrupt handler"),
    emulate: assumed(
      1300,
      "fetch, page walk, decode and write-back; what an emulated xAPIC access takes beyond an MSR's",
    ),
    mmu: assumed(400, "walk to the MMIO SPTE"),
    tdpFault: assumed(1000, "get_user_pages_fast on a page that is there, and the entry, under a lock"),
    tdpTable: assumed(250, "a zeroed page from a cache that was filled before, and one locked access"),
    invalidateTlb: assumed(300, "microcode that walks the TLB"),
    pio: assumed(200, KVM_PART),
    ioBusStep: assumed(10, "two cached words compared, or one call through a pointer"),
    inject: assumed(150, "event block of the entry path"),
    virtualInterrupt: assumed(50, HARDWARE_APIC),
    virtualEoi: assumed(40, HARDWARE_APIC),
    virtualApic: assumed(30, HARDWARE_APIC),
    postedProcessing: assumed(200, "an interrupt acknowledged, one locked word cleared, a cache line moved"),
    postIpi: assumed(200, "a table entry, and two locked accesses to a line that another CPU has"),
    post: assumed(60, "two locked accesses to a line that another CPU has"),
    syncPosted: assumed(60, "one locked access, and a cache line moved"),
    doorbell: assumed(300, "a WRMSR to the doorbell register"),
    avicIpi: assumed(100, KVM_PART),
    avicTarget: assumed(30, "a table entry and an xarray lookup"),
    pvEoi: assumed(40, "one cached guest byte, published range 80-120 for arming and harvesting"),
    ipiBit: assumed(10, "finding one bit and its map slot"),
    halt: assumed(100, KVM_PART),
    block: assumed(2500, "schedule() away from a blocked vCPU"),
    wake: assumed(6000, "try_to_wake_up to the run loop, published range for a block and wake 8-15 k"),
    pollTurn: assumed(300, "published range for a halt-poll hit 2-3 k, the HLT exit included"),
    contextSwitch: assumed(2000, "switch between vCPU threads, VMCS load included"),
    userspace: published(4300, "inl_from_qemu about 5800 cycles, less a kernel-served exit"),
  },
};

/** A server of the same speed with SVM: the world switch is dearer. */
export const GENERIC_SVM: CostProfile = {
  ...SKYLAKE_VMX,
  name: "generic-svm",
  costs: {
    ...SKYLAKE_VMX.costs,
    vmexit: published(680, "SVM world switch 1344-1376 cycles with host save and load (2020), split"),
    vmentry: published(1130, "the other half of the world switch, and 450 for the run loop"),
    reentry: published(930, "the other half of the world switch, and 250 for the inner loop"),
  },
};
