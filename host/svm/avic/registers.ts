/**
 * What AVIC does with an access to each register of the APIC (APM volume 2, table 15-22), the same for the xAPIC page
 * and the x2APIC MSRs.
 *
 * @module
 */

import * as abi from "../../../abi/mod.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_ARBPRI,
  APIC_DFR,
  APIC_EOI,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR2,
  APIC_ICR_BUSY,
  APIC_ID,
  APIC_IRR,
  APIC_ISR,
  APIC_LDR,
  APIC_LVR,
  APIC_LVT0,
  APIC_LVT1,
  APIC_LVTERR,
  APIC_LVTPC,
  APIC_LVTT,
  APIC_LVTTHMR,
  APIC_PAGE_SIZE,
  APIC_PROCPRI,
  APIC_RRD,
  APIC_SELF_IPI,
  APIC_SPIV,
  APIC_TASKPRI,
  APIC_TDCR,
  APIC_TMCCT,
  APIC_TMICT,
  APIC_TMR,
  apicRegister,
  X2APIC_ICR_RESERVED,
} = abi;

/** What becomes of an access. */
export type AccessClass =
  /** A plain access to the backing page. */
  | "allow"
  /** Hardware does what the register does: TPR, EOI, ICR, SELF_IPI. */
  | "accelerate"
  /** An exit behind the instruction; the page has the new value. */
  | "trap"
  /** An exit before the instruction. */
  | "fault";

interface Row {
  readonly offset: number;
  readonly count: number;
  readonly read: AccessClass;
  readonly write: AccessClass;
}

function row(offset: number, read: AccessClass, write: AccessClass, count: number = 1): Row {
  return { offset, count, read, write };
}

/**
 * Where the registers end. Behind them a processor without an extended APIC space faults every access the manual speaks
 * of; the page of this host ends here too.
 */
const REGISTERS_END = 0x400;

const TABLE: readonly Row[] = [
  row(APIC_ID, "allow", "trap"),
  row(APIC_LVR, "allow", "fault"),
  row(APIC_TASKPRI, "allow", "accelerate"),
  row(APIC_ARBPRI, "fault", "fault"),
  row(APIC_PROCPRI, "allow", "fault"),
  row(APIC_EOI, "allow", "accelerate"),
  row(APIC_RRD, "allow", "trap"),
  row(APIC_LDR, "allow", "trap"),
  row(APIC_DFR, "allow", "trap"),
  row(APIC_SPIV, "allow", "trap"),
  row(APIC_ISR, "allow", "fault", 8),
  row(APIC_TMR, "allow", "fault", 8),
  row(APIC_IRR, "allow", "fault", 8),
  row(APIC_ESR, "allow", "trap"),
  row(APIC_ICR, "allow", "accelerate"),
  row(APIC_ICR2, "allow", "allow"),
  row(APIC_LVTT, "allow", "trap"),
  row(APIC_LVTTHMR, "allow", "trap"),
  row(APIC_LVTPC, "allow", "trap"),
  row(APIC_LVT0, "allow", "trap"),
  row(APIC_LVT1, "allow", "trap"),
  row(APIC_LVTERR, "allow", "trap"),
  row(APIC_TMICT, "allow", "trap"),
  row(APIC_TMCCT, "fault", "fault"),
  row(APIC_TDCR, "allow", "trap"),
];

/** By register: guests write some of them all the time. */
const READS: readonly AccessClass[] = byRegister(({ read }) => read);
const WRITES: readonly AccessClass[] = byRegister(({ write }) => write);
const X2APIC_READS: readonly boolean[] = x2apicHas("r");
const X2APIC_WRITES: readonly boolean[] = x2apicHas("w");

/** What the table does not name is memory. */
function byRegister(access: (entry: Row) => AccessClass): AccessClass[] {
  const classes: AccessClass[] = registers((offset) => offset >= REGISTERS_END ? "fault" : "allow");
  for (const entry of TABLE) {
    classes.fill(access(entry), entry.offset >>> 4, (entry.offset >>> 4) + entry.count);
  }
  return classes;
}

function x2apicHas(access: "r" | "w"): boolean[] {
  return registers((offset) => apicRegister(offset)?.x2apic.includes(access) === true);
}

function registers<T>(at: (offset: number) => T): T[] {
  return Array.from({ length: APIC_PAGE_SIZE / 16 }, (_, register) => at(16 * register));
}

/** What becomes of an access to the register at an offset, a multiple of 16. */
export function accessClass(offset: number, write: boolean): AccessClass {
  return write ? WRITES[offset >>> 4] : READS[offset >>> 4];
}

/**
 * Whether x2AVIC refuses WRMSR with #GP before it looks at the table. The manual leaves open which of an x2APIC's checks
 * are made (KVM's comment in kvm_x2apic_icr_write knows of the ICR's, busy bit included): all of them, here. What it does
 * not refuse is no fault in the table.
 */
export function refusesWrite(offset: number, low: number, high: number): boolean {
  if (!X2APIC_WRITES[offset >>> 4]) return true;
  if (offset === APIC_ICR) return (low & (X2APIC_ICR_RESERVED | APIC_ICR_BUSY)) !== 0;
  if (high !== 0) return true;
  switch (offset) {
    case APIC_TASKPRI:
    case APIC_SELF_IPI:
      return (low & ~0xff) !== 0;
    case APIC_EOI:
    case APIC_ESR:
      return low !== 0;
    default:
      return false;
  }
}

/** Whether x2AVIC refuses RDMSR: a register that an x2APIC does not have, or that cannot be read. */
export function refusesRead(offset: number): boolean {
  return !X2APIC_READS[offset >>> 4];
}
