/**
 * What tables say now of an address, whoever asks, without a trace: no access is checked, no flag is set.
 *
 * @module
 */

import {
  CR0_PG,
  EFER_NX,
  isCanonical,
  PAGE_SHIFT_1G,
  pageOffset,
  type PageShift,
  tableRoot,
} from "../../abi/mod.ts";
import { descend } from "./descent.ts";
import type { Mapping, Paging, PhysicalMemory } from "./translation.ts";

/** A page, as the tables have it now. */
export type MappedNow = Pick<
  Mapping,
  "physical" | "shift" | "writable" | "user" | "executable" | "memoryType" | "host"
>;

/** Memory that takes no writes: walks of the second dimension set flags otherwise. */
export function readOnly(memory: PhysicalMemory): PhysicalMemory {
  return {
    word: (address) => memory.word(address),
    setWord: () => {},
    backed: (address, bytes) => memory.backed(address, bytes),
  };
}

/**
 * Looks a linear address up. `paging`'s second dimension must be over {@linkcode readOnly} memory. undefined where the
 * tables map it not.
 */
export function lookUp(paging: Paging, linear: number): MappedNow | undefined {
  const { memory, state, features, second } = paging;
  let page = { physical: linear - pageOffset(linear, PAGE_SHIFT_1G), shift: PAGE_SHIFT_1G as PageShift };
  let rights = { user: true, writable: true, executable: true };
  if ((state.cr0 & CR0_PG) !== 0) {
    if (!isCanonical(linear)) return undefined;
    const table = { write: false, fetch: false, linear, purpose: "table" } as const;
    const descent = descend({
      memory,
      root: tableRoot(state.cr3),
      nx: (state.efer & EFER_NX) !== 0,
      features,
      ...(second && { locate: (address) => second.translate(address, table) }),
    }, linear);
    if (descent.end !== "page") return undefined;
    page = descent;
    rights = { user: descent.user, writable: descent.writable, executable: descent.executable };
  }
  const { user, writable, executable } = rights;
  if (second === undefined) return { ...page, user, writable, executable };
  const guest = page.physical + pageOffset(linear, page.shift);
  const host = second.translate(guest, { purpose: "final", write: false, fetch: false, linear });
  if (host.kind !== "page") return undefined;
  const shift = Math.min(page.shift, host.shift) as PageShift;
  const physical = host.physical + (guest - host.guest) - pageOffset(linear, shift);
  const { memoryType } = host;
  return {
    physical,
    shift,
    user,
    writable,
    executable,
    host,
    ...(memoryType !== undefined && { memoryType }),
  };
}
