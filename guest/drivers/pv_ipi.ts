/**
 * Paravirtual IPIs (KVM_FEATURE_PV_SEND_IPI): one hypercall sends an interrupt to up to 128 processors (in 32-bit mode
 * to 64) whose APIC IDs lie close together.
 *
 * @module
 */

import type { Guest, X86Cpu } from "../../abi/mod.ts";
import { icrLow, withInterruptsOff } from "../apic/driver.ts";
import { hypercall } from "../instructions.ts";
import { type GuestValue, loadMask, removeFrom, storeMask, takeFirst } from "../kernel/cpumask.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { data, percpu, PERCPU_AREA } from "../kernel/memory_map.ts";
import { kvmParaHasFeature } from "../kvm_para.ts";
import type { PvDriver } from "./driver.ts";

/** The arguments of one KVM_HC_SEND_IPI, but for the ICR. */
export interface IpiWindow {
  /** Destinations from `min` on, a bit each: as many as a long has. */
  readonly bitmapLow: bigint;
  /** The destinations after those. */
  readonly bitmapHigh: bigint;
  /** The APIC ID of bit 0. */
  readonly min: number;
}

/**
 * Packs destinations, one after the other, into windows of twice the width of a long. A window slides down to take in a
 * lower ID as long as none that it holds falls out above, and is closed by the first ID that does not fit.
 */
export class IpiPacker {
  readonly #bits: 64 | 32;
  #bitmap = 0n;
  #min = 0;
  #max = 0;

  /** An empty window of two longs. */
  constructor(bitsPerLong: 64 | 32) {
    this.#bits = bitsPerLong;
  }

  /**
   * Takes one more destination in. Where it does not fit, the window so far is the answer, to be sent now. Throws
   * `RangeError` for an ID outside 32 bits.
   */
  add(apicId: number): IpiWindow | undefined {
    if (apicId >>> 0 !== apicId) {
      throw new RangeError(`Cannot send an IPI to APIC ID ${apicId}: allowed are 0 to 2^32 - 1`);
    }
    const cluster = 2 * this.#bits;
    let full: IpiWindow | undefined;
    if (this.#bitmap === 0n) {
      this.#min = this.#max = apicId;
    } else if (apicId < this.#min && this.#max - apicId < cluster) {
      this.#bitmap <<= BigInt(this.#min - apicId);
      this.#min = apicId;
    } else if (apicId > this.#min && apicId < this.#min + cluster) {
      this.#max = Math.max(this.#max, apicId);
    } else {
      full = this.rest();
      this.#min = this.#max = apicId;
    }
    this.#bitmap |= 1n << BigInt(apicId - this.#min);
    return full;
  }

  /** The window so far, if it holds anybody; it is empty afterwards. */
  rest(): IpiWindow | undefined {
    const bitmap = this.#bitmap;
    if (bitmap === 0n) return undefined;
    this.#bitmap = 0n;
    const bits = this.#bits;
    return { bitmapLow: BigInt.asUintN(bits, bitmap), bitmapHigh: bitmap >> BigInt(bits), min: this.#min };
  }
}

/**
 * All the windows of a list of destinations.
 *
 * @example Eighty neighbours are one call; a gap of 128 makes two
 * ```ts
 * import { packIpi } from "@exitless/exitless/guest";
 * import { assertEquals } from "@std/assert";
 *
 * const all = packIpi(Array.from({ length: 80 }, (_, id) => id), 64);
 * assertEquals(all.map(({ min, bitmapHigh }) => [min, bitmapHigh]), [[0, 0xffffn]]);
 * assertEquals(packIpi([0, 128], 64).length, 2);
 * ```
 */
export function packIpi(apicIds: Iterable<number>, bitsPerLong: 64 | 32): IpiWindow[] {
  const packer = new IpiPacker(bitsPerLong);
  const windows: IpiWindow[] = [];
  for (const id of apicIds) {
    const full = packer.add(id);
    if (full !== undefined) windows.push(full);
  }
  const rest = packer.rest();
  if (rest !== undefined) windows.push(rest);
  return windows;
}

/** The driver. */
export const pvIpi: PvDriver = {
  name: "pv-ipi",

  *probe(cpu: X86Cpu, kernel: Kernel): GuestValue<boolean> {
    const overrides = kernel.behaviour.pvIpiOverrides;
    if (overrides.length === 0 || kernel.cpus === 1) return false;
    if (!(yield* kvmParaHasFeature(cpu, "PV_SEND_IPI"))) return false;
    const mask = (cpu: X86Cpu, mask: number, vector: number): Guest => sendMask(cpu, kernel, mask, vector);
    const maskAllButSelf = (cpu: X86Cpu, mask: number, vector: number): Guest =>
      sendMaskAllButSelf(cpu, kernel, mask, vector);
    const { apic } = kernel;
    for (const operation of overrides) {
      switch (operation) {
        case "mask":
          apic.sendIpiMask = mask;
          break;
        case "maskAllButSelf":
          apic.sendIpiMaskAllButSelf = maskAllButSelf;
          break;
        case "all":
          apic.sendIpiAll = (cpu, vector) => mask(cpu, data("online"), vector);
          break;
        case "allButSelf":
          apic.sendIpiAllButSelf = (cpu, vector) => maskAllButSelf(cpu, data("online"), vector);
          break;
      }
    }
    return true;
  },
};

/** kvm_send_ipi_mask. */
function sendMask(cpu: X86Cpu, kernel: Kernel, mask: number, vector: number): Guest {
  return withInterruptsOff(cpu, send(cpu, kernel, mask, vector));
}

/** kvm_send_ipi_mask_allbutself: through this processor's scratch mask. */
function* sendMaskAllButSelf(cpu: X86Cpu, kernel: Kernel, mask: number, vector: number): Guest {
  const scratch = cpu.gsBase + PERCPU_AREA.fields.pvMask.offset;
  yield cpu.load32(cpu.gsBase);
  const self = cpu.eax;
  const words = yield* loadMask(cpu, mask, kernel.cpus);
  removeFrom(words, self);
  yield* storeMask(cpu, scratch, words);
  yield* sendMask(cpu, kernel, scratch, vector);
}

function* send(cpu: X86Cpu, kernel: Kernel, mask: number, vector: number): Guest {
  const words = yield* loadMask(cpu, mask, kernel.cpus);
  const packer = new IpiPacker(kernel.bits);
  for (let target = takeFirst(words); target >= 0; target = takeFirst(words)) {
    yield cpu.load32(percpu(target, "apicId"));
    const full = packer.add(cpu.eax);
    if (full !== undefined) yield* sendWindow(cpu, kernel, full, vector);
  }
  const rest = packer.rest();
  if (rest !== undefined) yield* sendWindow(cpu, kernel, rest, vector);
}

/** Sends to a window. What a host refuses is lost: the kernel warns once, and neither retries nor falls back. */
function* sendWindow(cpu: X86Cpu, kernel: Kernel, window: IpiWindow, vector: number): Guest {
  const args = { ...window, icr: icrLow(vector) };
  const result = yield* hypercall(cpu, "KVM_HC_SEND_IPI", args, kernel.hypercallInstruction);
  if (result < 0) kernel.warn(`KVM_HC_SEND_IPI failed: ${result}`);
}
