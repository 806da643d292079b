/**
 * Exceptions (SDM 3A 6.3, table 6-1): their vectors, which push an error code, how two of them combine, and what a
 * guest's `try ... catch` sees once a handler has ended in a fixup.
 *
 * @module
 */

import type { Vector } from "../brand.ts";
import { hex } from "../bits.ts";

/** An exception of the processor. */
export interface ExceptionSpec {
  /** Its vector. */
  readonly vector: Vector;
  /** The manual's mnemonic, without `#`. */
  readonly mnemonic: string;
  /** The manual's name. */
  readonly name: string;
  /** Whether delivery pushes an error code. */
  readonly errorCode: boolean;
  /** How it combines with a second one during delivery (SDM 3A table 6-4). */
  readonly severity: "benign" | "contributory" | "page-fault" | "double-fault";
}

function exception(
  vector: number,
  mnemonic: string,
  name: string,
  errorCode: boolean,
  severity: ExceptionSpec["severity"],
): ExceptionSpec {
  return { vector: vector as Vector, mnemonic, name, errorCode, severity };
}

/** Every exception of the SDM that has a vector of its own. */
export const EXCEPTIONS: readonly ExceptionSpec[] = [
  exception(0, "DE", "divide error", false, "contributory"),
  exception(1, "DB", "debug", false, "benign"),
  exception(3, "BP", "breakpoint", false, "benign"),
  exception(4, "OF", "overflow", false, "benign"),
  exception(5, "BR", "BOUND range exceeded", false, "benign"),
  exception(6, "UD", "invalid opcode", false, "benign"),
  exception(7, "NM", "device not available", false, "benign"),
  exception(8, "DF", "double fault", true, "double-fault"),
  exception(10, "TS", "invalid TSS", true, "contributory"),
  exception(11, "NP", "segment not present", true, "contributory"),
  exception(12, "SS", "stack-segment fault", true, "contributory"),
  exception(13, "GP", "general protection", true, "contributory"),
  exception(14, "PF", "page fault", true, "page-fault"),
  exception(16, "MF", "x87 floating-point error", false, "benign"),
  exception(17, "AC", "alignment check", true, "benign"),
  exception(18, "MC", "machine check", false, "benign"),
  exception(19, "XM", "SIMD floating-point exception", false, "benign"),
  exception(20, "VE", "virtualization exception", false, "page-fault"),
  exception(21, "CP", "control protection", true, "contributory"),
];

/** #DB. */
export const DB_VECTOR = 1;
/** The non-maskable interrupt. */
export const NMI_VECTOR = 2;
/** #BP. */
export const BP_VECTOR = 3;
/** #UD. */
export const UD_VECTOR = 6;
/** #DF. */
export const DF_VECTOR = 8;
/** #NP. */
export const NP_VECTOR = 11;
/** #GP. */
export const GP_VECTOR = 13;
/** #PF. */
export const PF_VECTOR = 14;

/** Page-fault error code: the page was present (a protection violation). */
export const PFERR_PRESENT = 1 << 0;
/** Page-fault error code: the access was a write. */
export const PFERR_WRITE = 1 << 1;
/** Page-fault error code: the access was made at CPL 3. */
export const PFERR_USER = 1 << 2;

const BY_VECTOR: ReadonlyMap<number, ExceptionSpec> = new Map(EXCEPTIONS.map((e) => [e.vector, e]));

/** The exception of a vector; undefined for an interrupt's. */
export function exceptionOf(vector: number): ExceptionSpec | undefined {
  return BY_VECTOR.get(vector);
}

/** `#GP` for 13, and so on; `vector N` where no exception has that vector. */
export function exceptionName(vector: number): string {
  const spec = BY_VECTOR.get(vector);
  return spec === undefined ? `vector ${vector}` : `#${spec.mnemonic}`;
}

/** What an instruction throws into the guest function that issued it, when its fault's handler ended as a fixup. */
export class X86Fault extends Error {
  /** The exception's name. */
  override readonly name: string = "X86Fault";
  /** The exception's vector. */
  readonly vector: Vector;
  /** The error code that was delivered; 0 where the exception has none. */
  readonly errorCode: number;
  /** The instruction that faulted, as an assembler spells it. */
  readonly instruction: string;

  /** A fault with `vector` and `errorCode`, raised by `instruction`. */
  constructor(vector: Vector, errorCode: number, instruction: string) {
    super(`Cannot execute ${instruction}: ${exceptionName(vector)}(${hex(errorCode)})`);
    this.vector = vector;
    this.errorCode = errorCode;
    this.instruction = instruction;
  }
}

/** #UD, invalid opcode. */
export class InvalidOpcode extends X86Fault {
  /** The exception's name. */
  override readonly name = "InvalidOpcode";
}

/** #GP, general protection. */
export class GeneralProtection extends X86Fault {
  /** The exception's name. */
  override readonly name = "GeneralProtection";
}

/** #PF, page fault. */
export class PageFault extends X86Fault {
  /** The exception's name. */
  override readonly name = "PageFault";
}

/** The fault object of a vector. */
export function faultOf(vector: Vector, errorCode: number, instruction: string): X86Fault {
  switch (vector) {
    case UD_VECTOR as Vector:
      return new InvalidOpcode(vector, errorCode, instruction);
    case GP_VECTOR as Vector:
      return new GeneralProtection(vector, errorCode, instruction);
    case PF_VECTOR as Vector:
      return new PageFault(vector, errorCode, instruction);
    default:
      return new X86Fault(vector, errorCode, instruction);
  }
}
