/**
 * The local APIC's register map and the encodings of its command and vector-table registers (SDM 3A chapter 11,
 * table 11-1 and figures 11-8, 11-12; in x2APIC mode table 11-6 and figure 11-28).
 *
 * @module
 */

import { HIGH } from "../bits.ts";

/** Where the APIC's page is after reset. */
export const APIC_DEFAULT_BASE = 0xfee0_0000;
/** Bytes of the APIC's page. */
export const APIC_PAGE_SIZE = 0x1000;

/** Local APIC ID. */
export const APIC_ID = 0x020;
/** Version. */
export const APIC_LVR = 0x030;
/** Task priority. */
export const APIC_TASKPRI = 0x080;
/** Arbitration priority. */
export const APIC_ARBPRI = 0x090;
/** Processor priority. */
export const APIC_PROCPRI = 0x0a0;
/** End of interrupt. */
export const APIC_EOI = 0x0b0;
/** Remote read. */
export const APIC_RRD = 0x0c0;
/** Logical destination. */
export const APIC_LDR = 0x0d0;
/** Destination format. */
export const APIC_DFR = 0x0e0;
/** Spurious-interrupt vector. */
export const APIC_SPIV = 0x0f0;
/** In-service, 8 registers. */
export const APIC_ISR = 0x100;
/** Trigger mode, 8 registers. */
export const APIC_TMR = 0x180;
/** Interrupt request, 8 registers. */
export const APIC_IRR = 0x200;
/** Error status. */
export const APIC_ESR = 0x280;
/** LVT: corrected machine check. */
export const APIC_LVTCMCI = 0x2f0;
/** Interrupt command; in x2APIC mode all 64 bits. */
export const APIC_ICR = 0x300;
/** Interrupt command, bits 63:32; in xAPIC mode only. */
export const APIC_ICR2 = 0x310;
/** LVT: timer. */
export const APIC_LVTT = 0x320;
/** LVT: thermal sensor. */
export const APIC_LVTTHMR = 0x330;
/** LVT: performance counters. */
export const APIC_LVTPC = 0x340;
/** LVT: pin LINT0. */
export const APIC_LVT0 = 0x350;
/** LVT: pin LINT1. */
export const APIC_LVT1 = 0x360;
/** LVT: internal errors. */
export const APIC_LVTERR = 0x370;
/** Timer, initial count. */
export const APIC_TMICT = 0x380;
/** Timer, current count. */
export const APIC_TMCCT = 0x390;
/** Timer, divide configuration. */
export const APIC_TDCR = 0x3e0;
/** Self IPI; in x2APIC mode only. */
export const APIC_SELF_IPI = 0x3f0;

/** A register of the local APIC. */
export interface ApicRegisterSpec {
  /** Offset in the page; in x2APIC mode the MSR is 0x800 + offset / 16. */
  readonly offset: number;
  /** The kernel's name. */
  readonly name: string;
  /** The manual's name. */
  readonly meaning: string;
  /** Registers that follow at a stride of 16 bytes, itself included. */
  readonly count: number;
  /** Which accesses xAPIC mode has. */
  readonly xapic: "rw" | "r" | "w" | "-";
  /** Which accesses x2APIC mode has; others raise #GP. */
  readonly x2apic: "rw" | "r" | "w" | "-";
  /**
   * The bits of a written value that KVM keeps; 0 where nothing is kept. SPIV also keeps bit 12 where EOI broadcasts
   * can be suppressed, and LVTT bit 18 only where the timer has TSC-deadline mode.
   */
  readonly writable: number;
}

function register(
  offset: number,
  name: string,
  meaning: string,
  xapic: ApicRegisterSpec["xapic"],
  x2apic: ApicRegisterSpec["x2apic"],
  writable: number,
  count: number = 1,
): ApicRegisterSpec {
  return { offset, name, meaning, count, xapic, x2apic, writable };
}

/** LVT bits 7:0, 12 and 16: vector, delivery status, mask. KVM keeps the status bit as written. */
const LVT_MASK = 0x0001_10ff;
/** With the delivery mode. */
const LVT_MODE_MASK = LVT_MASK | 0x700;
/** With polarity, remote IRR and trigger mode. */
const LINT_MASK = LVT_MODE_MASK | 0xe000;

/** Every register, in address order. */
export const APIC_REGISTERS: readonly ApicRegisterSpec[] = [
  register(APIC_ID, "APIC_ID", "local APIC ID", "rw", "r", 0xff00_0000),
  register(APIC_LVR, "APIC_LVR", "version", "r", "r", 0),
  register(APIC_TASKPRI, "APIC_TASKPRI", "task priority", "rw", "rw", 0xff),
  register(APIC_ARBPRI, "APIC_ARBPRI", "arbitration priority", "r", "-", 0),
  register(APIC_PROCPRI, "APIC_PROCPRI", "processor priority", "r", "r", 0),
  register(APIC_EOI, "APIC_EOI", "end of interrupt", "w", "w", 0),
  register(APIC_RRD, "APIC_RRR", "remote read", "-", "-", 0),
  register(APIC_LDR, "APIC_LDR", "logical destination", "rw", "r", 0xff00_0000),
  register(APIC_DFR, "APIC_DFR", "destination format", "rw", "-", 0xf000_0000),
  register(APIC_SPIV, "APIC_SPIV", "spurious-interrupt vector", "rw", "rw", 0x3ff),
  register(APIC_ISR, "APIC_ISR", "in service", "r", "r", 0, 8),
  register(APIC_TMR, "APIC_TMR", "trigger mode", "r", "r", 0, 8),
  register(APIC_IRR, "APIC_IRR", "interrupt request", "r", "r", 0, 8),
  register(APIC_ESR, "APIC_ESR", "error status", "rw", "rw", 0),
  register(APIC_LVTCMCI, "APIC_LVTCMCI", "LVT corrected machine check", "rw", "rw", LVT_MODE_MASK),
  register(APIC_ICR, "APIC_ICR", "interrupt command", "rw", "rw", 0xffff_efff),
  register(APIC_ICR2, "APIC_ICR2", "interrupt command, high half", "rw", "-", 0xff00_0000),
  register(APIC_LVTT, "APIC_LVTT", "LVT timer", "rw", "rw", LVT_MASK | 0x6_0000),
  register(APIC_LVTTHMR, "APIC_LVTTHMR", "LVT thermal sensor", "rw", "rw", LVT_MODE_MASK),
  register(APIC_LVTPC, "APIC_LVTPC", "LVT performance counters", "rw", "rw", LVT_MODE_MASK),
  register(APIC_LVT0, "APIC_LVT0", "LVT LINT0", "rw", "rw", LINT_MASK),
  register(APIC_LVT1, "APIC_LVT1", "LVT LINT1", "rw", "rw", LINT_MASK),
  register(APIC_LVTERR, "APIC_LVTERR", "LVT error", "rw", "rw", LVT_MASK),
  register(APIC_TMICT, "APIC_TMICT", "timer initial count", "rw", "rw", 0xffff_ffff),
  register(APIC_TMCCT, "APIC_TMCCT", "timer current count", "r", "r", 0),
  register(APIC_TDCR, "APIC_TDCR", "timer divide configuration", "rw", "rw", 0xb),
  register(APIC_SELF_IPI, "APIC_SELF_IPI", "self IPI", "-", "w", 0),
];

const NAME_OF: ReadonlyMap<number, ApicRegisterSpec> = new Map(
  APIC_REGISTERS.flatMap((spec) =>
    Array.from({ length: spec.count }, (_, i) => [spec.offset + 16 * i, spec] as const)
  ),
);

/** The register at an offset that is a multiple of 16; undefined where there is none. */
export function apicRegister(offset: number): ApicRegisterSpec | undefined {
  return NAME_OF.get(offset);
}

/**
 * What kvm_apic prints for an offset (arch/x86/kvm/trace.h, kvm_trace_symbol_apic): the name of a register, and the
 * bare offset for the second to eighth of a bank and for LVTCMCI, which the kernel's table lacks.
 */
export function apicRegisterName(offset: number): string {
  const spec = NAME_OF.get(offset);
  if (spec === undefined || spec.offset !== offset || offset === APIC_LVTCMCI) {
    return `0x${offset.toString(16)}`;
  }
  return spec.name;
}

/** Version register: the integrated APIC that KVM shows. */
export const APIC_VERSION = 0x14;
/** Version register bit 24: EOI broadcasts can be suppressed. */
export const APIC_LVR_DIRECTED_EOI = 1 << 24;
/** Spurious-vector register bit 8: the APIC is software-enabled. */
export const APIC_SPIV_APIC_ENABLED = 1 << 8;
/** Spurious-vector register bit 12: no EOI broadcasts. */
export const APIC_SPIV_DIRECTED_EOI = 1 << 12;
/** Destination format: flat. */
export const APIC_DFR_FLAT = 0xffff_ffff;
/** Destination format: cluster. */
export const APIC_DFR_CLUSTER = 0x0fff_ffff;

/** IA32_APIC_BASE bit 8: this is the bootstrap processor. */
export const APICBASE_BSP = 1 << 8;
/** IA32_APIC_BASE bit 10: x2APIC mode. */
export const APICBASE_X2APIC_ENABLE = 1 << 10;
/** IA32_APIC_BASE bit 11: the APIC is enabled. */
export const APICBASE_ENABLE = 1 << 11;

/** Physical broadcast in xAPIC mode. */
export const APIC_BROADCAST = 0xff;
/** Physical broadcast in x2APIC mode. */
export const X2APIC_BROADCAST = 0xffff_ffff;

/** Delivery mode: fixed. */
export const APIC_DM_FIXED = 0x000;
/** Delivery mode: lowest priority. */
export const APIC_DM_LOWEST = 0x100;
/** Delivery mode: system-management interrupt. */
export const APIC_DM_SMI = 0x200;
/** Delivery mode: remote read; KVM's own wake-up message. */
export const APIC_DM_REMRD = 0x300;
/** Delivery mode: NMI. */
export const APIC_DM_NMI = 0x400;
/** Delivery mode: INIT. */
export const APIC_DM_INIT = 0x500;
/** Delivery mode: start-up. */
export const APIC_DM_STARTUP = 0x600;
/** Delivery mode: external interrupt controller. */
export const APIC_DM_EXTINT = 0x700;
/** ICR and LVT bits 10:8: the delivery mode. */
export const APIC_MODE_MASK = 0x700;
/** ICR bits 7:0 and LVT bits 7:0: the vector. */
export const APIC_VECTOR_MASK = 0xff;
/** ICR bit 11: logical destination mode. */
export const APIC_DEST_LOGICAL = 0x800;
/** ICR bit 12: send pending. */
export const APIC_ICR_BUSY = 0x1000;
/** ICR bit 14: assert. */
export const APIC_INT_ASSERT = 0x4000;
/** ICR bit 15: level-triggered. */
export const APIC_INT_LEVELTRIG = 0x8000;
/** ICR bits 19:18: the shorthand. */
export const APIC_SHORT_MASK = 0xc0000;
/** Shorthand: self. */
export const APIC_DEST_SELF = 0x40000;
/** Shorthand: all including self. */
export const APIC_DEST_ALLINC = 0x80000;
/** Shorthand: all excluding self. */
export const APIC_DEST_ALLBUT = 0xc0000;
/** Reserved bits of the x2APIC ICR's low half: 31:20, 17:16 and 13. */
export const X2APIC_ICR_RESERVED = 0xfff3_2000;

/** LVT bit 15: level-triggered. */
export const APIC_LVT_LEVEL_TRIGGER = 1 << 15;
/** LVT bit 16: masked. */
export const APIC_LVT_MASKED = 1 << 16;
/** LVT timer bits 18:17: the mode. */
export const APIC_LVT_TIMER_MODE_MASK = 3 << 17;
/** LVT timer mode: one-shot. */
export const APIC_LVT_TIMER_ONESHOT = 0 << 17;
/** LVT timer mode: periodic. */
export const APIC_LVT_TIMER_PERIODIC = 1 << 17;
/** LVT timer mode: TSC deadline. */
export const APIC_LVT_TIMER_TSCDEADLINE = 2 << 17;

/** Delivery modes by number (ICR bits 10:8), as trace events print them. */
export const DELIVERY_MODES: readonly string[] = [
  "Fixed",
  "LowPrio",
  "SMI",
  "Res3",
  "NMI",
  "INIT",
  "SIPI",
  "ExtINT",
];

/** What an ICR holds, in words. */
export interface Icr {
  /** Bits 7:0. */
  readonly vector: number;
  /** Bits 10:8, in place (0x000 to 0x700). */
  readonly deliveryMode: number;
  /** Bit 11: logical destination mode. */
  readonly logical: boolean;
  /** Bit 14. */
  readonly assert: boolean;
  /** Bit 15. */
  readonly level: boolean;
  /** Bits 19:18, in place. */
  readonly shorthand: number;
  /** The destination: 8 bits in xAPIC, 32 in x2APIC mode. */
  readonly destination: number;
}

/** The two halves of an ICR. */
export interface IcrHalves {
  /** Bits 31:0. */
  readonly low: number;
  /** Bits 63:32. */
  readonly high: number;
}

/**
 * Encodes an ICR; fields that are left out are 0. In xAPIC mode the destination goes to bits 63:56. Throws `RangeError`
 * for a destination that the mode has no room for.
 */
export function encodeIcr(icr: Partial<Icr>, mode: "xapic" | "x2apic"): IcrHalves {
  const low = (icr.vector ?? 0) | (icr.deliveryMode ?? 0) | (icr.logical ? APIC_DEST_LOGICAL : 0) |
    (icr.assert ? APIC_INT_ASSERT : 0) | (icr.level ? APIC_INT_LEVELTRIG : 0) | (icr.shorthand ?? 0);
  const destination = icr.destination ?? 0;
  const limit = mode === "x2apic" ? X2APIC_BROADCAST : APIC_BROADCAST;
  if (!Number.isInteger(destination) || destination < 0 || destination > limit) {
    throw new RangeError(`Cannot encode ICR destination ${destination}: ${mode} mode has 0 to ${limit}`);
  }
  return { low: low >>> 0, high: (mode === "x2apic" ? destination : destination << 24) >>> 0 };
}

/** Decodes an ICR. */
export function decodeIcr(low: number, high: number, mode: "xapic" | "x2apic"): Icr {
  return {
    vector: low & APIC_VECTOR_MASK,
    deliveryMode: low & APIC_MODE_MASK,
    logical: (low & APIC_DEST_LOGICAL) !== 0,
    assert: (low & APIC_INT_ASSERT) !== 0,
    level: (low & APIC_INT_LEVELTRIG) !== 0,
    shorthand: low & APIC_SHORT_MASK,
    destination: mode === "x2apic" ? high >>> 0 : high >>> 24,
  };
}

/** What a local-vector-table register holds, in words. */
export interface Lvt {
  /** Bits 7:0. */
  readonly vector: number;
  /** Bits 10:8, in place; the timer's and the error register's have none. */
  readonly deliveryMode: number;
  /** Bit 15: level-triggered (LINT0 and LINT1). */
  readonly level: boolean;
  /** Bit 16. */
  readonly masked: boolean;
  /** Bits 18:17 of the timer's, in place. */
  readonly timerMode: number;
}

/** Encodes an LVT register; fields that are left out are 0. */
export function encodeLvt(lvt: Partial<Lvt>): number {
  return (lvt.vector ?? 0) | (lvt.deliveryMode ?? 0) | (lvt.level ? APIC_LVT_LEVEL_TRIGGER : 0) |
    (lvt.masked ? APIC_LVT_MASKED : 0) | (lvt.timerMode ?? 0);
}

/** Decodes an LVT register. */
export function decodeLvt(value: number): Lvt {
  return {
    vector: value & APIC_VECTOR_MASK,
    deliveryMode: value & APIC_MODE_MASK,
    level: (value & APIC_LVT_LEVEL_TRIGGER) !== 0,
    masked: (value & APIC_LVT_MASKED) !== 0,
    timerMode: value & APIC_LVT_TIMER_MODE_MASK,
  };
}

/** The divisor that a divide configuration register selects: 1 to 128 (SDM 3A figure 11-10). */
export function timerDivisor(tdcr: number): number {
  const code = (tdcr & 3) | ((tdcr & 8) >> 1);
  return 1 << ((code + 1) & 7);
}

/** The logical destination register that an x2APIC derives from its ID (SDM 3A 11.12.10.2). */
export function x2apicLdr(id: number): number {
  return (((id >>> 4) << 16) | (1 << (id & 15))) >>> 0;
}

/** The ICR as one whole number, for printing. */
export function icrNumber(icr: IcrHalves): bigint {
  return BigInt(icr.high) * BigInt(HIGH) + BigInt(icr.low);
}
