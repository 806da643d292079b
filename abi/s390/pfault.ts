/**
 * Pseudo page faults (pfault): DIAGNOSE 0x258 tells the host that the guest can go on with other work while a page is
 * absent. Fields, version, length and results as __diag_page_ref_service has them (arch/s390/kvm/diag.c).
 *
 * @module
 */

import { type Layout, layout } from "../layout.ts";
import { DIAGNOSES } from "./diagnose.ts";

/** The parameter block, at a real address that is a multiple of 8. */
export const PFAULT_BLOCK: Layout<
  | "code"
  | "subcode"
  | "parm_len"
  | "parm_version"
  | "token_addr"
  | "select_mask"
  | "compare_mask"
  | "zarch"
> = layout("pfault_refbk", {
  code: "u16",
  subcode: "u16",
  parm_len: "u16",
  parm_version: "u16",
  token_addr: "u64",
  select_mask: "u64",
  compare_mask: "u64",
  zarch: "u64",
}, { endian: "big", align: 8, size: 40 });

/** Subcode: begins the handshake. */
export const PFAULT_TOKEN = 0;
/** Subcode: ends it. */
export const PFAULT_CANCEL = 1;
/** The version of the block. */
export const PFAULT_VERSION = 2;
/** Its length, in doublewords. */
export const PFAULT_LENGTH = 5;
/** What the last field holds of a block that begins the handshake (arch/s390/mm/pfault.c, __PF_RES_FIELD). */
export const PFAULT_ZARCH = 0x8000_0000_0000_0000n;

/** Result: done. */
export const PFAULT_DONE = 0;
/** Result of a cancel: there was no handshake. */
export const PFAULT_NOT_ACTIVE = 4;
/** Result of a begin: there is one already. */
export const PFAULT_ALREADY_ACTIVE = 8;

/** What KVM keeps as the token's address while there is no handshake. */
export const KVM_S390_PFAULT_TOKEN_INVALID = 0xffff_ffff_ffff_ffffn;

/** A parameter block. */
export interface PfaultBlock {
  /** {@linkcode PFAULT_TOKEN} or {@linkcode PFAULT_CANCEL}. */
  readonly subcode: number;
  /** The real address of the token, which interruptions bring back. */
  readonly tokenAddress: bigint;
  /** Which bits of the PSW's mask decide. */
  readonly selectMask: bigint;
  /** What they must be, so that a fault is told to the guest. */
  readonly compareMask: bigint;
}

/** The bytes of a block that begins a handshake. */
export function encodePfaultToken(block: Omit<PfaultBlock, "subcode">): Uint8Array {
  return encode({ ...block, subcode: PFAULT_TOKEN }, PFAULT_ZARCH);
}

/** The bytes of a block that ends it. */
export function encodePfaultCancel(): Uint8Array {
  return encode({ subcode: PFAULT_CANCEL, tokenAddress: 0n, selectMask: 0n, compareMask: 0n }, 0n);
}

function encode({ subcode, tokenAddress, selectMask, compareMask }: PfaultBlock, zarch: bigint): Uint8Array {
  const bytes = new Uint8Array(PFAULT_BLOCK.size);
  const view = new DataView(bytes.buffer);
  const { fields } = PFAULT_BLOCK;
  view.setUint16(fields.code.offset, DIAGNOSES.PAGE_REFERENCE_SERVICES.code);
  view.setUint16(fields.subcode.offset, subcode);
  view.setUint16(fields.parm_len.offset, PFAULT_LENGTH);
  view.setUint16(fields.parm_version.offset, PFAULT_VERSION);
  view.setBigUint64(fields.token_addr.offset, tokenAddress);
  view.setBigUint64(fields.select_mask.offset, selectMask);
  view.setBigUint64(fields.compare_mask.offset, compareMask);
  view.setBigUint64(fields.zarch.offset, zarch);
  return bytes;
}
