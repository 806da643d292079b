/**
 * MIPS' hypercall convention (Documentation/virt/kvm/x86/hypercalls.rst, "MIPS"; arch/mips/include/asm/kvm_para.h;
 * arch/mips/kvm/hypcall.c).
 *
 * @module
 */

import { type Convention, raises, returns } from "../convention.ts";
import type { InstructionFormat } from "../instruction_format.ts";
import { KVM_ENOSYS } from "../kvm_errors.ts";
import { MIPS_EXCEPTIONS } from "./registers.ts";

/** HYPCALL code (MIPS Virtualization Module, MD00847): COP0 with CO set, function 0x28. KVM's code is 0. */
export const MIPS_HYPCALL: InstructionFormat<"code"> = {
  name: "HYPCALL",
  text: "hypcall 0",
  unitBytes: 4,
  units: [0x4200_0028],
  fields: { code: { low: 11, bits: 10, meaning: "0: KVM's hypercalls" } },
};

/**
 * MIPS' convention. A 32-bit guest's registers hold sign-extended values. Linux' helpers pass up to three arguments, hosts
 * read four. Whether a number is known depends on the host: mainline's knows none.
 */
export const MIPS_CONVENTION: Convention<"v0" | "a0" | "a1" | "a2" | "a3"> = {
  arch: "mips",
  instructions: [MIPS_HYPCALL],
  byteOrder: "guest",
  number: "v0",
  arguments: ["a0", "a1", "a2", "a3"],
  results: ["v0"],
  widths: {
    narrowMode: "32-bit guests",
    number: { wide: "u64", narrow: "s32" },
    arguments: { wide: "u64", narrow: "s32" },
    results: { wide: "u64", narrow: "s32" },
  },
  errors: {
    status: "negative-kvm-error",
    unknown: returns(BigInt(-KVM_ENOSYS)),
    // Coprocessor 0 is not usable there (MIPS64 Architecture, volume III), unless Status.CU0 is set: KVM does not look.
    fromUserMode: raises("CpU", MIPS_EXCEPTIONS.CpU.code),
  },
  advance: "host-with-delay-slot",
  discovery: "none at run time: the guest's kernel is built for a paravirtual machine (CONFIG_MIPS_PARAVIRT)",
  clobbers: ["memory"],
};
