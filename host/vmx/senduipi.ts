/**
 * SENDUIPI in guest mode, in part (SDM 2B, and 3C 30.1.6): what it does to a user posted-interrupt descriptor, and that
 * its notification is an IPI which IPI virtualization takes up.
 *
 * Left out is all that has no part in that. The instruction is not among those that guests have: a caller looks the
 * UITT entry up, and calls {@linkcode senduipi} in the place of an instruction. KVM offers its guests no user
 * interrupts; what it would make of the APIC-write exits that this can cause is its own business: here the ICR on the
 * page stays as it was. Not confirmed: SDM 3C 30.7 may have the notification stored there first, as it is where IPIs are
 * not virtualized.
 *
 * @module
 */

import { GP_VECTOR, SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE, TERTIARY_EXEC_IPI_VIRT } from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { type Processor, raise } from "../cpu/mod.ts";
import type { VmxHardware } from "./hardware.ts";
import { ipiVirtualization } from "./ipi_virtualization.ts";

/** An entry of the user-interrupt target table: 16 bytes. */
export interface UittEntry {
  /** V, bit 0. */
  readonly valid: boolean;
  /** UV, bits 15:8: the user vector, 0 to 63. */
  readonly userVector: number;
  /** UPIDADDR, bits 127:64: where the target's descriptor is, a multiple of 64. A linear address, here not translated. */
  readonly upid: number;
}

/** Of a user posted-interrupt descriptor's first word: outstanding notification. */
const UPID_ON = 1 << 0;
/** Suppress notification. */
const UPID_SN = 1 << 1;
/** Bits 23:16: the notification vector. */
const UPID_NV_SHIFT = 16;
/** Bits 15:2 and 31:24. */
const UPID_RESERVED = 0xff00_fffc;
/** NDST, the second word, and PUIR, the third and fourth. */
const UPID_NDST = 4;
const UPID_PUIR = 8;
const USER_VECTORS = 64;

/**
 * Carries SENDUIPI out, in the place of the pending instruction: posts the user vector, and notifies unless that is
 * suppressed or outstanding. Throws {@linkcode NotModelled} for a notification that is not virtualized.
 */
export function senduipi(p: Processor, { valid, userVector, upid }: UittEntry): void {
  const { memory } = p;
  if (!valid || userVector >= USER_VECTORS || upid % 64 !== 0) return raise(p, GP_VECTOR, 0);
  if (!memory.backed(upid, 16)) throw p.error("SENDUIPI's descriptor is not in plain memory");
  const control = memory.word(upid);
  if ((control & UPID_RESERVED) !== 0) return raise(p, GP_VECTOR, 0);
  // One locked access to all 16 bytes.
  const puir = upid + UPID_PUIR + 4 * (userVector >>> 5);
  const ndst = memory.word(upid + UPID_NDST);
  const notify = (control & (UPID_ON | UPID_SN)) === 0;
  memory.setWord(puir, (memory.word(puir) | (1 << (userVector & 31))) >>> 0);
  if (notify) memory.setWord(upid, (control | UPID_ON) >>> 0);
  p.charge(p.cost.locked);
  if (notify) notifyUser(p, (control >>> UPID_NV_SHIFT) & 0xff, ndst);
  else p.retire(p.context.pending);
}

/** The notification: an ordinary IPI, to an xAPIC ID in bits 15:8, or to a whole x2APIC ID. */
function notifyUser(p: Processor, vector: number, ndst: number): void {
  const { secondary, tertiary } = (p.virtualization as VmxHardware).vmcs;
  if ((tertiary & TERTIARY_EXEC_IPI_VIRT) === 0) {
    throw new NotModelled("SENDUIPI's notification without IPI virtualization", "SDM 3C 30.7");
  }
  const x2apic = (secondary & SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) !== 0;
  p.perform(ipiVirtualization(p, vector, x2apic ? ndst : (ndst >>> 8) & 0xff));
}
