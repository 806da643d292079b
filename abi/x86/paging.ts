/**
 * 4-level paging: entries, CR3, and the error codes of page faults.
 *
 *      63 62    52 51        M M-1            12 11  9  8  7   6  5  4   3   2   1   0
 *     +--+--------+-----------+-----------------+-----+--+---+--+--+---+---+---+---+--+
 *     |XD| ignored| reserved  | physical address| ign.| G|PS | D| A|PCD|PWT|U/S|R/W| P|
 *     +--+--------+-----------+-----------------+-----+--+---+--+--+---+---+---+---+--+
 *
 * M is MAXPHYADDR. PS in a PDPTE or PDE says that it maps a page; in a PTE bit 7 is PAT. G and D count where a page is
 * mapped (SDM 3A 4.5.4, tables 4-14 to 4-20; APM 2 5.3). Constants are bits of the low half unless their name says HIGH.
 *
 * @module
 */

import { HIGH, join } from "../bits.ts";
import { PHYSICAL_ADDRESS_LIMIT } from "../brand.ts";

/** Entry bit 0, P: present. */
export const PTE_P = 1 << 0;
/** Entry bit 1, R/W: writes are allowed. */
export const PTE_RW = 1 << 1;
/** Entry bit 2, U/S: user-mode accesses are allowed. */
export const PTE_US = 1 << 2;
/** Entry bit 3: page-level write-through. */
export const PTE_PWT = 1 << 3;
/** Entry bit 4: page-level cache disable. */
export const PTE_PCD = 1 << 4;
/** Entry bit 5: the processor has used the entry. */
export const PTE_A = 1 << 5;
/** Entry bit 6, where a page is mapped: the processor has written to it. */
export const PTE_D = 1 << 6;
/** PDPTE and PDE bit 7: the entry maps a page of 1 GiB or 2 MiB. Reserved in a PML4E. */
export const PTE_PS = 1 << 7;
/** PTE bit 7: PAT. */
export const PTE_PAT = 1 << 7;
/** Entry bit 8, where a page is mapped: global, while CR4.PGE is set. */
export const PTE_G = 1 << 8;
/** Entry bits 11:9: software's own. */
export const PTE_AVAILABLE: number = 7 << 9;
/** Bit 12 of a PDPTE or PDE that maps a page: PAT. */
export const PTE_PAT_LARGE: number = 1 << 12;
/** Entry bits 62:52, here of the high half: software's own while CR4.PKE and CR4.PKS are clear. */
export const PTE_AVAILABLE_HIGH = 0x7ff0_0000;
/** Entry bit 63, XD or NX, here of the high half: no fetches. Reserved while IA32_EFER.NXE is clear. */
export const PTE_NX_HIGH = 0x8000_0000;

/** Entry bits 31:12: the low half's part of the physical address. */
export const PTE_ADDRESS_LOW = 0xffff_f000;
/** Entry bits 51:32: the high half's part of the physical address. */
export const PTE_ADDRESS_HIGH = 0x000f_ffff;

/** Bits of the offset in a page of 4 KiB, which a PTE maps. */
export const PAGE_SHIFT_4K = 12;
/** Bits of the offset in a page of 2 MiB, which a PDE maps. */
export const PAGE_SHIFT_2M = 21;
/** Bits of the offset in a page of 1 GiB, which a PDPTE maps. */
export const PAGE_SHIFT_1G = 30;
/** The sizes of pages. */
export type PageShift = typeof PAGE_SHIFT_4K | typeof PAGE_SHIFT_2M | typeof PAGE_SHIFT_1G;

/** The level of a PML4E. */
export const LEVEL_PML4 = 4;
/** The level of a PDPTE. */
export const LEVEL_PDPT = 3;
/** The level of a PDE. */
export const LEVEL_PD = 2;
/** The level of a PTE. */
export const LEVEL_PT = 1;

/** What a processor's CPUID says about paging. */
export interface PagingFeatures {
  /** MAXPHYADDR: 32 to 52. */
  readonly maxPhysicalBits: number;
  /** Pages of 1 GiB (CPUID 8000_0001 EDX bit 26). Without them bit 7 of a PDPTE is reserved. */
  readonly pages1G: boolean;
  /** Bit 8 of a PML4E is reserved, as on AMD's processors; entries below that map no page ignore it there too. */
  readonly amd?: boolean;
}

/** Bits 51:MAXPHYADDR of an entry or a table's address, here of the high half. */
export function beyondPhysicalHigh(maxPhysicalBits: number): number {
  const known = maxPhysicalBits - 32;
  return (PTE_ADDRESS_HIGH >>> known) << known;
}

/** Whether an entry maps a page, and references no table. */
export function mapsPage(low: number, level: number): boolean {
  return level === LEVEL_PT || (level < LEVEL_PML4 && (low & PTE_PS) !== 0);
}

/**
 * Whether a reserved bit is set in a present entry of a level (SDM 3A 4.5.4). `nx` is IA32_EFER.NXE: without it bit 63
 * is reserved.
 */
export function reservedBitSet(
  entry: { readonly low: number; readonly high: number; readonly nx: boolean },
  level: number,
  features: PagingFeatures,
): boolean {
  const { low, high, nx } = entry;
  if ((high & beyondPhysicalHigh(features.maxPhysicalBits)) !== 0) return true;
  if (!nx && (high & PTE_NX_HIGH) !== 0) return true;
  return (low & reservedLow(low, level, features)) !== 0;
}

function reservedLow(low: number, level: number, { pages1G, amd }: PagingFeatures): number {
  // AMD's bit 8: Linux commit 5ecad245de2a, "bit 8 of non-leaf PDPEs is not reserved".
  if (level === LEVEL_PML4) return amd === true ? PTE_PS | PTE_G : PTE_PS;
  if (level === LEVEL_PDPT) {
    if (!pages1G) return PTE_PS;
    return (low & PTE_PS) === 0 ? 0 : 0x3fff_e000; // bits 29:13
  }
  return level === LEVEL_PD && (low & PTE_PS) !== 0 ? 0x001f_e000 : 0; // bits 20:13
}

/** CR3 bit 3, without CR4.PCIDE: write-through for the PML4 table. */
export const CR3_PWT = 1 << 3;
/** CR3 bit 4, without CR4.PCIDE: cache disable for the PML4 table. */
export const CR3_PCD = 1 << 4;
/** CR3 bits 11:0 with CR4.PCIDE: the process-context identifier. */
export const CR3_PCID = 0xfff;
/** Bit 63 of MOV to CR3's operand, here of the high half, with CR4.PCIDE: invalidate nothing. CR3 never holds it. */
export const CR3_NO_FLUSH_HIGH = 0x8000_0000;

/**
 * Whether MOV to CR3 takes an operand with this high half (SDM 2B, MOV to control registers; SDM 3A 4.10.4.1). Otherwise it
 * raises #GP(0): a bit from MAXPHYADDR on is set, bit 63 with CR4.PCIDE excepted.
 */
export function cr3Takes(high: number, pcide: boolean, maxPhysicalBits: number): boolean {
  const kept = pcide ? high & ~CR3_NO_FLUSH_HIGH : high;
  return (kept & ~PTE_ADDRESS_HIGH) === 0 && (kept & beyondPhysicalHigh(maxPhysicalBits)) === 0;
}

/** The physical address of the table that a value of CR3, or nCR3, points to. */
export function tableRoot(cr3: number): number {
  return cr3 - cr3 % 4096;
}

/** CR4.LA57: paging of five levels. Not modelled. */
export const CR4_LA57: number = 1 << 12;
/** CR4.PCIDE: process-context identifiers. */
export const CR4_PCIDE: number = 1 << 17;
/** CR4.SMEP: the supervisor does not fetch from user pages. */
export const CR4_SMEP: number = 1 << 20;
/** CR4.SMAP: the supervisor reads and writes user pages only with RFLAGS.AC. */
export const CR4_SMAP: number = 1 << 21;
/** CR4.PKE: protection keys of user pages. Not modelled. */
export const CR4_PKE: number = 1 << 22;
/** CR4.CET: control-flow enforcement with its shadow-stack pages. Not modelled. */
export const CR4_CET: number = 1 << 23;
/** CR4.PKS: protection keys of supervisor pages. Not modelled. */
export const CR4_PKS: number = 1 << 24;

/** CPUID leaf 1, ECX: CR4.PCIDE. */
export const CPUID_1_ECX_PCID: number = 1 << 17;
/** CPUID leaf 1, EDX: CR4.PGE. */
export const CPUID_1_EDX_PGE: number = 1 << 13;
/** CPUID leaf 7, EBX: CR4.SMEP. */
export const CPUID_7_EBX_SMEP: number = 1 << 7;
/** CPUID leaf 7, EBX: INVPCID. */
export const CPUID_7_EBX_INVPCID: number = 1 << 10;
/** CPUID leaf 7, EBX: CR4.SMAP, STAC and CLAC. */
export const CPUID_7_EBX_SMAP: number = 1 << 20;
/** CPUID leaf 8000_0001, EDX: IA32_EFER.NXE. */
export const CPUID_EXT1_EDX_NX: number = 1 << 20;
/** CPUID leaf 8000_0001, EDX: pages of 1 GiB. */
export const CPUID_EXT1_EDX_GBPAGES: number = 1 << 26;

/** RFLAGS.AC: with CR4.SMAP, the supervisor may read and write user pages. */
export const FLAG_AC: number = 1 << 18;

/** Page-fault error code: a reserved bit is set in an entry. */
export const PFERR_RSVD = 1 << 3;
/** Page-fault error code: the access was a fetch; given only with CR4.SMEP, or IA32_EFER.NXE and CR4.PAE. */
export const PFERR_FETCH = 1 << 4;
/** Nested page fault, EXITINFO1 bit 32: it was the access that the guest's tables lead to (APM 2 15.25.6). */
export const PFERR_GUEST_FINAL: number = HIGH;
/** Nested page fault, EXITINFO1 bit 33: it was an access to the guest's tables. */
export const PFERR_GUEST_PAGE: number = 2 * HIGH;

/** One past the largest canonical linear address of 48 bits, as a signed number; the smallest is its negative. */
export const CANONICAL_LIMIT: number = 2 ** 47;

/**
 * A linear address as a signed number: exact for every canonical one, from -2^47 to 2^47 - 1. undefined where bits 63:47
 * are not all equal (SDM 1 3.3.7.1): such an address raises #GP or #SS, and is never translated.
 */
export function linearAddress(low: number, high: number): number | undefined {
  const linear = (high | 0) * HIGH + (low >>> 0);
  return isCanonical(linear) ? linear : undefined;
}

/** Whether a signed number is a canonical linear address. */
export function isCanonical(linear: number): boolean {
  return linear >= -CANONICAL_LIMIT && linear < CANONICAL_LIMIT;
}

/** Bits 63:32 of a linear address that is a signed number; `linear >>> 0` are the others. */
export function linearHigh(linear: number): number {
  return Math.floor(linear / HIGH) >>> 0;
}

/** The number of an address's entry in the table of a level, 0 to 511. */
export function tableIndex(address: number, level: number): number {
  if (level <= LEVEL_PD) return (address >>> (3 + 9 * level)) & 511;
  const high = linearHigh(address);
  return level === LEVEL_PDPT ? ((high << 2) | (address >>> 30)) & 511 : (high >>> 7) & 511;
}

/** The offset of an address in its page. */
export function pageOffset(address: number, shift: PageShift): number {
  return (address & (2 ** shift - 1)) >>> 0;
}

/** The physical address in an entry: that of a table, or of a page of `shift`'s size, without its PAT bit. */
export function entryAddress(low: number, high: number, shift: PageShift): number {
  const address = join(low & PTE_ADDRESS_LOW, high & PTE_ADDRESS_HIGH);
  return address - pageOffset(address, shift);
}

/** The size of page that an entry of a level maps. */
export function shiftOf(level: number): PageShift {
  return (3 + 9 * level) as PageShift;
}

/** Throws `RangeError` unless an address is the start of a page of `shift`'s size in the physical address space. */
export function checkPage(physical: number, shift: PageShift): void {
  if (physical < 0 || physical >= PHYSICAL_ADDRESS_LIMIT || physical % 2 ** shift !== 0) {
    throw new RangeError(
      `Cannot map a page of ${2 ** shift} bytes at ${physical}: allowed are its multiples from 0 to 2^52`,
    );
  }
}
