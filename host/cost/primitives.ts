/**
 * What simulated time is made of: primitives, each of which a profile prices. An experiment's total comes from
 * executing them; no total is stored anywhere.
 *
 * @module
 */

/** The primitives, and what each is. */
export const PRIMITIVES = {
  insn: "an instruction that touches registers alone",
  load: "a load that hits the cache",
  store: "a store that hits the cache",
  locked: "a locked read-modify-write",
  pause: "PAUSE",
  pauseLoop: "one turn of PAUSE, CMP, JE",
  rdtsc: "RDTSC",
  msr: "RDMSR or WRMSR that does not exit",
  system: "a control-register access, LIDT or serializing instruction that does not exit",
  pageWalk: "a page-table entry that a walk reads",
  invlpg: "INVLPG",
  invpcid: "INVPCID",
  eventDelivery: "delivery of an event through the IDT",
  iret: "IRET, SYSCALL or SYSRET",
  vmexit: "hardware: guest to host",
  vmentry: "hardware and KVM: host to guest, with the run loop around it",
  reentry: "hardware and KVM: host to guest again, straight from a fast path",
  hypercall: "KVM: hypercall dispatch",
  cpuid: "KVM: CPUID emulation",
  msrEmulation: "KVM: RDMSR or WRMSR emulation, without what the register does",
  apicRegister: "KVM: an emulated local APIC register",
  icr: "KVM: decoding an ICR write and finding its targets",
  accept: "KVM: accepting an interrupt at one local APIC",
  slowMatch: "KVM: asking one vCPU whether a destination means it",
  kick: "host: sending an IPI to another CPU",
  ipiLatency: "hardware: from sending an IPI to its arrival",
  hostInterrupt: "host: serving an external interrupt",
  emulate: "KVM: fetching and decoding one instruction",
  mmu: "KVM: a page fault on an MMIO address",
  tdpFault: "KVM: a page fault on an address that a memory slot backs",
  tdpTable: "KVM: a new page table",
  invalidateTlb: "host: one INVEPT, INVVPID or INVLPGA",
  pio: "KVM: a port access that the kernel serves",
  ioBusStep: "KVM: comparing one range on an I/O bus, or offering an access to one device",
  inject: "KVM: choosing and injecting an event",
  virtualInterrupt: "hardware: recognizing a virtual interrupt and bookkeeping for its delivery",
  virtualEoi: "hardware: EOI, TPR or self-IPI virtualization",
  virtualApic: "hardware: another virtualized access to the APIC",
  postedProcessing: "hardware: a notification, and moving posted interrupts to the virtual APIC",
  postIpi: "hardware: finding an IPI's target in a table and posting to it",
  post: "KVM: posting an interrupt to a descriptor or a backing page",
  syncPosted: "KVM: moving posted interrupts to the virtual APIC",
  doorbell: "KVM: ringing an AVIC doorbell",
  avicIpi: "KVM: decoding an incomplete IPI",
  avicTarget: "KVM: looking a target up by its ID",
  pvEoi: "KVM: reading or writing the PV EOI flag",
  ipiBit: "KVM: one bit of a SEND_IPI bitmap",
  halt: "KVM: HLT emulation",
  block: "host: putting a blocked vCPU to sleep",
  wake: "host: waking a sleeping vCPU, up to its run loop",
  pollTurn: "host: noticing an event while halt polling",
  contextSwitch: "host: switching a CPU between threads",
  userspace: "user space: KVM_RUN back and forth",
} as const;

/** A primitive. */
export type Primitive = keyof typeof PRIMITIVES;

/** Prices in cycles, by primitive: `vcpu.charge(cost.vmexit)`. */
export type Costs = Readonly<Record<Primitive, number>>;
