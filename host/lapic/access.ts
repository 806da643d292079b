/**
 * The two ways in which software reaches its local APIC: the xAPIC page and the x2APIC MSRs.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { apicPageAddress } from "./base.ts";
import * as icr from "./icr.ts";
import type { Lapic } from "./lapic.ts";
import * as registers from "./registers.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_ICR, APIC_PAGE_SIZE, X2APIC_MSR_BASE } = abi;
const { writeX2apicIcr, x2apicIcrHigh } = icr;
const { emulatedRead, emulatedWrite, UNREADABLE } = registers;

/** What an MMIO read gave: the value, or that the APIC does not answer. */
export type MmioRead = { readonly value: bigint } | "not-mine";

/** Whether an address is on the APIC's page. */
function onApicPage(lapic: Lapic, address: number): boolean {
  const page = apicPageAddress(lapic);
  return address >= page && address < page + APIC_PAGE_SIZE;
}

/** In x2APIC mode and while disabled the page is a hole: with KVM's quirk it reads ones and ignores writes. */
function hole(lapic: Lapic): boolean {
  return !lapic.hardwareEnabled || lapic.x2apicMode;
}

/** Reads `bytes` bytes of the page. A register that cannot be read leaves the guest's buffer as it is: zero here. */
export function readPage(lapic: Lapic, address: number, bytes: number): MmioRead {
  if (!onApicPage(lapic, address)) return "not-mine";
  if (hole(lapic)) {
    if (!lapic.vcpu.vm.kvmQuirk("LAPIC_MMIO_HOLE")) return "not-mine";
    return { value: (1n << BigInt(8 * bytes)) - 1n };
  }
  const value = emulatedRead(lapic, address - apicPageAddress(lapic), bytes);
  return { value: value === UNREADABLE ? 0n : BigInt(value) & ((1n << BigInt(8 * bytes)) - 1n) };
}

/** Writes to the page: 4 bytes at a multiple of 16 are a register write, anything else is ignored. */
export function writePage(lapic: Lapic, address: number, bytes: number, value: number): "done" | "not-mine" {
  if (!onApicPage(lapic, address)) return "not-mine";
  if (hole(lapic)) return lapic.vcpu.vm.kvmQuirk("LAPIC_MMIO_HOLE") ? "done" : "not-mine";
  const offset = address - apicPageAddress(lapic);
  if (bytes === 4 && (offset & 0xf) === 0) emulatedWrite(lapic, offset & 0xff0, value);
  return "done";
}

/**
 * Hardware has written a register's value to the page, and leaves it to KVM to do what the register does
 * (kvm_apic_write_nodecode). Nobody can raise a fault for it any more.
 */
export function writeNodecode(lapic: Lapic, offset: number): void {
  if (!lapic.x2apicMode || offset !== APIC_ICR) {
    emulatedWrite(lapic, offset, lapic.get(offset));
  } else if (!writeX2apicIcr(lapic, lapic.get(APIC_ICR), x2apicIcrHigh(lapic))) {
    lapic.vcpu.vm.hostFailure("WARN: hardware has let an x2APIC ICR with reserved bits pass");
  }
}

/** The halves of a 64-bit MSR value. */
export class MsrValue {
  /** Bits 31:0. */
  low = 0;
  /** Bits 63:32. */
  high = 0;
}

/** RDMSR in the x2APIC range. false raises #GP. */
export function readX2apicMsr(lapic: Lapic, msr: number, value: MsrValue): boolean {
  if (!lapic.x2apicMode) return false;
  const offset = (msr - X2APIC_MSR_BASE) << 4;
  if (offset === APIC_ICR) {
    value.low = lapic.get(APIC_ICR);
    value.high = x2apicIcrHigh(lapic);
    return true;
  }
  const read = emulatedRead(lapic, offset, 4);
  if (read === UNREADABLE) return false;
  value.low = read;
  value.high = 0;
  return true;
}

/** WRMSR in the x2APIC range. false raises #GP: bits 63:32 are reserved in every register but the ICR. */
export function writeX2apicMsr(lapic: Lapic, msr: number, low: number, high: number): boolean {
  if (!lapic.x2apicMode) return false;
  const offset = (msr - X2APIC_MSR_BASE) << 4;
  if (offset === APIC_ICR) return writeX2apicIcr(lapic, low, high);
  if (high !== 0) return false;
  return emulatedWrite(lapic, offset, low);
}
