/**
 * User space: kvmtool's MIPS side (mips/kvm-cpu.c), as far as hypercalls reach it.
 *
 * @module
 */

import { type HypercallName, HYPERCALLS } from "../../abi/mod.ts";
import type { GuestMemory } from "../memory/mod.ts";

/** kvm_run.hypercall. */
export interface KvmRunHypercall {
  /** The call's number. */
  readonly nr: bigint;
  /** Its arguments. */
  readonly args: readonly bigint[];
  /** What goes into the result register, on hosts that have one for it. */
  ret: bigint | undefined;
}

/** Terminals (TERM_MAX_DEVS). */
const TERMINALS = 4;
const CONSOLE_OUTPUT: HypercallName = "KVM_HC_MIPS_CONSOLE_OUTPUT";

/** kvmtool's terminals, and what it does when KVM_RUN comes back with a hypercall. */
export class MipsUserspace {
  /** What was written, by terminal. */
  readonly terminals: readonly number[][] = Array.from({ length: TERMINALS }, () => []);
  readonly #memory: GuestMemory;

  /** User space of a guest with that memory. */
  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** The text on a terminal. */
  text(terminal: number = 0): string {
    return new TextDecoder().decode(Uint8Array.from(this.terminals[terminal] ?? []));
  }

  /** KVM_EXIT_HYPERCALL. Answers with what makes it give the virtual machine up; undefined where it goes on. */
  hypercall(run: KvmRunHypercall): string | undefined {
    if (run.nr !== BigInt(HYPERCALLS[CONSOLE_OUTPUT].nr)) {
      return `KVM_EXIT_HYPERCALL unrecognized call ${run.nr}`;
    }
    const terminal = Number(BigInt.asIntN(32, run.args[0]));
    const length = Number(BigInt.asIntN(32, run.args[2]));
    if (terminal < 0 || terminal >= TERMINALS) {
      return `hypercall_write_cons term out of range <${terminal}>`;
    }
    const address = flat(run.args[1]);
    if (address === undefined || !this.#memory.backed(address, 1)) {
      return `hypercall_write_cons unmapped physaddr ${run.args[1].toString(16)}`;
    }
    // The first byte behind the text has to be memory too (host_ptr_in_ram).
    if (length <= 0 || !this.#memory.backed(address, length + 1)) {
      return `hypercall_write_cons len out of range <${length}>`;
    }
    const bytes = this.terminals[terminal];
    for (let i = 0; i < length; i++) bytes.push(this.#memory.byte(address + i));
    return undefined;
  }
}

/**
 * The physical address of a buffer: user space knows kseg0, kseg1 and xkphys, and takes any other address as it is.
 * undefined beyond what memory can have.
 */
function flat(address: bigint): number | undefined {
  let at = address;
  if ((at & 0xffff_ffff_c000_0000n) === 0xffff_ffff_8000_0000n) at &= 0x1fff_ffffn;
  if ((at & 0xc000_0000_0000_0000n) === 0x8000_0000_0000_0000n) at &= 0x07ff_ffff_ffff_ffffn;
  return at < 2n ** 52n ? Number(at) : undefined;
}
