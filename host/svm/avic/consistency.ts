/**
 * What VMRUN checks of AVIC's fields (APM volume 2, 15.29.2 and 15.29.4): an inconsistent VMCB is no entry, but
 * VMEXIT_INVALID.
 *
 * @module
 */

import { AVIC_MAX_PHYSICAL_ID, X2AVIC_MAX_PHYSICAL_ID } from "../../../abi/mod.ts";
import type { HostMemory } from "../../memory/mod.ts";
import type { Vmcb } from "../vmcb.ts";

const PAGE_MASK = 0xfff;

/** A rule that a VMCB must keep. */
export interface AvicRule {
  /** What must hold. */
  readonly rule: string;
  /** Whether it does. */
  holds(vmcb: Vmcb, memory: HostMemory): boolean;
}

function pointer(what: string, of: (vmcb: Vmcb) => number, used: (vmcb: Vmcb) => boolean): AvicRule {
  return {
    rule: `${what} is the address of a page`,
    holds: (vmcb, memory) =>
      !used(vmcb) || ((of(vmcb) & PAGE_MASK) === 0 && memory.find(of(vmcb)) !== undefined),
  };
}

/** The rules. The manual names no code for pointers beyond memory; here they are one with the others. */
export const AVIC_RULES: readonly AvicRule[] = [
  { rule: "x2AVIC is enabled with AVIC alone", holds: ({ avic, x2avic }) => avic || !x2avic },
  {
    rule: "AVIC_PHYSICAL_MAX_INDEX is at most 255 in xAPIC mode",
    holds: ({ avic, x2avic, avicMaxIndex }) => !avic || x2avic || avicMaxIndex <= AVIC_MAX_PHYSICAL_ID + 1,
  },
  {
    rule: "AVIC_PHYSICAL_MAX_INDEX is at most 511 in x2APIC mode",
    holds: ({ avic, x2avic, avicMaxIndex }) => !avic || !x2avic || avicMaxIndex <= X2AVIC_MAX_PHYSICAL_ID,
  },
  pointer("APIC_BACKING_PAGE", (vmcb) => vmcb.avicBackingPage, (vmcb) => vmcb.avic),
  pointer("PHYSICAL_TABLE", (vmcb) => vmcb.avicPhysicalTable, (vmcb) => vmcb.avic),
  pointer("LOGICAL_TABLE", (vmcb) => vmcb.avicLogicalTable, (vmcb) => vmcb.avic && !vmcb.x2avic),
];

/** The rules that a VMCB breaks. */
export function brokenAvicRules(vmcb: Vmcb, memory: HostMemory): AvicRule[] {
  return AVIC_RULES.filter(({ holds }) => !holds(vmcb, memory));
}
