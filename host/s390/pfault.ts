/**
 * Pseudo page faults, the host's half: the handshake of DIAGNOSE 0x258 (__diag_page_ref_service in
 * arch/s390/kvm/diag.c), and whether a fault may be told to the guest (kvm_arch_setup_async_pf).
 *
 * @module
 */

import {
  CR0_SERVICE_SIGNAL_SUBMASK,
  DIAGNOSES,
  KVM_S390_PFAULT_TOKEN_INVALID,
  PFAULT_ALREADY_ACTIVE,
  PFAULT_BLOCK,
  PFAULT_CANCEL,
  PFAULT_DONE,
  PFAULT_LENGTH,
  PFAULT_NOT_ACTIVE,
  PFAULT_TOKEN,
  PFAULT_VERSION,
  PFAULT_ZARCH,
  PGM_ADDRESSING,
  PGM_SPECIFICATION,
  PSW_MASK_EXT,
} from "../../abi/mod.ts";

/** What becomes of a handshake: a result, a program interruption, or user space decides. */
export type PfaultAnswer =
  | { readonly result: number }
  | { readonly interruption: typeof PGM_SPECIFICATION | typeof PGM_ADDRESSING }
  | "user-space";

/** What a handshake needs of the guest's memory, by real addresses. */
export interface PfaultMemory {
  /** Reads bytes; undefined where there is no memory. */
  readReal(address: bigint, bytes: number): Uint8Array | undefined;
  /** Whether a memory slot has an address (kvm_is_gpa_in_memslot): absolute and not real, as KVM looks. */
  backed(address: bigint): boolean;
}

/** What decides whether a fault may be told, beside the handshake. */
export interface PfaultCircumstances {
  /** The mask of the PSW. */
  readonly pswMask: bigint;
  /** Control register 0. */
  readonly cr0: bigint;
  /** Whether an interruption waits for this CPU. */
  readonly interruptPending: boolean;
  /** Whether the virtual machine has such faults at all: not while it is being migrated, for one (gmap->pfault_enabled). */
  readonly enabled: boolean;
}

const refuse = (interruption: typeof PGM_SPECIFICATION | typeof PGM_ADDRESSING): PfaultAnswer => ({
  interruption,
});

/** The handshake of one vCPU. */
export class Pfault {
  /** The real address of the token; KVM_S390_PFAULT_TOKEN_INVALID while there is no handshake. */
  token: bigint = KVM_S390_PFAULT_TOKEN_INVALID;
  /** Which bits of the PSW's mask decide. */
  select = 0n;
  /** What they must be. */
  compare = 0n;

  /** Whether the guest wants to be told. */
  get active(): boolean {
    return this.token !== KVM_S390_PFAULT_TOKEN_INVALID;
  }

  /** A vCPU's reset ends the handshake. */
  reset(): void {
    this.token = KVM_S390_PFAULT_TOKEN_INVALID;
    this.select = 0n;
    this.compare = 0n;
  }

  /** DIAGNOSE 0x258 with a parameter block at a real address. */
  diagnose(address: bigint, memory: PfaultMemory): PfaultAnswer {
    if ((address & 7n) !== 0n) return refuse(PGM_SPECIFICATION);
    const bytes = memory.readReal(address, PFAULT_BLOCK.size);
    if (bytes === undefined) return refuse(PGM_ADDRESSING);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const { fields } = PFAULT_BLOCK;
    if (
      view.getUint16(fields.parm_version.offset) !== PFAULT_VERSION ||
      view.getUint16(fields.parm_len.offset) < PFAULT_LENGTH ||
      view.getUint16(fields.code.offset) !== DIAGNOSES.PAGE_REFERENCE_SERVICES.code
    ) return refuse(PGM_SPECIFICATION);
    const block = {
      token: view.getBigUint64(fields.token_addr.offset),
      select: view.getBigUint64(fields.select_mask.offset),
      compare: view.getBigUint64(fields.compare_mask.offset),
      zarch: view.getBigUint64(fields.zarch.offset),
    };
    switch (view.getUint16(fields.subcode.offset)) {
      case PFAULT_TOKEN:
        return this.#begin(block, memory);
      case PFAULT_CANCEL:
        return this.#cancel(block);
      default:
        return "user-space";
    }
  }

  #begin({ token, select, compare, zarch }: Block, memory: PfaultMemory): PfaultAnswer {
    if (this.active) return { result: PFAULT_ALREADY_ACTIVE }; // Whatever else the block says.
    if ((compare & ~select) !== 0n || (token & 7n) !== 0n || zarch !== PFAULT_ZARCH) {
      return refuse(PGM_SPECIFICATION);
    }
    if (!memory.backed(token)) return refuse(PGM_ADDRESSING);
    this.token = token;
    this.select = select;
    this.compare = compare;
    return { result: PFAULT_DONE };
  }

  /** What has been told to the guest already will be completed all the same. */
  #cancel({ token, select, compare, zarch }: Block): PfaultAnswer {
    if ((token | select | compare | zarch) !== 0n) return refuse(PGM_SPECIFICATION);
    if (!this.active) return { result: PFAULT_NOT_ACTIVE };
    this.token = KVM_S390_PFAULT_TOKEN_INVALID;
    return { result: PFAULT_DONE };
  }

  /** The token to tell a fault with; undefined where it must not be told, and the vCPU waits in the host. */
  tokenFor(circumstances: PfaultCircumstances, memory: PfaultMemory): bigint | undefined {
    const { pswMask, cr0, interruptPending, enabled } = circumstances;
    if (!this.active || (pswMask & this.select) !== this.compare) return undefined;
    if ((pswMask & PSW_MASK_EXT) === 0n || interruptPending) return undefined;
    if ((cr0 & CR0_SERVICE_SIGNAL_SUBMASK) === 0n || !enabled) return undefined;
    const bytes = memory.readReal(this.token, 8);
    return bytes && new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0);
  }
}

interface Block {
  readonly token: bigint;
  readonly select: bigint;
  readonly compare: bigint;
  readonly zarch: bigint;
}
