/**
 * KVM's tracepoints, by their v6.19 names, with what each records, and whether 2012 had it. Only events that this host
 * can produce are here.
 *
 * @module
 */

/** How an argument prints. */
export type ArgFormat = "dec" | "hex" | "hex64" | "bool" | "exit" | "apic-register" | "delivery-mode" | "msr";

/** A tracepoint. */
export interface TracepointSpec {
  /** Its name under events/kvm. */
  readonly name: string;
  /** Whether the table of 2012 has a row of that name. */
  readonly in2012: boolean;
  /** Its arguments: a name and how it prints; "hex64" takes two words, low first. */
  readonly args: readonly (readonly [name: string, format: ArgFormat])[];
  /** When it fires. */
  readonly fires: string;
}

interface Row {
  readonly args: TracepointSpec["args"];
  readonly fires: string;
  /** No row of the 2012 table stands for it. */
  readonly later?: boolean;
}

/** Every tracepoint: the order is that of the 2012 table, then the ones that came later. */
export const KVM_EVENTS = {
  kvm_entry: { args: [["rip", "hex64"]], fires: "each hardware entry, fast re-entries included" },
  kvm_hypercall: {
    args: [["nr", "hex64"], ["a0", "hex64"]],
    fires: "each KVM hypercall, before masking and the CPL check",
  },
  kvm_pio: {
    args: [["write", "bool"], ["port", "hex"], ["size", "dec"], ["val", "hex"]],
    fires: "each port access",
  },
  kvm_cpuid: {
    args: [["func", "hex"], ["index", "hex"], ["eax", "hex"], ["found", "bool"]],
    fires: "each CPUID emulation",
  },
  kvm_apic: {
    args: [["write", "bool"], ["reg", "apic-register"], ["val", "hex64"]],
    fires: "each emulated local APIC register access",
  },
  kvm_exit: {
    args: [["reason", "exit"], ["rip", "hex"], ["info1", "hex64"]],
    fires: "each hardware exit, before any handling",
  },
  kvm_inj_virq: {
    args: [["irq", "dec"], ["reinjected", "bool"]],
    fires: "an interrupt is written for injection",
  },
  kvm_inj_exception: {
    args: [["vector", "dec"], ["error_code", "hex"], ["reinjected", "bool"]],
    fires: "an exception is written for injection",
  },
  kvm_page_fault: {
    args: [["address", "hex64"], ["error_code", "hex64"]],
    fires: "each EPT violation or nested page fault",
  },
  kvm_msr: {
    args: [["write", "bool"], ["msr", "msr"], ["data", "hex64"], ["exception", "bool"]],
    fires: "each emulated MSR access, after it",
  },
  kvm_cr: { args: [["write", "bool"], ["cr", "dec"], ["val", "hex"]], fires: "each control-register exit" },
  kvm_apic_ipi: { args: [["icr_low", "hex"], ["dest", "hex"]], fires: "each emulated ICR or self-IPI send" },
  kvm_apic_accept_irq: {
    args: [["apicid", "hex"], ["delivery_mode", "delivery-mode"], ["trig_mode", "bool"], ["vec", "dec"]],
    fires: "each delivery attempt to one local APIC, even if dropped",
  },
  kvm_eoi: { args: [["apicid", "hex"], ["vector", "dec"]], fires: "every EOI that software sees" },
  kvm_pv_eoi: { args: [["apicid", "hex"], ["vector", "dec"]], fires: "a PV EOI is found to have happened" },
  kvm_emulate_insn: {
    args: [["rip", "hex"], ["opcode", "dec"]],
    fires: "each instruction that software emulates",
  },
  vcpu_match_mmio: {
    args: [["gpa", "hex64"], ["write", "bool"]],
    fires: "an access hits the cached MMIO address",
  },
  kvm_userspace_exit: { args: [["reason", "dec"]], fires: "each return to user space" },
  kvm_set_irq: {
    args: [["gsi", "dec"], ["level", "bool"]],
    fires: "a line is set from user space or a device",
  },
  kvm_ioapic_set_irq: {
    args: [["pin", "dec"], ["entry", "hex64"], ["coalesced", "bool"]],
    fires: "an I/O APIC pin is set",
  },
  kvm_msi_set_irq: {
    args: [["address", "hex64"], ["data", "hex"]],
    fires: "a message-signalled interrupt is injected",
  },
  kvm_ack_irq: { args: [["irqchip", "dec"], ["pin", "dec"]], fires: "an EOI reaches an I/O APIC pin" },
  kvm_mmio: {
    args: [["type", "dec"], ["len", "dec"], ["gpa", "hex64"], ["val", "hex"]],
    fires: "each MMIO fragment: 0 a read without answer, 1 a read, 2 a write",
  },
  kvm_fpu: { args: [["load", "bool"]], fires: "KVM_RUN is entered or left" },
  kvm_halt_poll_ns: {
    args: [["grow", "bool"], ["new", "dec"], ["old", "dec"]],
    fires: "the poll window changes",
    later: true,
  },
  kvm_vcpu_wakeup: {
    args: [["ns", "dec"], ["waited", "bool"], ["valid", "bool"]],
    fires: "a halt ends",
    later: true,
  },
  kvm_ioapic_delayed_eoi_inj: {
    args: [["entry", "hex64"]],
    fires: "an interrupt storm is slowed down",
    later: true,
  },
  kvm_apicv_accept_irq: {
    args: [["apicid", "hex"], ["delivery_mode", "delivery-mode"], ["trig_mode", "bool"], ["vec", "dec"]],
    fires: "software hands an interrupt to the hardware that delivers it",
    later: true,
  },
  kvm_apicv_inhibit_changed: {
    args: [["reason", "dec"], ["set", "bool"], ["inhibits", "hex"]],
    fires: "a reason against APICv comes or goes",
    later: true,
  },
  kvm_avic_incomplete_ipi: {
    args: [["vcpu", "dec"], ["icrh", "hex"], ["icrl", "hex"], ["id", "dec"], ["index", "dec"]],
    fires: "each AVIC incomplete-IPI exit",
    later: true,
  },
  kvm_avic_unaccelerated_access: {
    args: [["vcpu", "dec"], ["offset", "apic-register"], ["ft", "bool"], ["rw", "bool"], ["vec", "dec"]],
    fires: "each AVIC unaccelerated-access exit",
    later: true,
  },
  kvm_avic_kick_vcpu_slowpath: {
    args: [["icrh", "hex"], ["icrl", "hex"], ["index", "dec"]],
    fires: "the targets of an incomplete IPI are looked for among all vCPUs",
    later: true,
  },
  kvm_avic_doorbell: {
    args: [["vcpu", "dec"], ["apicid", "hex"]],
    fires: "software rings a doorbell",
    later: true,
  },
  kvm_hv_timer_state: {
    args: [["vcpu_id", "dec"], ["in_use", "bool"]],
    fires: "the timer's backend changes",
    later: true,
  },
} as const;

/** The name of a tracepoint. */
export type Tracepoint = keyof typeof KVM_EVENTS;

/** Every tracepoint, by number. */
export const TRACEPOINTS: readonly TracepointSpec[] = Object.entries<Row>(KVM_EVENTS).map(([name, row]) => ({
  name,
  in2012: !row.later,
  args: row.args,
  fires: row.fires,
}));

/** The tracepoints' numbers. */
export const TP: Readonly<Record<Tracepoint, number>> = Object.freeze(
  Object.fromEntries(TRACEPOINTS.map(({ name }, number) => [name, number])) as Record<Tracepoint, number>,
);
