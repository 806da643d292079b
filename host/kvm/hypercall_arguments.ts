/**
 * A hypercall's arguments, as KVM reads them from the registers: outside 64-bit code their upper halves count as 0.
 *
 * @module
 */

import { RBX, RCX, RDX, RSI } from "../../abi/mod.ts";
import type { Vcpu } from "./vcpu.ts";

/** The register of a0. */
export const A0: number = RBX;
/** The register of a1. */
export const A1: number = RCX;
/** The register of a2. */
export const A2: number = RDX;
/** The register of a3. */
export const A3: number = RSI;

/** Bits 31:0 of an argument, by its register. */
export function argumentLow(vcpu: Vcpu, register: number): number {
  return vcpu.processor.regs[register];
}

/** Bits 63:32 of an argument, by its register. */
export function argumentHigh(vcpu: Vcpu, register: number): number {
  return vcpu.processor.longMode ? vcpu.processor.regs[register + 1] : 0;
}
