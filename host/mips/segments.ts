/**
 * Where the addresses of a MIPS guest lead (MIPS64 Architecture, volume III, "Segmentation Control"). The two segments of
 * useg are as SegCtl2 says, the others as after reset. No TLB is modelled: what it would map is not there.
 *
 * @module
 */

import {
  MIPS_CP0,
  MIPS_KSEG0,
  MIPS_SEGCFG_AM_SHIFT,
  MIPS_SEGCFG_EU,
  MIPS_SEGCFG_PA_SHIFT,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  MIPS_STATUS_KSU,
  type MipsCpu,
  mipsUnmapped,
} from "../../abi/mod.ts";

/** An address that the mode may not use, or one that the TLB would have to map. */
export type MipsNowhere = "address error" | "TLB";

/** Behind useg. */
const USEG_END = BigInt(MIPS_KSEG0);
/** Both segments of useg have 1 GiB. */
const SEGMENT_BITS = 30;
/** Access modes that the TLB maps, a bit each: for the kernel MK, MSK and MUSK; for user mode MUSK and MUSUK. */
const MAPPED = { kernel: 0b0000_1110, user: 0b0001_1000 } as const;
/** Access modes that keep user mode out: UK, MK, MSK and USK. */
const KERNEL_ONLY = 0b0010_0111;

/** Kernel mode. Status.KSU does not matter while EXL or ERL is set. */
export function kernelMode(context: MipsCpu): boolean {
  const status = context.sys[2 * MIPS_CP0.status];
  return (status & (MIPS_STATUS_EXL | MIPS_STATUS_ERL)) !== 0 || (status & MIPS_STATUS_KSU) === 0;
}

/** The physical address of a 64-bit virtual one. */
export function mipsPhysical(context: MipsCpu, address: bigint): number | MipsNowhere {
  const kernel = kernelMode(context);
  if (address < USEG_END) return useg(context, Number(address), kernel);
  if (!kernel) return "address error";
  const physical = mipsUnmapped(address);
  return physical === undefined ? "TLB" : Number(physical);
}

function useg(context: MipsCpu, address: number, kernel: boolean): number | MipsNowhere {
  const segctl2 = context.sys[2 * MIPS_CP0.segCtl2];
  const cfg = address >>> SEGMENT_BITS === 0 ? segctl2 >>> 16 : segctl2 & 0xffff;
  const mode = 1 << ((cfg >>> MIPS_SEGCFG_AM_SHIFT) & 7);
  const erl = (context.sys[2 * MIPS_CP0.status] & MIPS_STATUS_ERL) !== 0;
  if (!erl || (cfg & MIPS_SEGCFG_EU) === 0) {
    if (!kernel && (mode & KERNEL_ONLY) !== 0) return "address error";
    if ((mode & MAPPED[kernel ? "kernel" : "user"]) !== 0) return "TLB";
  }
  // PA has address bits 35 to 29; the lowest is no bit of a segment of 1 GiB.
  const base = (cfg >>> (MIPS_SEGCFG_PA_SHIFT + 1)) * 2 ** SEGMENT_BITS;
  return base + (address & (2 ** SEGMENT_BITS - 1));
}
