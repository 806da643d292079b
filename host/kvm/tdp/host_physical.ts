/**
 * Where the host has a page of a slot.
 *
 * @module
 */

import type { Slot } from "../../memory/mod.ts";

/** The host-physical address of a guest-physical one that a slot backs. */
export function hostPhysical(slot: Slot, gpa: number): number {
  return slot.host + gpa - slot.base;
}
