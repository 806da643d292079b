/**
 * Interruptions: their codes, and what KVM calls them (asm/sie.h, asm/irq.h, linux/kvm.h).
 *
 * @module
 */

import { hex } from "../bits.ts";

/** Operation exception: no such instruction. */
export const PGM_OPERATION = 0x01;
/** Privileged-operation exception: not in the problem state. */
export const PGM_PRIVILEGED_OP = 0x02;
/** Protection exception. */
export const PGM_PROTECTION = 0x04;
/** Addressing exception: no such memory. */
export const PGM_ADDRESSING = 0x05;
/** Specification exception: what was asked for cannot be. */
export const PGM_SPECIFICATION = 0x06;
/** Special-operation exception. */
export const PGM_SPECIAL_OPERATION = 0x13;
/** Operand exception. */
export const PGM_OPERAND = 0x15;

/** The program-interruption codes by name. */
export const PROGRAM_INTERRUPTIONS = {
  PGM_OPERATION,
  PGM_PRIVILEGED_OP,
  PGM_PROTECTION,
  PGM_ADDRESSING,
  PGM_SPECIFICATION,
  PGM_SPECIAL_OPERATION,
  PGM_OPERAND,
} as const;

/** A program-interruption code. */
export type ProgramInterruptionCode = (typeof PROGRAM_INTERRUPTIONS)[keyof typeof PROGRAM_INTERRUPTIONS];

const NAMES: Readonly<Record<ProgramInterruptionCode, string>> = {
  [PGM_OPERATION]: "operation exception",
  [PGM_PRIVILEGED_OP]: "privileged-operation exception",
  [PGM_PROTECTION]: "protection exception",
  [PGM_ADDRESSING]: "addressing exception",
  [PGM_SPECIFICATION]: "specification exception",
  [PGM_SPECIAL_OPERATION]: "special-operation exception",
  [PGM_OPERAND]: "operand exception",
};

/** A code's name, as the Principles of Operation have it. */
export function programInterruptionName(code: number): string {
  return NAMES[code as ProgramInterruptionCode] ?? `program interruption ${hex(code)}`;
}

/** The external-interruption code of CP services, pfault among them. */
export const EXT_IRQ_CP_SERVICE = 0x2603;
/** CR0: service signals, and CP services with them, are taken (bit 54). */
export const CR0_SERVICE_SIGNAL_SUBMASK = 0x200n;

/** What the CPU-address field tells of a pfault interruption: a page is missing. To the CPU that touched it. */
export const PFAULT_INIT_SUBCODE = 0x0600;
/** A page has come. To any CPU. */
export const PFAULT_DONE_SUBCODE = 0x0680;
/** The bit in which the two differ. */
export const PFAULT_COMPLETE = 0x0080;

/** KVM's types of interruptions, as KVM_S390_INTERRUPT names them (linux/kvm.h). */
export const KVM_S390_INTERRUPTS = {
  KVM_S390_PROGRAM_INT: 0xfffe_0001,
  KVM_S390_INT_PFAULT_INIT: 0xfffe_0004,
  KVM_S390_INT_PFAULT_DONE: 0xfffe_0005,
  KVM_S390_INT_VIRTIO: 0xffff_2603,
  KVM_S390_INT_SERVICE: 0xffff_2401,
} as const;
