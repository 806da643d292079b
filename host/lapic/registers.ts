/**
 * The local APIC's registers: what a read gives and what a write does (arch/x86/kvm/lapic.c, kvm_lapic_reg_read and
 * kvm_lapic_reg_write).
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { apicRegister } from "../../abi/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import * as tracing from "../trace/mod.ts";
import { sendIpi } from "./icr.ts";
import { type Lapic, LVT_ENTRIES } from "./lapic.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_ARBPRI,
  APIC_DEST_SELF,
  APIC_DFR,
  APIC_EOI,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR2,
  APIC_ICR_BUSY,
  APIC_ID,
  APIC_LDR,
  APIC_LVR,
  APIC_LVR_DIRECTED_EOI,
  APIC_LVTCMCI,
  APIC_LVTERR,
  APIC_LVTT,
  APIC_LVT_MASKED,
  APIC_LVT_TIMER_MODE_MASK,
  APIC_LVT_TIMER_PERIODIC,
  APIC_PROCPRI,
  APIC_SELF_IPI,
  APIC_SPIV,
  APIC_SPIV_APIC_ENABLED,
  APIC_SPIV_DIRECTED_EOI,
  APIC_TASKPRI,
  APIC_TDCR,
  APIC_TMCCT,
  APIC_TMICT,
} = abi;
const { TP } = tracing;

/** What {@linkcode readRegister} answers for a register that cannot be read. */
export const UNREADABLE = -1;

/** Reads the 32 bits of a register, by an offset that is a multiple of 16. */
function readRegister(lapic: Lapic, offset: number): number {
  switch (offset) {
    case APIC_ARBPRI:
      return 0;
    case APIC_TMCCT:
      return lapic.timer.currentCount();
    case APIC_PROCPRI:
      lapic.updatePpr();
      return lapic.get(offset);
    default:
      return lapic.get(offset);
  }
}

/** Whether software may read a register in the APIC's present mode. */
export function readable(lapic: Lapic, offset: number): boolean {
  if (offset === APIC_LVTCMCI) return false; // LVT_ENTRIES leaves it out.
  const spec = apicRegister(offset);
  if (spec === undefined) return false;
  return (lapic.x2apicMode ? spec.x2apic : spec.xapic).startsWith("r");
}

/**
 * Software reads `bytes` bytes at any offset of the page: within the first four of a register's sixteen bytes, of a
 * register that can be read. {@linkcode UNREADABLE} otherwise.
 */
export function emulatedRead(lapic: Lapic, offset: number, bytes: number): number {
  const within = offset & 0xf;
  if (within + bytes > 4 && !lapic.vcpu.vm.quirk("lapic-read-straddles")) return UNREADABLE;
  if (offset > APIC_SELF_IPI || !readable(lapic, offset & ~0xf)) return UNREADABLE;
  const { vcpu } = lapic;
  vcpu.charge(vcpu.cost.apicRegister);
  const value = readRegister(lapic, offset & ~0xf);
  vcpu.trace(TP.kvm_apic, 0, offset, value);
  if (within + bytes > 4) {
    vcpu.vm.hostFailure(
      `KVM copies ${bytes} bytes at offset ${within} of a 4-byte value to the guest: it leaks its own stack`,
    );
  }
  return value >>> (8 * within);
}

/** Software writes a register. false where that raises #GP in x2APIC mode; in xAPIC mode nobody looks. */
export function emulatedWrite(lapic: Lapic, offset: number, value: number): boolean {
  const { vcpu } = lapic;
  if (offset === APIC_EOI) return emulatedEoi(vcpu, value);
  vcpu.charge(vcpu.cost.apicRegister);
  if (vcpu.hit(TP.kvm_apic)) vcpu.record(TP.kvm_apic, 1, offset, value);
  return writeRegister(lapic, offset, value);
}

/** Software writes the EOI register: what it writes most. Always true. */
export function emulatedEoi(vcpu: Vcpu, value: number): boolean {
  vcpu.time += vcpu.cost.apicRegister;
  if (vcpu.hit(TP.kvm_apic)) vcpu.record(TP.kvm_apic, 1, APIC_EOI, value);
  vcpu.lapic.eoi();
  return true;
}

function writeRegister(lapic: Lapic, offset: number, value: number): boolean {
  const x2apic = lapic.x2apicMode;
  switch (offset) {
    case APIC_ID:
      if (x2apic) return false;
      lapic.set(APIC_ID, value & 0xff00_0000);
      lapic.vcpu.vm.apicMapDirty(lapic.vcpu);
      return true;
    case APIC_TASKPRI:
      lapic.setTpr(value & 0xff);
      return true;
    case APIC_LDR:
      if (x2apic) return false;
      lapic.set(APIC_LDR, value & 0xff00_0000);
      lapic.vcpu.vm.apicMapDirty(lapic.vcpu);
      return true;
    case APIC_DFR:
      if (x2apic) return false;
      lapic.set(APIC_DFR, value | 0x0fff_ffff);
      lapic.vcpu.vm.apicMapDirty(lapic.vcpu);
      return true;
    case APIC_SPIV:
      writeSpiv(lapic, value);
      return true;
    case APIC_ICR:
      // KVM sends at once: the delivery status never shows.
      value &= ~APIC_ICR_BUSY;
      sendIpi(lapic, value, lapic.get(APIC_ICR2) >>> 24);
      lapic.set(APIC_ICR, value);
      return true;
    case APIC_ICR2:
      if (x2apic) return false;
      lapic.set(APIC_ICR2, value & 0xff00_0000);
      return true;
    case APIC_LVTT:
      writeTimerLvt(lapic, value);
      return true;
    case APIC_TMICT:
      lapic.timer.initialCount(value);
      return true;
    case APIC_TDCR:
      lapic.set(APIC_TDCR, value & 0xb);
      lapic.timer.divideChanged();
      return true;
    case APIC_ESR:
      return !(x2apic && value !== 0);
    case APIC_SELF_IPI:
      if (!x2apic || (value & ~0xff) !== 0) return false;
      sendIpi(lapic, APIC_DEST_SELF | value, 0);
      return true;
    default:
      return writeLvt(lapic, offset, value);
  }
}

function writeSpiv(lapic: Lapic, value: number): void {
  const directed = (lapic.get(APIC_LVR) & APIC_LVR_DIRECTED_EOI) !== 0;
  lapic.spivChanged(value & (0x3ff | (directed ? APIC_SPIV_DIRECTED_EOI : 0)));
  if ((value & APIC_SPIV_APIC_ENABLED) !== 0) return;
  for (let entry = 0; entry < LVT_ENTRIES; entry++) {
    const offset = lvtOffset(entry);
    lapic.set(offset, lapic.get(offset) | APIC_LVT_MASKED);
  }
  lapic.timer.modeChanged();
  lapic.timer.pending = false;
}

/** The offset of LVT entry `index`: timer, thermal, counters, LINT0, LINT1, error. */
export function lvtOffset(index: number): number {
  return APIC_LVTT + 16 * index;
}

function masked(lapic: Lapic, value: number): number {
  return lapic.softwareEnabled ? value : value | APIC_LVT_MASKED;
}

function writeTimerLvt(lapic: Lapic, value: number): void {
  const modes = lapic.vcpu.cpuid.tscDeadlineTimer ? APIC_LVT_TIMER_MODE_MASK : APIC_LVT_TIMER_PERIODIC;
  const writable = apicRegister(APIC_LVTT)!.writable & ~APIC_LVT_TIMER_MODE_MASK;
  lapic.set(APIC_LVTT, masked(lapic, value) & (writable | modes));
  lapic.timer.modeChanged();
}

function writeLvt(lapic: Lapic, offset: number, value: number): boolean {
  if (offset < APIC_LVTT || offset > APIC_LVTERR) return false;
  lapic.set(offset, masked(lapic, value) & apicRegister(offset)!.writable);
  return true;
}
