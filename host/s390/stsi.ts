/**
 * STORE SYSTEM INFORMATION: what is asked and refused (handle_stsi in arch/s390/kvm/priv.c, which QEMU's emulator agrees
 * with), and block 3.2.2 of KVM, which puts its own level of virtual machine in front of what its own host says, and of QEMU
 * behind KVM (insert_stsi_3_2_2 in its target/s390x/kvm/kvm.c), which adds an extended name.
 *
 * @module
 */

import {
  EVMNE_UTF_8,
  type Layout,
  PGM_PRIVILEGED_OP,
  PGM_SPECIFICATION,
  SYSIB_322,
  SYSIB_322_ENTRY,
  SYSIB_322_EXT_NAME_SIZE,
  SYSIB_322_EXT_NAMES,
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
  /** A block goes to memory: condition code 0. */
  | { readonly block: Uint8Array };

/** The level that gpr 0 tells of, function code 0: 3, a virtual machine, in bits 31:28. */
export const STSI_LEVEL_3 = 0x3000_0000n;

/** Who answers: the block that function code and selectors name, as "1.1.1"; undefined where there is none. */
export type StsiBlocks = (name: string) => Uint8Array | undefined;

/** Serves the instruction. */
export function storeSystemInformation(request: StsiRequest, blocks: StsiBlocks): StsiAnswer {
  const { gpr0, gpr1, address, problemState } = request;
  const functionCode = Number((gpr0 >> 28n) & 0xfn);
  if (problemState) return { interruption: PGM_PRIVILEGED_OP };
  // Function code 15, the topology, needs a facility that is not modelled.
  if (functionCode > 3) return "no-data";
  if ((gpr0 & 0x0fff_ff00n) !== 0n || (gpr1 & 0xffff_0000n) !== 0n) {
    return { interruption: PGM_SPECIFICATION };
  }
  if (functionCode === 0) return "level";
  if ((address & 0xfffn) !== 0n) return { interruption: PGM_SPECIFICATION };
  const block = blocks(`${functionCode}.${gpr0 & 0xffn}.${gpr1 & 0xffffn}`);
  return block === undefined ? "no-data" : { block };
}

/** The virtual machine that block 3.2.2 tells of first. */
export interface VirtualMachine {
  /** vCPUs. */
  readonly cpus: number;
  /** Its name, up to 8 characters. */
  readonly name: string;
}

/** Block 3.2.2 of KVM: the levels of `outer`, each one further down, and in front of them the new one. */
export function virtualMachines(machine: VirtualMachine, outer?: Readonly<Uint8Array>): Uint8Array {
  const block = outer === undefined ? new Uint8Array(SYSIB_SIZE) : Uint8Array.from(outer);
  const { offset: countAt } = SYSIB_322.fields.count;
  const { size } = SYSIB_322_ENTRY;
  const count = Math.min((block[countAt] & 15) + 1, SYSIB_322_LEVELS);
  block[countAt] = (block[countAt] & ~15) | count;
  block.copyWithin(SYSIB_322_VM + size, SYSIB_322_VM, SYSIB_322_VM + (count - 1) * size);
  const { cpus, name } = machine;
  const entry = encodeSysib(SYSIB_322_ENTRY, {
    cpus_total: cpus,
    cpus_configured: cpus,
    caf: 1000,
    name,
    cpi: "KVM/Linux",
  });
  block.set(entry, SYSIB_322_VM);
  return block;
}

/**
 * QEMU names the first virtual machine of a block 3.2.2 at length; the others' names move down, up to the first that has
 * none, as nobody above that one can be relied on to have moved them.
 */
export function nameVirtualMachine(block: Uint8Array, name: string): void {
  const at = (level: number) => SYSIB_322_EXT_NAMES + SYSIB_322_EXT_NAME_SIZE * level;
  const evmne = (level: number) =>
    SYSIB_322_VM + SYSIB_322_ENTRY.size * level + SYSIB_322_ENTRY.fields.evmne.offset;
  const count = block[SYSIB_322.fields.count.offset] & 15;
  block.copyWithin(at(1), at(0), at(count - 1));
  let named = 1;
  while (named < count && block[evmne(named)] !== 0 && block[at(named)] !== 0) named++;
  block.fill(0, at(named), at(count));
  block[evmne(0)] = EVMNE_UTF_8;
  block.fill(0, at(0), at(1));
  block.set(new TextEncoder().encode(name), at(0));
}

/** A block, or a part of one: numbers, and texts in EBCDIC, in their fields, and zeros elsewhere. */
export function encodeSysib<Name extends string>(
  { fields, size }: Layout<Name>,
  values: Partial<Record<Name, number | string>>,
): Uint8Array {
  const block = new Uint8Array(size);
  for (const [name, value] of Object.entries(values) as [Name, number | string][]) {
    const { offset, size } = fields[name];
    if (typeof value === "string") block.set(toEbcdic(value, size), offset);
    else for (let i = 0; i < size; i++) block[offset + i] = value >>> (8 * (size - 1 - i));
  }
  return block;
}
