/**
 * The program-status word (z/Architecture Principles of Operation, chapter 4; names of asm/ptrace.h): 16 bytes, a mask of
 * modes and the address of the next instruction. Bit 0 is the leftmost.
 *
 * @module
 */

import { hex } from "../bits.ts";

/** PER. */
export const PSW_MASK_PER = 0x4000_0000_0000_0000n;
/** Dynamic address translation is on. */
export const PSW_MASK_DAT = 0x0400_0000_0000_0000n;
/** I/O interruptions are taken. */
export const PSW_MASK_IO = 0x0200_0000_0000_0000n;
/** External interruptions are taken. */
export const PSW_MASK_EXT = 0x0100_0000_0000_0000n;
/** The access key. */
export const PSW_MASK_KEY = 0x00f0_0000_0000_0000n;
/** Machine checks are taken. */
export const PSW_MASK_MCHECK = 0x0004_0000_0000_0000n;
/** The CPU executes nothing: it waits for an interruption. */
export const PSW_MASK_WAIT = 0x0002_0000_0000_0000n;
/** The problem state: privileged instructions are refused. */
export const PSW_MASK_PSTATE = 0x0001_0000_0000_0000n;
/** The address-space control. */
export const PSW_MASK_ASC = 0x0000_c000_0000_0000n;
/** The condition code. */
export const PSW_MASK_CC = 0x0000_3000_0000_0000n;
/** The program mask. */
export const PSW_MASK_PM = 0x0000_0f00_0000_0000n;
/** Reserved for run-time instrumentation. */
export const PSW_MASK_RI = 0x0000_0080_0000_0000n;
/** Extended addressing: with {@linkcode PSW_MASK_BA}, addresses have 64 bits. */
export const PSW_MASK_EA = 0x0000_0001_0000_0000n;
/** Basic addressing: addresses have 31 bits at least. */
export const PSW_MASK_BA = 0x0000_0000_8000_0000n;
/** 64-bit addressing. */
export const PSW_MASK_64: bigint = PSW_MASK_EA | PSW_MASK_BA;
/** Bits that must be 0: a PSW that has one of them is invalid (PSW_MASK_UNASSIGNED in arch/s390/kvm). */
export const PSW_MASK_UNASSIGNED = 0xb808_00fe_7fff_ffffn;

/** A program-status word. */
export interface Psw {
  /** The modes: PSW_MASK_*. */
  readonly mask: bigint;
  /** Where the next instruction is. */
  readonly address: bigint;
}

/** Where kernel code of this image starts: supervisor state, 64-bit addressing, nothing enabled, no translation. */
export const KERNEL_PSW_MASK: bigint = PSW_MASK_64;
/** Where user code does: problem state, external and I/O interruptions and machine checks enabled. */
export const USER_PSW_MASK: bigint = PSW_MASK_64 | PSW_MASK_PSTATE | PSW_MASK_EXT | PSW_MASK_IO |
  PSW_MASK_MCHECK;
/** An enabled wait: the CPU goes on at the next external interruption. */
export const WAIT_PSW_MASK: bigint = PSW_MASK_64 | PSW_MASK_WAIT | PSW_MASK_EXT | PSW_MASK_IO;
/** A disabled wait: nothing ends it. What a kernel that gives up loads. */
export const DISABLED_WAIT_PSW_MASK: bigint = PSW_MASK_64 | PSW_MASK_WAIT;

/** Bit 12 of a short PSW, which is 1 there and 0 in a PSW of 16 bytes. */
export const PSW_MASK_SHORTPSW = 0x0008_0000_0000_0000n;
const SHORT_ADDRESS = 0x7fff_ffffn;

/**
 * A PSW in 8 bytes, as IPL and resets load it from absolute address 0: bits 0 to 32 of the mask, but for bit 12, and 31 bits
 * of address. Throws `RangeError` for what has no place there.
 */
export function encodeShortPsw({ mask, address }: Psw): bigint {
  if ((mask & (SHORT_ADDRESS | PSW_MASK_SHORTPSW)) !== 0n || address < 0n || address > SHORT_ADDRESS) {
    throw new RangeError(
      `Cannot shorten the PSW ${hex(mask)} ${
        hex(address)
      }: allowed are addresses of 31 bits, and none of the mask's bits ${
        hex(SHORT_ADDRESS | PSW_MASK_SHORTPSW)
      }`,
    );
  }
  return mask | PSW_MASK_SHORTPSW | address;
}

/** A short PSW at length. One without its bit 12 becomes invalid, as that is inverted (QEMU's s390_cpu_load_normal). */
export function decodeShortPsw(word: bigint): Psw {
  return { mask: (word & ~SHORT_ADDRESS) ^ PSW_MASK_SHORTPSW, address: word & SHORT_ADDRESS };
}

/** Whether a CPU accepts a PSW (is_valid_psw in arch/s390/kvm): else it is a specification exception. */
export function isValidPsw({ mask, address }: Psw): boolean {
  if ((mask & PSW_MASK_UNASSIGNED) !== 0n) return false;
  if ((address & 1n) !== 0n) return false;
  switch (mask & PSW_MASK_64) {
    case 0n:
      return address < 1n << 24n;
    case PSW_MASK_BA:
      return address < 1n << 31n;
    case PSW_MASK_64:
      return true;
    default:
      return false; // Extended without basic addressing.
  }
}

/** The condition code of a mask, 0 to 3. */
export function conditionCode(mask: bigint): number {
  return Number((mask & PSW_MASK_CC) >> 44n);
}
