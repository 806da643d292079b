/**
 * The xAPIC driver: registers in a page of memory, one physical destination an IPI (apic_flat_64.c, physical flat).
 *
 * @module
 */

import {
  APIC_DEFAULT_BASE,
  APIC_ICR,
  APIC_ICR2,
  APIC_ICR_BUSY,
  APIC_SHORT_MASK,
  type Guest,
  type X86Cpu,
} from "../../abi/mod.ts";
import { ApicDriver } from "./driver.ts";

/** Drives the APIC through its page. */
export class XapicDriver extends ApicDriver {
  /** The driver's name. */
  readonly name = "xapic";
  /** IDs have 8 bits, and 255 is everybody's. */
  readonly maxApicId = 254;

  /** Nothing to do: this is the mode after reset. */
  override *enable(_cpu: X86Cpu): Guest {}

  /** Loads from the page. */
  override *read(cpu: X86Cpu, register: number): Guest {
    yield cpu.load32(APIC_DEFAULT_BASE + register);
  }

  /** Stores to the page. */
  override *write(cpu: X86Cpu, register: number, value: number): Guest {
    yield cpu.store32(APIC_DEFAULT_BASE + register, value);
  }

  /** Waits until the ICR is free, then writes its upper and its lower half: that sends. */
  override *writeIcr(cpu: X86Cpu, low: number, destination: number): Guest {
    do {
      yield cpu.load32(APIC_DEFAULT_BASE + APIC_ICR);
    } while ((cpu.eax & APIC_ICR_BUSY) !== 0);
    // A shorthand needs no destination.
    if ((low & APIC_SHORT_MASK) === 0) yield cpu.store32(APIC_DEFAULT_BASE + APIC_ICR2, destination << 24);
    yield cpu.store32(APIC_DEFAULT_BASE + APIC_ICR, low);
  }
}
