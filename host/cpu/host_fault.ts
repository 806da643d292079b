/**
 * Faults of the second dimension, as a processor takes them: an exit, or an access to what is no memory.
 *
 * @module
 */

import { EPT_VIOLATION_TRANSLATED, hex, PFERR_GUEST_FINAL, PFERR_GUEST_PAGE } from "../../abi/mod.ts";
import { type Access, READS, WRITES } from "../mmu/demand.ts";
import { eptViolation, type HostFault } from "../mmu/mod.ts";
import { FAULTED, VIRTUALIZED } from "./mmu.ts";
import type { Processor } from "./processor.ts";

/** EPT or nested tables are against it: KVM's business, or no memory at all. {@linkcode FAULTED}, or {@linkcode VIRTUALIZED}. */
export function takeHostFault(
  p: Processor,
  fault: HostFault,
  { access, bytes }: { readonly access: Access; readonly bytes: number },
): number {
  if (fault.kind === "ept violation") {
    for (const operation of eptViolation(fault.physical, fault.linear)) p.mmu!.invalidate(operation);
  }
  const { memory, virtualization } = p;
  const plain = access === WRITES ? memory.writable(fault.physical, 1) : memory.backed(fault.physical, 1);
  const program = access === READS || access === WRITES;
  if (!plain && !program && fault.kind !== "ept misconfiguration") {
    throw p.error(
      `it executes, or has a table, at guest-physical ${hex(fault.physical)}: no memory is there`,
    );
  }
  // A table is no operand, wherever it is: KVM's own walk will tell what the access comes to.
  if (plain || fault.kind === "ept misconfiguration" || !isFinal(fault)) {
    virtualization.hostFault(p, fault);
    return FAULTED;
  }
  return virtualization.unbacked(p, fault.physical, bytes, access === WRITES) ? FAULTED : VIRTUALIZED;
}

/** Whether a fault is of the access that the guest's tables lead to; otherwise it is of one to them. */
function isFinal(fault: HostFault): boolean {
  switch (fault.kind) {
    case "ept violation":
      return (fault.qualification & EPT_VIOLATION_TRANSLATED) !== 0;
    case "nested page fault":
      return fault.errorCode % PFERR_GUEST_PAGE >= PFERR_GUEST_FINAL;
    default:
      return false;
  }
}
