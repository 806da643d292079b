/**
 * MIPS' address segments (MIPS64 Architecture, volume III, "Virtual Memory"): which of them reach memory without a TLB.
 *
 * @module
 */

/** kseg0: the first 512 MiB of memory, cached. */
export const MIPS_KSEG0 = 0x8000_0000;
/** kseg1: the same, uncached. */
export const MIPS_KSEG1 = 0xa000_0000;
/** kseg2, which is mapped, and one past kseg1. */
export const MIPS_KSEG2 = 0xc000_0000;
/** The bytes of kseg0, and of kseg1. */
const KSEG_SIZE = 0x2000_0000;
/** xkphys holds physical addresses of 59 bits, behind a cache attribute. */
const XKPHYS_BITS = 59;

/** SegCtl2 describes addresses from 0x4000_0000 on in bits 15:0 (CFG4), and those below from this bit on (CFG5). */
export const MIPS_SEGCTL2_CFG5_SHIFT = 16;
/** A segment's configuration: the lowest bit of PA, address bits 35:29 of the memory that an unmapped segment leads to. */
export const MIPS_SEGCFG_PA_SHIFT = 9;
/** The lowest bit of AM, the access mode. */
export const MIPS_SEGCFG_AM_SHIFT = 4;
/** AM: mapped, for user, supervisor and kernel mode. */
export const MIPS_SEGCFG_MUSK = 3;
/** AM: unmapped, for user, supervisor and kernel mode. */
export const MIPS_SEGCFG_UUSK = 7;
/** EU: unmapped while Status.ERL is set, whatever AM says. */
export const MIPS_SEGCFG_EU: number = 1 << 3;

const USEG = (MIPS_SEGCFG_MUSK << MIPS_SEGCFG_AM_SHIFT) | MIPS_SEGCFG_EU;
/** SegCtl2 after reset: useg as it was before there was segmentation control. */
export const MIPS_SEGCTL2_RESET: number = (USEG << MIPS_SEGCTL2_CFG5_SHIFT) | (2 << MIPS_SEGCFG_PA_SHIFT) |
  USEG;

/** kseg0's address of a physical one below 512 MiB. Throws `RangeError` above. */
export function mipsKseg0(physical: number): number {
  if (!Number.isInteger(physical) || physical < 0 || physical >= KSEG_SIZE) {
    throw new RangeError(`Cannot address ${physical} in kseg0: allowed are 0 to ${KSEG_SIZE - 1}`);
  }
  return MIPS_KSEG0 + physical;
}

/** An address of the 32-bit segments as 64-bit registers hold it: sign-extended. */
export function mipsRegisterAddress(address: number): bigint {
  return BigInt.asUintN(64, BigInt(address | 0));
}

/**
 * The physical address of a 64-bit virtual one in kseg0, kseg1 or xkphys; undefined in segments that the TLB maps. Both
 * processors and user space do it so: the latter translates what a guest passes it without any page tables.
 */
export function mipsUnmapped(address: bigint): bigint | undefined {
  if ((address & 0xffff_ffff_c000_0000n) === 0xffff_ffff_8000_0000n) return address & 0x1fff_ffffn;
  if (address >> 62n === 2n) return BigInt.asUintN(XKPHYS_BITS, address);
  return undefined;
}

/**
 * The physical address that a 32-bit one leads to while Status.ERL is set, as after reset: then useg is unmapped, too. It is
 * where a boot loader puts text; undefined for kseg2 and above.
 */
export function mipsBootAddress(address: number): number | undefined {
  if (address < MIPS_KSEG0) return address;
  const physical = mipsUnmapped(mipsRegisterAddress(address));
  return physical === undefined ? undefined : Number(physical);
}
