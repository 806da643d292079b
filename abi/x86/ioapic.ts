/**
 * The I/O APIC that KVM models: Intel's 82093AA, 24 pins (its datasheet, sections 3.1 and 3.2).
 *
 * @module
 */

/** Where the I/O APIC's page is. */
export const IOAPIC_DEFAULT_BASE = 0xfec0_0000;
/** Bytes of its window: KVM claims 256. */
export const IOAPIC_MEM_LENGTH = 0x100;
/** Interrupt pins. */
export const IOAPIC_PINS = 24;
/** The version that KVM shows. */
export const IOAPIC_VERSION = 0x11;

/** MMIO offset of the register select. */
export const IOAPIC_REGSEL = 0x00;
/** MMIO offset of the data window. */
export const IOAPIC_WINDOW = 0x10;

/** Indirect register: ID, bits 27:24. */
export const IOAPIC_REG_ID = 0x00;
/** Indirect register: version, and the highest entry in bits 23:16. */
export const IOAPIC_REG_VERSION = 0x01;
/** Indirect register: arbitration ID. */
export const IOAPIC_REG_ARB_ID = 0x02;
/** The first redirection entry's low half; pin n is at 0x10 + 2n, its high half behind it. */
export const IOAPIC_REG_REDTBL = 0x10;

/** Redirection entry bit 11: logical destination mode. */
export const RTE_LOGICAL = 1 << 11;
/** Redirection entry bit 12: delivery status, read-only. */
export const RTE_STATUS = 1 << 12;
/** Redirection entry bit 13: active low. */
export const RTE_ACTIVE_LOW = 1 << 13;
/** Redirection entry bit 14: remote IRR, read-only: a level interrupt was accepted and not yet ended. */
export const RTE_REMOTE_IRR = 1 << 14;
/** Redirection entry bit 15: level-triggered. */
export const RTE_LEVEL = 1 << 15;
/** Redirection entry bit 16: masked. */
export const RTE_MASKED = 1 << 16;

/** A redirection entry, in words. */
export interface RedirectionEntry {
  /** Bits 7:0. */
  readonly vector: number;
  /** Bits 10:8, in place. */
  readonly deliveryMode: number;
  /** Bit 11. */
  readonly logical: boolean;
  /** Bit 15. */
  readonly level: boolean;
  /** Bit 16. */
  readonly masked: boolean;
  /** Bits 63:56. */
  readonly destination: number;
}

/** The halves of a redirection entry; fields that are left out are 0. */
export function encodeRedirection(entry: Partial<RedirectionEntry>): { low: number; high: number } {
  const low = (entry.vector ?? 0) | (entry.deliveryMode ?? 0) | (entry.logical ? RTE_LOGICAL : 0) |
    (entry.level ? RTE_LEVEL : 0) | (entry.masked ? RTE_MASKED : 0);
  return { low: low >>> 0, high: ((entry.destination ?? 0) << 24) >>> 0 };
}
