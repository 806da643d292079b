/**
 * How KVM has the processor that it runs on invalidate translations.
 *
 * @module
 */

import type { Invalidation } from "../../mmu/mod.ts";
import type { Vcpu } from "../vcpu.ts";

/**
 * Executes an operation on the CPU that a vCPU's thread runs on. While nobody has translated an address there is no TLB:
 * then there is nothing to drop, and it costs nothing.
 */
export function invalidateTlb(vcpu: Vcpu, operation: Invalidation): void {
  const tlb = vcpu.pcpu!.tlbInUse;
  if (tlb === undefined) return;
  vcpu.charge(vcpu.cost.invalidateTlb);
  tlb.invalidate(operation);
}
