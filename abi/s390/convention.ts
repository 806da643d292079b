/**
 * s390's hypercall convention (Documentation/virt/kvm/s390/s390-diag.rst; arch/s390/include/asm/kvm_para.h).
 *
 * @module
 */

import { type Convention, raises } from "../convention.ts";
import { S390_DIAG } from "./diagnose.ts";
import { PGM_PRIVILEGED_OP, PGM_SPECIFICATION, programInterruptionName } from "./interruptions.ts";

/** A general register's name. */
export type S390Register = "gpr1" | "gpr2" | "gpr3" | "gpr4" | "gpr5" | "gpr6" | "gpr7";

/**
 * s390's convention. The number is a subcode of DIAGNOSE 0x500 and no KVM_HC_* number. Whole registers count. The result
 * takes the place of the first argument; where a call interrupts the program, all registers keep what they hold.
 */
export const S390_CONVENTION: Convention<S390Register> = {
  arch: "s390",
  instructions: [S390_DIAG],
  byteOrder: "big",
  number: "gpr1",
  arguments: ["gpr2", "gpr3", "gpr4", "gpr5", "gpr6", "gpr7"],
  results: ["gpr2"],
  widths: {
    narrowMode: null,
    number: { wide: "u64", narrow: "u64" },
    arguments: { wide: "u64", narrow: "u64" },
    results: { wide: "u64", narrow: "u64" },
  },
  errors: {
    status: "value-or-negative-errno",
    unknown: raises(programInterruptionName(PGM_SPECIFICATION), PGM_SPECIFICATION),
    fromUserMode: raises(programInterruptionName(PGM_PRIVILEGED_OP), PGM_PRIVILEGED_OP),
  },
  advance: "hardware",
  discovery:
    'STSI 3.2.2: the first control-program identification begins with "KVM" in EBCDIC; no feature words',
  clobbers: ["memory", "cc"],
};

/** The number of a general register. */
export function s390RegisterNumber(name: S390Register): number {
  return Number(name.slice("gpr".length));
}
