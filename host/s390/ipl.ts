/**
 * DIAGNOSE 0x308, IPL functions: KVM serves the two that begin an IPL, by stopping the CPU and asking user space for a
 * reset; QEMU serves the others (handle_diag_308 in its target/s390x/diag.c).
 *
 * @module
 */

import {
  DIAG308_LOAD_CLEAR,
  DIAG308_LOAD_NORMAL_DUMP,
  DIAG308_RC_INVALID,
  DIAG308_RC_NO_CONF,
  DIAG308_RC_OK,
  DIAG308_RESET_LOAD_NORM,
  DIAG308_RESET_MOD_CLR,
  DIAG308_SET,
  DIAG308_STORE,
  IPLB_LENGTH,
  IPLB_TYPE_OFFSET,
  IPLB_TYPES,
  KVM_S390_RESETS,
  PGM_ADDRESSING,
  PGM_SPECIFICATION,
} from "../../abi/mod.ts";
import type { GuestReset } from "./reset.ts";

const {
  KVM_S390_RESET_CLEAR,
  KVM_S390_RESET_SUBSYSTEM,
  KVM_S390_RESET_CPU_INIT,
  KVM_S390_RESET_IPL,
} = KVM_S390_RESETS;

/** What QEMU 2.5 takes for a block. */
const UNCHECKED_LENGTH = IPLB_TYPES.S390_IPL_TYPE_CCW.shortest;

/** The flags of the reset that KVM asks for; undefined where a subcode, of which it looks at 16 bits, is user space's. */
export function kernelResetFlags(subcode: bigint): number | undefined {
  const flags = KVM_S390_RESET_SUBSYSTEM | KVM_S390_RESET_IPL | KVM_S390_RESET_CPU_INIT;
  switch (Number(subcode & 0xffffn)) {
    case DIAG308_LOAD_CLEAR:
      return flags | KVM_S390_RESET_CLEAR;
    case DIAG308_LOAD_NORMAL_DUMP:
      return flags;
    default:
      return undefined;
  }
}

/** What user space does with a call. */
export type IplAnswer =
  | { readonly interruption: typeof PGM_SPECIFICATION | typeof PGM_ADDRESSING }
  /** The result, for the register behind R1. */
  | { readonly result: number }
  /** The virtual machine is reset, and goes on; with "load clear" it begins anew. */
  | { readonly reset: GuestReset | "load clear" };

/** What user space needs of the guest. */
export interface IplState {
  /** The parameters of the next IPL; undefined while there are none. */
  parameters: Uint8Array | undefined;
  /** Whether what is set has to be the parameters of a device. */
  readonly checks: boolean;
  /** Reads absolute memory; undefined where there is none. */
  read(address: bigint, bytes: number): Uint8Array | undefined;
  /** Writes absolute memory; `false` where there is none. */
  write(address: bigint, bytes: Uint8Array): boolean;
}

/** Serves a call whose operands are the register number R1, the block's address and the subcode. */
export function userSpaceIpl(r1: number, address: bigint, subcode: bigint, state: IplState): IplAnswer {
  // QEMU looks at all 64 bits here, where KVM looks at 16 (kvm-unit-tests, s390x/diag308.c). It has no subcode 4 of its own.
  switch (subcode) {
    case BigInt(DIAG308_RESET_MOD_CLR):
      return { reset: "modified clear" };
    case BigInt(DIAG308_RESET_LOAD_NORM):
      return { reset: "load normal" };
    case BigInt(DIAG308_LOAD_CLEAR):
      return { reset: "load clear" };
    case BigInt(DIAG308_SET):
    case BigInt(DIAG308_STORE):
      return parameterBlock(r1, address, subcode, state);
    default:
      return { interruption: PGM_SPECIFICATION };
  }
}

/**
 * A block has a page of its own, all of it in memory, however long it says to be (diag308_parm_check; QEMU 2.5 has no blocks
 * longer than a CCW device's, and does not look into them).
 */
function parameterBlock(r1: number, address: bigint, subcode: bigint, state: IplState): IplAnswer {
  if ((r1 & 1) !== 0 || (address & 0xfffn) !== 0n) return { interruption: PGM_SPECIFICATION };
  const block = state.read(address, state.checks ? IPLB_LENGTH : UNCHECKED_LENGTH);
  if (block === undefined) return { interruption: PGM_ADDRESSING };
  if (subcode === BigInt(DIAG308_STORE)) return storeParameters(address, state);
  if (!state.checks) {
    state.parameters = block;
    return { result: DIAG308_RC_OK };
  }
  const length = new DataView(block.buffer, block.byteOffset).getUint32(0);
  const known = Object.values(IPLB_TYPES).find(({ type }) => type === block[IPLB_TYPE_OFFSET]);
  if (known === undefined || length < known.shortest || length > IPLB_LENGTH) {
    return { result: DIAG308_RC_INVALID };
  }
  state.parameters = block.slice(0, length);
  return { result: DIAG308_RC_OK };
}

function storeParameters(address: bigint, state: IplState): IplAnswer {
  const { parameters } = state;
  if (parameters === undefined) return { result: DIAG308_RC_NO_CONF };
  return state.write(address, parameters) ? { result: DIAG308_RC_OK } : { interruption: PGM_ADDRESSING };
}
