/**
 * Guests under the dirty log, for tests of what is logged, and when.
 *
 * @module
 */

import type { Slot, Vm, VmOptions } from "../../host/mod.ts";
import { Rig, type RigOptions } from "./guests.ts";

/** Bytes of a page. */
export const PAGE = 4096;
/** A slot of its own: what the log says of it is all the guest's doing. */
export const BASE: number = 2 ** 30;
/** Pages of that. */
export const PAGES = 130;

/** A rig with a slot of 130 pages, a guest without tables, and no disk: only the log makes KVM track pages. */
export function loggingRig(
  backend: Vm["backend"],
  vm: VmOptions = {},
  machine: RigOptions["machine"] = {},
): Rig {
  return new Rig({
    machine: { staleness: true, ...machine },
    vm: { backend, slots: [{ base: BASE, size: PAGES * PAGE }], ...vm },
  });
}

/** That slot. */
export function slotOf(vm: Vm): Slot {
  return vm.memory.find(BASE, 1)!;
}

/** The pages that a bitmap has. */
export function pages(bitmap: Uint32Array): number[] {
  return [...Array(32 * bitmap.length).keys()].filter((page) => (bitmap[page >> 5] >>> (page & 31)) & 1);
}

/** What user space does at each write to port 0x80, in its order; the guest is in no guest mode meanwhile. */
export function userspace(vm: Vm, ...acts: readonly (() => void)[]): void {
  const rest = [...acts];
  vm.userspacePioDevice = { access: () => void rest.shift()!() };
}
