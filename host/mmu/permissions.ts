/**
 * Which accesses the guest's tables allow (SDM 3A 4.6.1), and the error codes of those that they do not (4.7).
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { AccessKind, Mapping, PagingState, Rights } from "./translation.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { CR0_WP, CR4_PAE, CR4_SMAP, CR4_SMEP, EFER_NX, PFERR_FETCH, PFERR_USER, PFERR_WRITE } = abi;

/** Whether the guest's rights allow an access. */
export function permits(rights: Rights, access: AccessKind, state: PagingState): boolean {
  const executable = rights.executable || (state.efer & EFER_NX) === 0;
  if (isUserMode(access)) {
    if (!rights.user) return false;
    return access.fetch ? executable : rights.writable || !access.write;
  }
  if (access.fetch) return executable && !(rights.user && (state.cr4 & CR4_SMEP) !== 0);
  if (rights.user && (state.cr4 & CR4_SMAP) !== 0 && (!state.ac || access.implicit === true)) return false;
  return !access.write || rights.writable || (state.cr0 & CR0_WP) === 0;
}

/**
 * Whether a mapping serves an access without a walk: both dimensions allow it, and it sets no dirty flag. Otherwise a
 * walk tells what happens.
 */
export function serves(mapping: Mapping, access: AccessKind, state: PagingState): boolean {
  if (access.write && !mapping.dirty) return false;
  const { host } = mapping;
  if (host !== undefined) {
    if (access.fetch ? !host.executable : access.write ? !host.writable || !host.dirty : !host.readable) {
      return false;
    }
  }
  return permits(mapping, access, state);
}

/** The error code of a page fault: `cause` is PFERR_PRESENT, or PFERR_PRESENT and PFERR_RSVD, or neither. */
export function pageFaultCode(
  access: AccessKind,
  state: Pick<PagingState, "cr4" | "efer">,
  cause: number,
): number {
  const tellsFetch = (state.cr4 & CR4_SMEP) !== 0 ||
    ((state.cr4 & CR4_PAE) !== 0 && (state.efer & EFER_NX) !== 0);
  return cause | (access.write ? PFERR_WRITE : 0) | (isUserMode(access) ? PFERR_USER : 0) |
    (access.fetch && tellsFetch ? PFERR_FETCH : 0);
}

/** A user-mode access: made at CPL 3, and not for the processor itself. */
function isUserMode(access: AccessKind): boolean {
  return access.user && access.implicit !== true;
}
