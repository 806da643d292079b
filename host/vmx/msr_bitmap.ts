/**
 * The MSR bitmap of a VMCS (SDM 3C 25.6.9).
 *
 * @module
 */

import { IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE, IA32_TSC } from "../../abi/mod.ts";

/** Where the four parts of the bitmap begin (SDM 3C 25.6.9). */
const READ_LOW = 0;
const READ_HIGH = 1024;
const WRITE_LOW = 2048;
const WRITE_HIGH = 3072;
const HIGH_FIRST = 0xc000_0000;
const RANGE = 0x2000;

/** The MSR bitmap: a page in which a set bit makes an access exit. MSRs outside its two ranges always exit. */
export class MsrBitmap {
  readonly #bytes = new Uint8Array(4096).fill(0xff);

  /** The bitmap that KVM gives a vCPU: a handful of MSRs pass through. */
  constructor() {
    this.intercept(IA32_TSC, false, false);
    for (const msr of [IA32_FS_BASE, IA32_GS_BASE, IA32_KERNEL_GS_BASE]) {
      this.intercept(msr, false, false);
      this.intercept(msr, true, false);
    }
  }

  /** Whether an access exits. */
  exits(msr: number, write: boolean): boolean {
    const range = (msr & -RANGE) >>> 0;
    if (range === 0) return this.#bit(write ? WRITE_LOW : READ_LOW, msr);
    return range !== HIGH_FIRST || this.#bit(write ? WRITE_HIGH : READ_HIGH, msr & (RANGE - 1));
  }

  #bit(part: number, n: number): boolean {
    return ((this.#bytes[part + (n >>> 3)] >>> (n & 7)) & 1) !== 0;
  }

  /** Sets whether an access exits. */
  intercept(msr: number, write: boolean, exits: boolean): void {
    const upper = msr >= HIGH_FIRST;
    const part = upper ? (write ? WRITE_HIGH : READ_HIGH) : write ? WRITE_LOW : READ_LOW;
    const n = upper ? msr - HIGH_FIRST : msr;
    if (exits) this.#bytes[part + (n >>> 3)] |= 1 << (n & 7);
    else this.#bytes[part + (n >>> 3)] &= ~(1 << (n & 7));
  }
}
