/**
 * Walks of the guest's tables: in one dimension, or in two, where each address in them is guest-physical and goes
 * through EPT or nested tables itself.
 *
 *      guest       PML4E      PDPTE      PDE       PTE       page
 *                    |          |         |         |          |
 *      EPT/NPT    4 entries  4 entries  4 entries  4 entries  4 entries     4 + 5 * 4 = 24 accesses
 *
 * @module
 */

import {
  CR0_PG,
  CR4_CET,
  CR4_LA57,
  CR4_PGE,
  CR4_PKE,
  CR4_PKS,
  EFER_LMA,
  EFER_NX,
  hex,
  isCanonical,
  PAGE_SHIFT_1G,
  pageOffset,
  type PageShift,
  PFERR_PRESENT,
  PFERR_RSVD,
  PHYSICAL_ADDRESS_LIMIT,
  PTE_D,
  PTE_G,
  tableRoot,
} from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { descend, readWord, setAccessedDirty, type UsedEntry } from "./descent.ts";
import { pageFaultCode, permits } from "./permissions.ts";
import type { AccessKind, Mapping, Paging, PagingState, Rights, Translation } from "./translation.ts";

/**
 * Translates a linear address, a signed number, for an access. Sets accessed and dirty flags of an access that the
 * guest's tables allow, before the second dimension is asked about the page itself (SDM 3C 29.3.3.3: a page fault comes
 * before an EPT violation there). Throws `RangeError` for an address that is not canonical, `NotModelled` for modes
 * other than 4-level paging.
 */
export function translate(paging: Paging, linear: number, access: AccessKind): Translation {
  const { memory, state, features, second } = paging;
  if ((state.cr0 & CR0_PG) === 0) return untranslated(paging, linear, access);
  checkModelled(state);
  if (!isCanonical(linear)) {
    throw new RangeError(`Cannot translate linear address ${hex(linear)}: allowed are -2^47 to 2^47 - 1`);
  }
  const tableAccess = { write: false, fetch: false, linear };
  const descent = descend({
    memory,
    root: tableRoot(state.cr3),
    nx: (state.efer & EFER_NX) !== 0,
    features,
    ...(second && { locate: (address) => second.translate(address, { ...tableAccess, purpose: "table" }) }),
  }, linear);
  const { end, accesses, low, user, writable, executable } = descent;
  const pageFault = (cause: number): Translation => ({
    kind: "page fault",
    errorCode: pageFaultCode(access, state, cause),
    address: linear,
    accesses,
  });
  if (end === "absent") return pageFault(0);
  if (end === "reserved") return pageFault(PFERR_PRESENT | PFERR_RSVD);
  if (end !== "page") return { ...end, accesses };
  if (!permits(descent, access, state)) return pageFault(PFERR_PRESENT);
  const refused = setAccessedDirty(memory, descent, access.write, ({ address, page }: UsedEntry) => {
    if (second === undefined || page === undefined || page.writable) return undefined;
    // The way to the entry is known; it is asked once more for what the exit says.
    const found = second.translate(address, { ...tableAccess, purpose: "table update" });
    return found.kind === "page" ? undefined : found;
  });
  if (refused !== undefined) return { ...refused, accesses };
  const last = descent.entries[descent.entries.length - 1];
  return secondDimension(paging, access, {
    linear,
    physical: descent.physical,
    shift: descent.shift,
    user,
    writable,
    executable,
    global: (low & PTE_G) !== 0 && (state.cr4 & CR4_PGE) !== 0,
    dirty: (readWord(memory, last.at) & PTE_D) !== 0,
    accesses,
  });
}

/** A page as the guest's tables have it, for the byte at `linear`. */
interface GuestPage extends Rights {
  readonly linear: number;
  readonly physical: number;
  readonly shift: PageShift;
  readonly global: boolean;
  readonly dirty: boolean;
  readonly accesses: number;
}

/** CR0.PG is clear: linear addresses are physical ones, and for EPT user-mode, writable and executable. */
function untranslated(paging: Paging, linear: number, access: AccessKind): Translation {
  if (linear < 0 || linear >= PHYSICAL_ADDRESS_LIMIT) {
    throw new RangeError(
      `Cannot use linear address ${hex(linear)} without paging: allowed are 0 to 2^52 - 1`,
    );
  }
  const physical = linear - pageOffset(linear, PAGE_SHIFT_1G);
  const rights = { user: true, writable: true, executable: true };
  const shift = PAGE_SHIFT_1G;
  return secondDimension(paging, access, {
    linear,
    physical,
    shift,
    ...rights,
    global: false,
    dirty: true,
    accesses: 0,
  });
}

/** Has EPT or nested tables translate the page itself, where there are such. */
function secondDimension(paging: Paging, access: AccessKind, page: GuestPage): Translation {
  const { linear, shift, user, writable, executable, global, dirty } = page;
  const rights = { user, writable, executable };
  const offset = pageOffset(linear, shift);
  if (paging.second === undefined) {
    const mapping: Mapping = {
      linear: linear - offset,
      physical: page.physical,
      shift,
      ...rights,
      global,
      dirty,
    };
    return { kind: "mapping", mapping, accesses: page.accesses };
  }
  const { write, fetch } = access;
  const physical = page.physical + offset;
  const host = paging.second.translate(physical, { purpose: "final", write, fetch, linear, rights });
  const accesses = page.accesses + host.accesses;
  if (host.kind !== "page") return { ...host, accesses };
  const smaller = Math.min(shift, host.shift) as PageShift;
  const inside = pageOffset(linear, smaller);
  const mapping: Mapping = {
    linear: linear - inside,
    physical: host.physical + (physical - host.guest) - inside,
    shift: smaller,
    // Without paging there is no page that this could be a part of.
    ...(smaller < shift && page.accesses > 0 && { span: shift }),
    ...rights,
    global,
    dirty,
    host,
    ...(host.memoryType !== undefined && { memoryType: host.memoryType }),
  };
  return { kind: "mapping", mapping, accesses };
}

const UNMODELLED: readonly [bit: number, name: string][] = [
  [CR4_LA57, "paging of five levels (CR4.LA57)"],
  [CR4_PKE, "protection keys (CR4.PKE)"],
  [CR4_CET, "shadow stacks (CR4.CET)"],
  [CR4_PKS, "protection keys of supervisor pages (CR4.PKS)"],
];

const UNMODELLED_BITS = CR4_LA57 | CR4_PKE | CR4_CET | CR4_PKS;

function checkModelled({ cr4, efer }: PagingState): void {
  if ((efer & EFER_LMA) === 0) {
    throw new NotModelled("paging outside IA-32e mode (IA32_EFER.LMA is clear)", "SDM 3A 4.3 and 4.4");
  }
  if ((cr4 & UNMODELLED_BITS) === 0) return;
  const [, name] = UNMODELLED.find(([bit]) => (cr4 & bit) !== 0)!;
  throw new NotModelled(name, "SDM 3A 4.1.3");
}
