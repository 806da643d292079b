/**
 * Virtual-processor identifiers: one bitmap for all of a machine's virtual machines (arch/x86/kvm/vmx/vmx.c,
 * allocate_vpid and free_vpid).
 *
 * @module
 */

import { perOwner } from "../kvm/per_owner.ts";
import type { Machine } from "../machine.ts";

/** VMX_NR_VPIDS. */
export const VMX_NR_VPIDS: number = 1 << 16;
const WORD = 32;

/** A machine's VPIDs. */
export class VpidBitmap {
  /** VPID 0 is the host's. */
  readonly #words = Uint32Array.of(1, ...new Uint32Array(VMX_NR_VPIDS / WORD - 1));

  /** The lowest that is free; 0 where none is: that vCPU has to do without. */
  allocate(): number {
    const word = this.#words.findIndex((bits) => bits !== 0xffff_ffff);
    if (word < 0) return 0;
    const bit = 31 - Math.clz32(~this.#words[word] & (this.#words[word] + 1));
    this.#words[word] |= 1 << bit;
    return word * WORD + bit;
  }

  /** A vCPU is gone, or could not be made. 0 is nobody's to free. */
  free(vpid: number): void {
    if (vpid !== 0) this.#words[Math.floor(vpid / WORD)] &= ~(1 << (vpid % WORD));
  }
}

/** The VPIDs of a machine. */
export const vpidsOf: (machine: Machine) => VpidBitmap = perOwner(() => new VpidBitmap());
