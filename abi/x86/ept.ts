/**
 * Extended page tables: the pointer to them, their entries, and what an exit says about a violation.
 *
 *      63 52 51      M M-1            12 11 10  9  8  7    6  5   3  2  1  0
 *     +-----+---------+-----------------+-----+--+--+--+----+------+--+--+--+
 *     | ign.| reserved| physical address| ign.| D| A|PS|IPAT| type | X| W| R|
 *     +-----+---------+-----------------+-----+--+--+--+----+------+--+--+--+
 *
 * An entry is present where R, W or X is set. IPAT, the type and D count where a page is mapped; elsewhere bits 6:3 are
 * reserved, and bit 7 too in a PML4E (SDM 3C 29.3.2, tables 29-1 to 29-7; not confirmed: the tables' numbers. Linux
 * checks the same bits: arch/x86/kvm/mmu/mmu.c, __reset_rsvds_bits_mask_ept). Constants are bits of the low half.
 *
 * @module
 */

import {
  beyondPhysicalHigh,
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  mapsPage,
  PTE_ADDRESS_HIGH,
} from "./paging.ts";
import { high } from "../bits.ts";

/** EPT entry bit 0: reads are allowed. */
export const EPT_R = 1 << 0;
/** EPT entry bit 1: writes are allowed. */
export const EPT_W = 1 << 1;
/** EPT entry bit 2: fetches are allowed. */
export const EPT_X = 1 << 2;
/** EPT entry bits 2:0: all rights; an entry without any is not present. */
export const EPT_RWX: number = EPT_R | EPT_W | EPT_X;
/** EPT entry bits 5:3, where a page is mapped: where its memory type begins. */
export const EPT_MEMORY_TYPE_SHIFT = 3;
/** EPT entry bit 6, where a page is mapped: ignore the guest's PAT. */
export const EPT_IPAT: number = 1 << 6;
/** EPT PDPTE and PDE bit 7: the entry maps a page of 1 GiB or 2 MiB. */
export const EPT_PS: number = 1 << 7;
/** EPT entry bit 8, with EPTP bit 6: the processor has used the entry. */
export const EPT_A: number = 1 << 8;
/** EPT entry bit 9, where a page is mapped, with EPTP bit 6: the processor has written to it. */
export const EPT_D: number = 1 << 9;

/** Memory type: uncacheable. */
export const MEMORY_TYPE_UC = 0;
/** Memory type: write combining. */
export const MEMORY_TYPE_WC = 1;
/** Memory type: write-through. */
export const MEMORY_TYPE_WT = 4;
/** Memory type: write-protected. */
export const MEMORY_TYPE_WP = 5;
/** Memory type: write-back. */
export const MEMORY_TYPE_WB = 6;

/** EPTP bits 2:0: the memory type of the structures, UC or WB. */
export const EPTP_MEMORY_TYPE = 7;
/** EPTP bits 5:3: one less than the levels of a walk. */
export const EPTP_WALK_4: number = 3 << 3;
/** EPTP bits 5:3. */
export const EPTP_WALK: number = 7 << 3;
/** EPTP bit 6: accessed and dirty flags are set; accesses to the guest's tables count as writes. */
export const EPTP_AD: number = 1 << 6;
/** EPTP bits 11:7: reserved. Bit 7 enforces rights of supervisor shadow-stack pages, which are not modelled. */
export const EPTP_RESERVED: number = 0x1f << 7;

/** What IA32_VMX_EPT_VPID_CAP, and CPUID, say about EPT. */
export interface EptFeatures {
  /** MAXPHYADDR: 32 to 52. */
  readonly maxPhysicalBits: number;
  /** Bit 0: translations that allow fetches alone. */
  readonly executeOnly: boolean;
  /** Bit 16: pages of 2 MiB. */
  readonly pages2M: boolean;
  /** Bit 17: pages of 1 GiB. */
  readonly pages1G: boolean;
  /** Bit 21: accessed and dirty flags. */
  readonly accessedDirty: boolean;
  /** Bit 22: exits tell the linear address's rights too. */
  readonly advancedExits: boolean;
}

/** Whether VM entry takes an EPT pointer (SDM 3C 27.2.1.1). Walks of five levels are not modelled. */
export function eptPointerValid(eptp: number, features: EptFeatures): boolean {
  const type = eptp & EPTP_MEMORY_TYPE;
  return (type === MEMORY_TYPE_UC || type === MEMORY_TYPE_WB) && (eptp & EPTP_WALK) === EPTP_WALK_4 &&
    ((eptp & EPTP_AD) === 0 || features.accessedDirty) && (eptp & EPTP_RESERVED) === 0 &&
    (high(eptp) & ~PTE_ADDRESS_HIGH) === 0 &&
    (high(eptp) & beyondPhysicalHigh(features.maxPhysicalBits)) === 0;
}

/** Whether a present EPT entry of a level holds what is not supported: an EPT misconfiguration (SDM 3C 29.3.3.1). */
export function eptMisconfigured(
  entry: { readonly low: number; readonly high: number },
  level: number,
  features: EptFeatures,
): boolean {
  const { low, high } = entry;
  const rights = low & EPT_RWX;
  if ((rights & EPT_R) === 0 && ((rights & EPT_W) !== 0 || !features.executeOnly)) return true;
  if ((high & beyondPhysicalHigh(features.maxPhysicalBits)) !== 0) return true;
  if ((low & reservedLow(low, level, features)) !== 0) return true;
  return mapsPage(low, level) && !isMemoryType((low >>> EPT_MEMORY_TYPE_SHIFT) & 7);
}

function reservedLow(low: number, level: number, { pages1G, pages2M }: EptFeatures): number {
  if (level === LEVEL_PML4) return 0xf8; // bits 7:3
  if (!mapsPage(low, level)) return 0x78; // bits 6:3
  if (level === LEVEL_PDPT) return pages1G ? 0x3fff_f000 : EPT_PS; // bits 29:12
  if (level === LEVEL_PD) return pages2M ? 0x001f_f000 : EPT_PS; // bits 20:12
  return 0;
}

function isMemoryType(type: number): boolean {
  return type <= MEMORY_TYPE_WC || (type >= MEMORY_TYPE_WT && type <= MEMORY_TYPE_WB);
}

/** EPT violation's exit qualification, bit 0: a data read (SDM 3C table 28-7). */
export const EPT_VIOLATION_READ: number = 1 << 0;
/** EPT violation bit 1: a data write. */
export const EPT_VIOLATION_WRITE: number = 1 << 1;
/** EPT violation bit 2: a fetch. */
export const EPT_VIOLATION_FETCH: number = 1 << 2;
/** EPT violation bits 5:3: where the rights begin that all entries allow; 0 where one is not present. */
export const EPT_VIOLATION_RIGHTS_SHIFT = 3;
/** EPT violation bit 7: there is a linear address. */
export const EPT_VIOLATION_LINEAR: number = 1 << 7;
/** EPT violation bit 8, with bit 7: the access was to what the address translates to; clear for a table's entry. */
export const EPT_VIOLATION_TRANSLATED: number = 1 << 8;
/** EPT violation bit 9, with bits 7 and 8 and advanced information: the linear address is a user-mode one. */
export const EPT_VIOLATION_USER: number = 1 << 9;
/** EPT violation bit 10, likewise: the guest's tables allow writes. */
export const EPT_VIOLATION_WRITABLE: number = 1 << 10;
/** EPT violation bit 11, likewise: the guest's tables forbid fetches. */
export const EPT_VIOLATION_NX: number = 1 << 11;
/** EPT violation bit 12: IRET had unblocked NMIs. */
export const EPT_VIOLATION_NMI_UNBLOCKING: number = 1 << 12;
