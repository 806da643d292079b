/**
 * The entries of KVM's page tables of the second dimension, in both formats (arch/x86/kvm/mmu/spte.c,
 * kvm_mmu_set_ept_masks and kvm_mmu_reset_all_pte_masks). The bits that hardware ignores are KVM's own:
 *
 *                        EPT       ordinary
 *     MMU_PRESENT        11        11        it is no entry for MMIO, and not empty
 *     HOST_WRITABLE      57        9         the host maps the page writable
 *     MMU_WRITABLE       58        10        a write fault may set W without a look at anything else
 *
 * Left out: bit 63 of EPT entries (suppress #VE), entries that mark MMIO (see mmio_marks.ts), tracking of accesses where
 * EPT has no accessed flag, and the workaround that maps huge pages without X (nx_huge_pages is off).
 *
 * @module
 */

import {
  entryAddress,
  EPT_A,
  EPT_D,
  EPT_IPAT,
  EPT_RWX,
  EPT_W,
  EPT_WB,
  EPT_X,
  high,
  LEVEL_PT,
  low,
  mapsPage,
  PAGE_SHIFT_2M,
  PAGE_SHIFT_4K,
  PTE_A,
  PTE_D,
  PTE_NX_HIGH,
  PTE_P,
  PTE_PS,
  PTE_RW,
  PTE_US,
  shiftOf,
} from "../../../abi/mod.ts";

/** An entry's halves. */
export interface Spte {
  /** Bits 31:0. */
  readonly low: number;
  /** Bits 63:32. */
  readonly high: number;
}

/** SPTE_MMU_PRESENT_MASK, in the low half. */
const SPTE_MMU_PRESENT = 1 << 11;
/** PT_WRITABLE_MASK, which is EPT's W too. */
export const SPTE_WRITABLE: number = PTE_RW;

/** A format of entries. */
export interface SpteFormat {
  /** Which. */
  readonly name: "ept" | "ordinary";
  /** Low half: what a page has that may be read and executed, its accessed flag included. */
  readonly leaf: number;
  /** Low half: what an entry has that leads to a table. */
  readonly table: number;
  /** Low half: the dirty flag. */
  readonly dirty: number;
  /** HOST_WRITABLE. */
  readonly hostWritable: Spte;
  /** MMU_WRITABLE. */
  readonly mmuWritable: Spte;
}

/**
 * Extended page tables. Memory is write-back and the guest's PAT is ignored (vmx_get_mt_mask): there is no device whose
 * DMA bypasses caches.
 */
export const EPT_SPTE: SpteFormat = {
  name: "ept",
  leaf: SPTE_MMU_PRESENT | (EPT_RWX & ~EPT_W) | EPT_A | EPT_WB | EPT_IPAT,
  table: SPTE_MMU_PRESENT | EPT_RWX | EPT_A,
  dirty: EPT_D,
  hostWritable: { low: 0, high: 1 << (57 - 32) },
  mmuWritable: { low: 0, high: 1 << (58 - 32) },
};

/** AMD's nested page tables. */
export const ORDINARY_SPTE: SpteFormat = {
  name: "ordinary",
  leaf: SPTE_MMU_PRESENT | PTE_P | PTE_US | PTE_A,
  table: SPTE_MMU_PRESENT | PTE_P | PTE_RW | PTE_US | PTE_A,
  dirty: PTE_D,
  hostWritable: { low: 1 << 9, high: 0 },
  mmuWritable: { low: 1 << 10, high: 0 },
};

/** What an entry for a page is made from. */
export interface SpteOptions {
  /** The page's physical address. */
  readonly physical: number;
  /** Its level: a PTE's, or a PDE's. */
  readonly level: number;
  /** The host maps the page writable: the slot is not KVM_MEM_READONLY. */
  readonly hostWritable: boolean;
}

/** make_spte: writable, and dirty at once, wherever the host's page is. */
export function makeSpte(format: SpteFormat, { physical, level, hostWritable }: SpteOptions): Spte {
  let lower = low(physical) | format.leaf | (level === LEVEL_PT ? 0 : PTE_PS);
  let upper = high(physical);
  if (hostWritable) {
    const { hostWritable: host, mmuWritable: mmu } = format;
    lower |= SPTE_WRITABLE | format.dirty | host.low | mmu.low;
    upper |= host.high | mmu.high;
  }
  return { low: lower >>> 0, high: upper >>> 0 };
}

/** make_nonleaf_spte: allows everything. */
export function makeTableSpte(format: SpteFormat, physical: number): Spte {
  return { low: (low(physical) | format.table) >>> 0, high: high(physical) };
}

/** make_small_spte: the entry for one of the pages of a huge one, all rights kept. */
export function makeSmallSpte(huge: Spte, index: number): Spte {
  const physical = spteAddress(huge, LEVEL_PT + 1) + index * 4096;
  const flags = huge.low & 0xfff & ~PTE_PS;
  return { low: (low(physical) | flags) >>> 0, high: (high(physical) | (huge.high & ~0xf_ffff)) >>> 0 };
}

/** make_huge_spte: the entry for the huge page around one of its small ones, all rights kept. */
export function makeHugeSpte({ low, high }: Spte): Spte {
  return { low: ((low & (-(1 << PAGE_SHIFT_2M) | 0xfff)) | PTE_PS) >>> 0, high };
}

/** is_shadow_present_pte: it maps a page or leads to a table. */
export function isPresent({ low }: Spte): boolean {
  return (low & SPTE_MMU_PRESENT) !== 0;
}

/** is_last_spte, of a present entry: it maps a page. */
export function isLeaf({ low }: Spte, level: number): boolean {
  return mapsPage(low, level);
}

/** is_mmu_writable_spte. */
export function isMmuWritable({ mmuWritable }: SpteFormat, { low, high }: Spte): boolean {
  return ((low & mmuWritable.low) | (high & mmuWritable.high)) !== 0;
}

/** is_access_allowed, of a present entry that maps a page. */
export function allows(format: SpteFormat, spte: Spte, access: { write: boolean; exec: boolean }): boolean {
  if (access.exec) {
    return format.name === "ept" ? (spte.low & EPT_X) !== 0 : (spte.high & PTE_NX_HIGH) === 0;
  }
  return !access.write || (spte.low & SPTE_WRITABLE) !== 0;
}

/** The physical address of what a present entry leads to: a page of its level's size, or a table. */
export function spteAddress(spte: Spte, level: number): number {
  return entryAddress(spte.low, spte.high, isLeaf(spte, level) ? shiftOf(level) : PAGE_SHIFT_4K);
}
