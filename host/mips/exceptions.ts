/**
 * Exceptions of the guest that its processor delivers without the host (MIPS64 Architecture, volume III, "Exceptions").
 *
 * @module
 */

import {
  hex,
  MachineFault,
  MIPS_CAUSE_BD,
  MIPS_CAUSE_CE,
  MIPS_CAUSE_CE_SHIFT,
  MIPS_CAUSE_EXCCODE,
  MIPS_CAUSE_EXCCODE_SHIFT,
  MIPS_CP0,
  MIPS_EXCEPTIONS,
  MIPS_STATUS_EXL,
  MIPS_VECTOR_GENERAL,
  MIPS_VECTOR_REFILL,
  type MipsException,
  mipsRegisterAddress,
  mipsUnmapped,
} from "../../abi/mod.ts";
import type { MipsVcpu } from "./vcpu.ts";

/** What else there is to say of an exception. */
export interface ExceptionDetails {
  /** The address that it is about. */
  readonly badVAddr?: bigint;
  /** The coprocessor that was not usable. */
  readonly coprocessor?: number;
}

/**
 * The instruction at the program counter causes an exception: EPC, Cause, Status.EXL, and on at the vector. Errors where
 * nothing is at the vector: memory full of NOPs would lead anywhere.
 */
export function deliverException(
  vcpu: MipsVcpu,
  name: MipsException,
  { badVAddr, coprocessor = 0 }: ExceptionDetails = {},
): void {
  const { context } = vcpu;
  const { code } = MIPS_EXCEPTIONS[name];
  const slot = vcpu.branchTarget !== undefined;
  const status = Number(context.system(MIPS_CP0.status) & 0xffff_ffffn);
  const nested = (status & MIPS_STATUS_EXL) !== 0;
  let cause = Number(context.system(MIPS_CP0.cause) & 0xffff_ffffn) & ~(MIPS_CAUSE_EXCCODE | MIPS_CAUSE_CE);
  cause |= (code << MIPS_CAUSE_EXCCODE_SHIFT) | (coprocessor << MIPS_CAUSE_CE_SHIFT);
  if (!nested) {
    context.setSystem(MIPS_CP0.epc, mipsRegisterAddress(slot ? context.pc - 4 : context.pc));
    cause = slot ? cause | MIPS_CAUSE_BD : cause & ~MIPS_CAUSE_BD;
  }
  context.setSystem(MIPS_CP0.cause, cause >>> 0);
  if (badVAddr !== undefined) context.setSystem(MIPS_CP0.badVAddr, badVAddr);
  const refill = !nested && badVAddr !== undefined && (name === "TLBL" || name === "TLBS");
  const base = context.sys[2 * MIPS_CP0.ebase];
  const vector = base + (refill ? MIPS_VECTOR_REFILL : MIPS_VECTOR_GENERAL);
  const at = mipsUnmapped(mipsRegisterAddress(vector));
  if (at === undefined || !vcpu.vm.words.read(Number(at), 4)) {
    throw vcpu.error(
      `${name} (${MIPS_EXCEPTIONS[name].meaning}) finds no handler at its vector, ${hex(vector)}`,
    );
  }
  const fault = new MachineFault(name, code, context.layout.instructionText(context.pending));
  context.setSystem(MIPS_CP0.status, (status | MIPS_STATUS_EXL) >>> 0);
  vcpu.branchTarget = undefined;
  context.pc = vector;
  vcpu.enterHandler(fault);
}
