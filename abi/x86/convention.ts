/**
 * x86's hypercall convention (Documentation/virt/kvm/x86/hypercalls.rst; arch/x86/kvm/x86.c, kvm_emulate_hypercall). What
 * guests and the host do on every call stands in {@linkcode X86Cpu.loadHypercall} and the host's dispatch; this is the same
 * as data, and tests hold both to it.
 *
 * @module
 */

import { type Convention, returns } from "../convention.ts";
import type { InstructionFormat } from "../instruction_format.ts";
import { KVM_ENOSYS, KVM_EPERM } from "../kvm_errors.ts";

/** VMCALL: Intel's. */
export const X86_VMCALL: InstructionFormat<never> = {
  name: "VMCALL",
  text: "vmcall",
  unitBytes: 1,
  units: [0x0f, 0x01, 0xc1],
  fields: {},
};

/** VMMCALL: AMD's. */
export const X86_VMMCALL: InstructionFormat<never> = {
  name: "VMMCALL",
  text: "vmmcall",
  unitBytes: 1,
  units: [0x0f, 0x01, 0xd9],
  fields: {},
};

/** x86's convention. Outside 64-bit mode each register counts with its low half alone, and the result is cut likewise. */
export const X86_CONVENTION: Convention<"rax" | "rbx" | "rcx" | "rdx" | "rsi"> = {
  arch: "x86",
  instructions: [X86_VMCALL, X86_VMMCALL],
  byteOrder: "little",
  number: "rax",
  arguments: ["rbx", "rcx", "rdx", "rsi"],
  results: ["rax"],
  widths: {
    narrowMode: "outside 64-bit mode",
    number: { wide: "u64", narrow: "u32" },
    arguments: { wide: "u64", narrow: "u32" },
    results: { wide: "u64", narrow: "u32" },
  },
  errors: {
    status: "negative-kvm-error",
    unknown: returns(BigInt(-KVM_ENOSYS)),
    fromUserMode: returns(BigInt(-KVM_EPERM)),
  },
  advance: "host",
  discovery: 'CPUID 0x40000000 to 0x4000ff00: "KVMKVMKVM" in EBX, ECX, EDX; features in the next leaf',
  clobbers: ["memory"],
};
