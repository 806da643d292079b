/**
 * STORE SYSTEM INFORMATION (handle_stsi in arch/s390/kvm/priv.c): KVM answers with its own level of virtual machine in front
 * of what its own host says.
 *
 * @module
 */

import {
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  SYSIB_322,
  SYSIB_322_ENTRY,
  SYSIB_322_LEVELS,
  SYSIB_322_VM,
  SYSIB_SIZE,
  toEbcdic,
} from "../../abi/mod.ts";

/** What the instruction asks. */
export interface StsiRequest {
  /** General register 0: function code and first selector. */
  readonly gpr0: bigint;
  /** General register 1: second selector. */
  readonly gpr1: bigint;
  /** Where the block is to go. */
  readonly address: bigint;
  /** Whether the CPU is in the problem state. */
  readonly problemState: boolean;
}

/** What becomes of it. */
export type StsiAnswer =
  | { readonly interruption: typeof PGM_PRIVILEGED_OP | typeof PGM_SPECIFICATION }
  /** No such information: condition code 3. */
  | "no-data"
  /** The current level goes to general register 0: condition code 0. */
  | "level"
  /** A block goes to memory, and 0 to general register 0: condition code 0. */
  | { readonly block: Uint8Array };

/** The level that gpr 0 tells of, function code 0: 3, a virtual machine, in bits 31:28. */
export const STSI_LEVEL_3 = 0x3000_0000n;

/** Who answers. */
export interface StsiHost {
  /** vCPUs. */
  readonly cpus: number;
  /** The virtual machine's name, up to 8 characters; KVM says "KVMguest", whatever its user space would. */
  readonly name: string;
  /** The block 3.2.2 that this host gets from its own, where it is a guest itself. */
  readonly outer?: Readonly<Uint8Array>;
  /** The blocks that hardware has (function codes 1 and 2), as "1.1.1" and so on. */
  readonly hardware: (selector: string) => Uint8Array | undefined;
}

/** Serves the instruction. */
export function storeSystemInformation(request: StsiRequest, host: StsiHost): StsiAnswer {
  const { gpr0, gpr1, address, problemState } = request;
  const functionCode = Number((gpr0 >> 28n) & 0xfn);
  const selector1 = Number(gpr0 & 0xffn);
  const selector2 = Number(gpr1 & 0xffffn);
  if (problemState) return { interruption: PGM_PRIVILEGED_OP };
  // Function code 15, the topology, needs a facility that is not modelled.
  if (functionCode > 3) return "no-data";
  if ((gpr0 & 0x0fff_ff00n) !== 0n || (gpr1 & 0xffff_0000n) !== 0n) {
    return { interruption: PGM_SPECIFICATION };
  }
  if (functionCode === 0) return "level";
  if ((address & 0xfffn) !== 0n) return { interruption: PGM_SPECIFICATION };
  if (functionCode === 3) {
    return selector1 === 2 && selector2 === 2 ? { block: virtualMachines(host) } : "no-data";
  }
  const block = host.hardware(`${functionCode}.${selector1}.${selector2}`);
  return block === undefined ? "no-data" : { block };
}

/** Block 3.2.2: the host's levels, each one further down, and in front of them the new one. */
export function virtualMachines({ cpus, name, outer }: StsiHost): Uint8Array {
  const block = outer === undefined ? new Uint8Array(SYSIB_SIZE) : Uint8Array.from(outer);
  const { offset: countAt } = SYSIB_322.fields.count;
  const { size } = SYSIB_322_ENTRY;
  const count = Math.min((block[countAt] & 15) + 1, SYSIB_322_LEVELS);
  block[countAt] = (block[countAt] & ~15) | count;
  block.copyWithin(SYSIB_322_VM + size, SYSIB_322_VM, SYSIB_322_VM + (count - 1) * size);
  const entry = new Uint8Array(size);
  const view = new DataView(entry.buffer);
  const { fields } = SYSIB_322_ENTRY;
  view.setUint16(fields.cpus_total.offset, cpus);
  view.setUint16(fields.cpus_configured.offset, cpus);
  view.setUint32(fields.caf.offset, 1000);
  entry.set(toEbcdic(name, 8), fields.name.offset);
  entry.set(toEbcdic("KVM/Linux", 16), fields.cpi.offset);
  block.set(entry, SYSIB_322_VM);
  return block;
}
