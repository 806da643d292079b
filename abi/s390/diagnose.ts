/**
 * DIAGNOSE: the instruction of every call from an s390 guest to its host. RS-a format, four bytes, big-endian:
 *
 *     0        8    12   16   20           31
 *     +--------+----+----+----+------------+
 *     |   83   | R1 | R3 | B2 |     D2     |
 *     +--------+----+----+----+------------+
 *
 * The function code is the second operand's address, D2 plus the register B2 where that is not 0, cut to 16 bits.
 *
 * @module
 */

import type { FieldValues, InstructionFormat } from "../instruction_format.ts";

/** The fields of a DIAGNOSE. */
export type DiagField = "r1" | "r3" | "b2" | "d2";

/** DIAGNOSE, as KVM's own calls have it. */
export const S390_DIAG: InstructionFormat<DiagField> = {
  name: "DIAGNOSE",
  text: "diag %r2, %r4, 0x500",
  unitBytes: 2,
  units: [0x8324, 0x0500],
  fields: {
    r1: { low: 4, bits: 4, meaning: "the register of the first operand; means nothing to 0x500" },
    r3: { low: 0, bits: 4, meaning: "the register of the third operand; means nothing to 0x500" },
    b2: { unit: 1, low: 12, bits: 4, meaning: "the base register of the function code; 0: none" },
    d2: { unit: 1, low: 0, bits: 12, meaning: "the displacement: the code itself where there is no base" },
  },
};

/**
 * The function code of an instruction, where `gpr` reads general registers: base and displacement, modulo 2^16, as KVM
 * computes it (kvm_s390_get_base_disp_rs).
 */
export function diagCode(
  { b2, d2 }: Pick<FieldValues<DiagField>, "b2" | "d2">,
  gpr: (register: number) => bigint,
): number {
  const base = b2 === 0 ? 0n : gpr(b2);
  return Number(BigInt.asUintN(16, base + BigInt(d2)));
}

/** An operand of a DIAGNOSE. */
export interface DiagOperand {
  /** Its name, as the typed call spells it. */
  readonly name: string;
  /** What it means. */
  readonly meaning: string;
}

/** A function of DIAGNOSE. */
export interface DiagSpec {
  /** The function code. */
  readonly code: number;
  /** What the register that R1 names holds; null where the field means nothing. */
  readonly r1: DiagOperand | null;
  /** What the register that R3 names holds; null where the field means nothing. */
  readonly r3: DiagOperand | null;
  /** Where the answer comes: in one of the registers named, in that behind R1, in gpr 2, or nowhere. */
  readonly result: "r1 + 1" | "r3" | "gpr2" | "none";
  /** Who serves it: KVM itself, user space, or KVM where it can and else user space. */
  readonly servedBy: "kernel" | "user space" | "both";
  /** Purpose. */
  readonly meaning: string;
}

/** The functions that are modelled; names after asm/sie.h's diagnose_codes. */
export const DIAGNOSES = {
  RELEASE_PAGES: {
    code: 0x10,
    r1: { name: "first", meaning: "the first page's address" },
    r3: { name: "last", meaning: "the last page's address" },
    result: "none",
    servedBy: "kernel",
    meaning: "the guest does not need the contents of some pages any more",
  },
  TIME_SLICE_END: {
    code: 0x44,
    r1: null,
    r3: null,
    result: "none",
    servedBy: "kernel",
    meaning: "gives up the rest of a time slice to whoever may need it",
  },
  TIME_SLICE_END_DIRECTED: {
    code: 0x9c,
    r1: { name: "cpuAddress", meaning: "the CPU to run instead" },
    r3: null,
    result: "none",
    servedBy: "kernel",
    meaning: "gives up the rest of a time slice to one CPU",
  },
  PAGE_REFERENCE_SERVICES: {
    code: 0x258,
    r1: { name: "block", meaning: "the parameter block's real address" },
    r3: { name: "preset", meaning: "what the result register holds before" },
    result: "r3",
    servedBy: "kernel",
    meaning: "the handshake of pseudo page faults (pfault)",
  },
  IPL_FUNCTIONS: {
    code: 0x308,
    r1: { name: "block", meaning: "an IPL parameter block's address, in an even register" },
    r3: { name: "subcode", meaning: "what to do" },
    result: "r1 + 1",
    servedBy: "both",
    meaning: "reset, IPL, and the parameters of the next IPL",
  },
  KVM_VIRTIO_FUNCTIONS: {
    code: 0x500,
    r1: null,
    r3: null,
    result: "gpr2",
    servedBy: "both",
    meaning: "KVM's own calls: a subcode in gpr 1, parameters from gpr 2 on",
  },
  KVM_BREAKPOINT: {
    code: 0x501,
    r1: null,
    r3: null,
    result: "none",
    servedBy: "user space",
    meaning: "stops for a debugger that planted the instruction",
  },
} as const satisfies Record<string, DiagSpec>;

/** The name of a function. */
export type DiagName = keyof typeof DIAGNOSES;
