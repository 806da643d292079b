/**
 * Emulation of a whole instruction where an exit leaves it to software (kvm_emulate_instruction): of those that access
 * memory, or MSRs.
 *
 * @module
 */

import { OP_RDMSR, OP_WRMSR } from "../../abi/mod.ts";
import { emulateMemoryAccess, startEmulation } from "./emulate.ts";
import { emulateRdmsr, emulateWrmsr } from "./msr.ts";
import type { Vcpu } from "./vcpu.ts";

/** Emulates the pending instruction. */
export function emulateInstruction(vcpu: Vcpu): void {
  const { pending } = vcpu.processor.context;
  if (pending !== OP_RDMSR && pending !== OP_WRMSR) return emulateMemoryAccess(vcpu);
  startEmulation(vcpu);
  if (pending === OP_RDMSR) emulateRdmsr(vcpu);
  else emulateWrmsr(vcpu);
}
