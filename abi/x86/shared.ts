/**
 * Structures that an x86 guest shares with KVM through memory (Documentation/virt/kvm/x86/msr.rst).
 *
 * @module
 */

import { type Layout, layout } from "../layout.ts";

/**
 * What MSR_KVM_PV_EOI_EN points to. The guest uses an unsigned long; the host touches the first byte alone, whose
 * bit 0 says that the EOI can be signalled by clearing it.
 */
export const PV_EOI: Layout<"flag" | "pad"> = layout("kvm_apic_eoi", { flag: "u8", pad: ["u8", 7] }, {
  align: 4,
});

/** The bit of {@linkcode PV_EOI}'s flag (arch/x86/include/uapi/asm/kvm_para.h). */
export const KVM_PV_EOI_BIT = 0;
/** The flag's value while the host allows the short way. */
export const KVM_PV_EOI_ENABLED = 1;

/** What KVM_HC_CLOCK_PAIRING writes: a time of the host's, and the guest's TSC at that moment. */
export const KVM_CLOCK_PAIRING: Layout<"sec" | "nsec" | "tsc" | "flags" | "pad"> = layout(
  "kvm_clock_pairing",
  {
    sec: "s64",
    nsec: "s64",
    tsc: "u64",
    flags: "u32",
    pad: ["u32", 9],
  },
  { align: 8 },
);

/** The only clock that can be asked for: the host's CLOCK_REALTIME. */
export const KVM_CLOCK_PAIRING_WALLCLOCK = 0;

/** An IDT gate in 64-bit mode (SDM 3A figure 6-8). */
export const IDT_GATE64: Layout<
  "offsetLow" | "selector" | "ist" | "type" | "offsetMiddle" | "offsetHigh" | "reserved"
> = layout("gate_desc64", {
  offsetLow: "u16",
  selector: "u16",
  ist: "u8",
  type: "u8",
  offsetMiddle: "u16",
  offsetHigh: "u32",
  reserved: "u32",
});

/** An IDT gate in 32-bit protected mode (SDM 3A figure 6-2). */
export const IDT_GATE32: Layout<"offsetLow" | "selector" | "zero" | "type" | "offsetHigh"> = layout(
  "gate_desc32",
  {
    offsetLow: "u16",
    selector: "u16",
    zero: "u8",
    type: "u8",
    offsetHigh: "u16",
  },
);

/** Gate type: present, DPL 0, interrupt gate: IF is cleared. */
export const GATE_INTERRUPT = 0x8e;
/** Gate type: present, DPL 0, trap gate: IF is kept. */
export const GATE_TRAP = 0x8f;
/** Gate type bit 7: present. */
export const GATE_PRESENT = 0x80;

/** LIDT's memory operand in 64-bit mode. */
export const DESCRIPTOR_PTR64: Layout<"limit" | "base"> = layout("desc_ptr", { limit: "u16", base: "u64" });
