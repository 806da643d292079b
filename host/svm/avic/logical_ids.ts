/**
 * How KVM keeps the logical APIC ID table: a vCPU's entry follows its logical destination and destination format
 * registers (avic_handle_ldr_update, avic_handle_dfr_update). In x2APIC mode there is no table: the logical ID follows
 * from the physical one.
 *
 * @module
 */

import { APIC_DFR, APIC_DFR_FLAT, APIC_LDR, AVIC_LOGICAL_VALID, lowestBit } from "../../../abi/mod.ts";
import type { Lapic } from "../../lapic/mod.ts";

/** No entry: nobody, several bits, or the cluster that means everybody. */
const NONE = -1;
/** Cluster 15 is reserved. */
const CLUSTERS = 15;

/** The place of a logical xAPIC ID in the table; -1 where it has none (avic_get_logical_id_entry). */
export function logicalIndex(logicalId: number, flat: boolean): number {
  const bits = flat ? logicalId : logicalId & 0xf;
  if (bits === 0 || (bits & (bits - 1)) !== 0) return NONE;
  if (flat) return lowestBit(bits);
  const cluster = logicalId >>> 4;
  return cluster < CLUSTERS ? 4 * cluster + lowestBit(bits) : NONE;
}

/** One vCPU's entry of the logical table. */
export class LogicalIds {
  readonly #lapic: Lapic;
  readonly #table: Uint32Array;
  /** What the entry was written for (ldr_reg, dfr_reg). */
  #ldr = 0;
  #dfr = APIC_DFR_FLAT;

  /** No entry yet. */
  constructor(lapic: Lapic, table: Uint32Array) {
    this.#lapic = lapic;
    this.#table = table;
  }

  /** The logical destination register was written. */
  ldrWritten(): void {
    const lapic = this.#lapic;
    const ldr = lapic.get(APIC_LDR);
    if (lapic.x2apicMode || ldr === this.#ldr) return;
    this.#invalidate();
    this.#ldr = ldr;
    const index = logicalIndex(ldr >>> 24, lapic.get(APIC_DFR) === APIC_DFR_FLAT);
    if (index !== NONE) this.#table[index] = AVIC_LOGICAL_VALID | lapic.xapicId;
  }

  /** The destination format register was written. The new entry comes with the logical ID: guests write that second. */
  dfrWritten(): void {
    const dfr = this.#lapic.get(APIC_DFR);
    if (dfr === this.#dfr) return;
    this.#invalidate();
    this.#dfr = dfr;
  }

  /** Software may have written either while hardware did not tell (avic_apicv_post_state_restore). */
  restore(): void {
    this.dfrWritten();
    this.ldrWritten();
  }

  #invalidate(): void {
    const index = logicalIndex(this.#ldr >>> 24, this.#dfr === APIC_DFR_FLAT);
    if (index !== NONE) this.#table[index] &= ~AVIC_LOGICAL_VALID;
  }
}
