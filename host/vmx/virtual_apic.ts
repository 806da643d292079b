/**
 * Accesses to the local APIC that the processor itself carries out, on the virtual-APIC page: through the APIC-access
 * page (SDM 3C 30.4), the x2APIC MSRs (30.5) and CR8 (30.3). What it cannot carry out exits: before the access (an
 * APIC-access exit), or behind it (an APIC-write exit: the value is stored, and RIP is behind the instruction).
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as cpu from "../cpu/mod.ts";
import type { Processor } from "../cpu/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { ipiAtOnce, ipiVirtualization } from "./ipi_virtualization.ts";
import type { VirtualInterrupts } from "./virtual_interrupts.ts";
import type { Vmcs } from "./vmcs.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_ACCESS_LINEAR_READ,
  APIC_ACCESS_LINEAR_WRITE,
  APIC_DEST_LOGICAL,
  APIC_DEST_SELF,
  APIC_EOI,
  APIC_ICR,
  APIC_ICR2,
  APIC_ICR_BUSY,
  APIC_ID,
  APIC_INT_LEVELTRIG,
  APIC_IRR,
  APIC_ISR,
  APIC_LDR,
  APIC_DFR,
  APIC_ESR,
  APIC_LVR,
  APIC_LVT0,
  APIC_LVT1,
  APIC_LVTERR,
  APIC_LVTPC,
  APIC_LVTT,
  APIC_LVTTHMR,
  APIC_MODE_MASK,
  APIC_SELF_IPI,
  APIC_SHORT_MASK,
  APIC_SPIV,
  APIC_TASKPRI,
  APIC_TDCR,
  APIC_TMICT,
  APIC_TMR,
  APIC_VECTOR_MASK,
  CPU_BASED_ACTIVATE_TERTIARY_CONTROLS,
  CPU_BASED_TPR_SHADOW,
  EXIT_REASON_APIC_ACCESS,
  EXIT_REASON_APIC_WRITE,
  EXIT_REASON_TPR_BELOW_THRESHOLD,
  GP_VECTOR,
  OP_STORE32,
  RAX,
  RDX,
  SECONDARY_EXEC_APIC_REGISTER_VIRT,
  SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
  SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE,
  TERTIARY_EXEC_IPI_VIRT,
  X2APIC_EOI,
  X2APIC_ICR,
  X2APIC_ICR_RESERVED,
  X2APIC_MSR_BASE,
  X2APIC_SELF_IPI,
  X2APIC_TPR,
} = abi;
const { ACCESS, emulateOperand, raise } = cpu;

/** The controls that decide which accesses to the page are virtualized. */
const TPR_SHADOW = 1;
const INTERRUPTS = 2;
const REGISTERS = 4;

/** By register of the page: with which of these controls it is virtualized. */
function table(interrupts: readonly number[], registers: readonly number[]): Uint8Array {
  const rows = new Uint8Array(abi.APIC_PAGE_SIZE / 16);
  rows[APIC_TASKPRI >>> 4] |= TPR_SHADOW;
  for (const offset of interrupts) rows[offset >>> 4] |= INTERRUPTS;
  for (const offset of registers) rows[offset >>> 4] |= REGISTERS;
  return rows;
}

/** Registers that APIC-register virtualization lets software read and write. */
const BOTH = [
  APIC_ID,
  APIC_TASKPRI,
  APIC_EOI,
  APIC_LDR,
  APIC_DFR,
  APIC_SPIV,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR2,
  APIC_LVTT,
  APIC_LVTTHMR,
  APIC_LVTPC,
  APIC_LVT0,
  APIC_LVT1,
  APIC_LVTERR,
  APIC_TMICT,
  APIC_TDCR,
];
const BANKS = [APIC_ISR, APIC_TMR, APIC_IRR].flatMap((bank) =>
  Array.from({ length: 8 }, (_, i) => bank + 16 * i)
);
/** SDM 3C 30.4.2. Neither the processor priority nor the timer's count is among them, nor the LVT entry for CMCI. */
const READS = table([APIC_EOI, APIC_ICR], [...BOTH, APIC_LVR, ...BANKS]);
/** SDM 3C 30.4.3. */
const WRITES = table([APIC_EOI, APIC_ICR], BOTH);

/** ICR bits that no virtualized IPI has: reserved, delivery status, level-triggered, a delivery mode but fixed. */
const NEVER_VIRTUAL = X2APIC_ICR_RESERVED | APIC_ICR_BUSY | APIC_INT_LEVELTRIG | APIC_MODE_MASK;
/** What a self-IPI's ICR is asked for: the shorthand besides, whatever the destination mode. */
const SELF_IPI_BITS = NEVER_VIRTUAL | APIC_SHORT_MASK;
/** What an IPI's to one physical destination is asked for: all of them are 0. */
const UNICAST_BITS = NEVER_VIRTUAL | APIC_SHORT_MASK | APIC_DEST_LOGICAL;

/**
 * An APIC-write exit, behind the instruction that wrote. `offset` is where in the page the value is. Always true.
 */
export function apicWriteExit(p: Processor, offset: number): true {
  p.retire(p.context.pending);
  return p.leaveWith(EXIT_REASON_APIC_WRITE, offset, 0);
}

/** The virtualized APIC of one logical processor. */
export class VirtualApic {
  /** WRMSR of the x2APIC's EOI register does not exit, and is virtualized: {@linkcode writeEoi}. */
  eoiPasses = false;
  /** That of its ICR, likewise: {@linkcode writeIcr}. */
  icrPasses = false;
  readonly #vcpu: Vcpu;
  readonly #vmcs: Vmcs;
  readonly #interrupts: VirtualInterrupts;

  /** The one that `vmcs` controls. */
  constructor(vcpu: Vcpu, vmcs: Vmcs, interrupts: VirtualInterrupts) {
    this.#vcpu = vcpu;
    this.#vmcs = vmcs;
    this.#interrupts = interrupts;
  }

  // The APIC-access page.

  /**
   * A data access to the APIC-access page, at an offset. Dealt with: virtualized, or exited. A virtualized read leaves
   * its value to the instruction.
   */
  access(p: Processor, offset: number, bytes: number, write: boolean): boolean {
    // System instructions read their operands, too: those are no loads.
    const spec = ACCESS[p.context.pending];
    const fits = (offset & 0xf) + bytes <= 4;
    const reads = spec?.reads === false || this.#virtualizes(READS, offset);
    if (!fits || !reads || (write && !this.#virtualizes(WRITES, offset))) {
      const type = write ? APIC_ACCESS_LINEAR_WRITE : APIC_ACCESS_LINEAR_READ;
      return p.leaveWith(EXIT_REASON_APIC_ACCESS, type | offset, 0);
    }
    if (write) return this.#write(p, offset, bytes);
    if (this.#interrupts.enabled) p.charge(p.cost.virtualApic);
    p.virtualValue = this.#value(offset, bytes);
    return false;
  }

  #virtualizes(rows: Uint8Array, offset: number): boolean {
    const { primary, secondary } = this.#vmcs;
    if ((primary & CPU_BASED_TPR_SHADOW) === 0) return false;
    const row = rows[offset >>> 4];
    if ((secondary & SECONDARY_EXEC_APIC_REGISTER_VIRT) !== 0) return (row & REGISTERS) !== 0;
    if ((offset & 0xf) !== 0) return false;
    if ((row & TPR_SHADOW) !== 0) return true;
    return (row & INTERRUPTS) !== 0 && (secondary & SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY) !== 0;
  }

  #value(offset: number, bytes: number): number {
    const { page } = this.#vcpu.lapic;
    return (page[offset >>> 2] >>> (8 * (offset & 3))) & mask(bytes);
  }

  /** A virtualized write, or the write of a read-modify-write: stores, and then virtualizes what the offset means. */
  #write(p: Processor, offset: number, bytes: number): true {
    const op = p.context.pending;
    const spec = ACCESS[op]!;
    const { page } = this.#vcpu.lapic;
    let value: number;
    if (op === OP_STORE32) {
      value = p.regs[RAX];
      p.charge(p.cost.store);
    } else {
      const operand = spec.reads ? BigInt(this.#value(offset, bytes) >>> 0) : 0n;
      value = Number(emulateOperand(p, op, operand));
      p.charge(p.cost[spec.primitive]);
    }
    const shift = 8 * (offset & 3);
    const bits = mask(bytes) << shift;
    page[offset >>> 2] = (page[offset >>> 2] & ~bits) | ((value << shift) & bits);
    return this.#written(p, offset);
  }

  /** APIC-write emulation (SDM 3C 30.4.3.2). */
  #written(p: Processor, offset: number): true {
    const { page } = this.#vcpu.lapic;
    switch (offset) {
      case APIC_TASKPRI:
        p.retire(p.context.pending);
        this.setTpr(p, page[APIC_TASKPRI >>> 2] & 0xff);
        return true;
      case APIC_EOI:
        if (!this.#interrupts.enabled) return apicWriteExit(p, offset);
        page[APIC_EOI >>> 2] = 0;
        return this.#endOfInterrupt(p);
      case APIC_ICR:
        return this.#icrWritten(p, page[APIC_ICR >>> 2], page[APIC_ICR2 >>> 2] >>> 24);
    }
    p.charge(p.cost.virtualApic);
    if ((offset & ~3) !== APIC_ICR2) return apicWriteExit(p, offset);
    page[APIC_ICR2 >>> 2] &= 0xff00_0000;
    p.retire(p.context.pending);
    return true;
  }

  // The x2APIC MSRs.

  /** RDMSR of an x2APIC MSR that does not exit. Whether it is virtualized: a register's 64 bits, whatever it is. */
  readMsr(p: Processor, msr: number): boolean {
    const { secondary } = this.#vmcs;
    if ((secondary & SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) === 0) return false;
    const every = (secondary & SECONDARY_EXEC_APIC_REGISTER_VIRT) !== 0;
    if (!every && msr !== X2APIC_TPR) return false;
    const { regs } = p;
    const { page } = this.#vcpu.lapic;
    const word = (msr - X2APIC_MSR_BASE) << 2;
    regs[RAX] = page[word];
    regs[RAX + 1] = 0;
    regs[RDX] = page[word + 1];
    regs[RDX + 1] = 0;
    if (this.#interrupts.enabled) p.charge(p.cost.virtualApic);
    p.charge(p.cost.msr);
    p.retire(p.context.pending);
    return true;
  }

  /** WRMSR of an x2APIC MSR that does not exit. Whether it is virtualized: carried out, exited, or refused. */
  writeMsr(p: Processor, msr: number): boolean {
    const { secondary } = this.#vmcs;
    if ((secondary & SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) === 0) return false;
    const low = p.regs[RAX];
    const high = p.regs[RDX];
    switch (msr) {
      case X2APIC_TPR:
        if (!this.#store(p, APIC_TASKPRI, high === 0 && low <= 0xff)) return true;
        p.retire(p.context.pending);
        this.setTpr(p, low);
        return true;
      case X2APIC_EOI:
        return this.#interrupts.enabled && this.writeEoi(p);
      case X2APIC_SELF_IPI:
        if (!this.#interrupts.enabled) return false;
        if (!this.#store(p, APIC_SELF_IPI, high === 0 && low <= 0xff)) return true;
        return low < 16 ? apicWriteExit(p, APIC_SELF_IPI) : this.#selfIpi(p, low);
      case X2APIC_ICR:
        return this.#virtualizesIpis() && this.writeIcr(p);
      default:
        return false;
    }
  }

  /** Controls, or the MSR bitmap, were written since the last entry. */
  controlsChanged(): void {
    const { msrBitmap, secondary } = this.#vmcs;
    const x2apic = (secondary & SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) !== 0;
    this.eoiPasses = x2apic && this.#interrupts.enabled && !msrBitmap.exits(X2APIC_EOI, true);
    this.icrPasses = x2apic && this.#virtualizesIpis() && !msrBitmap.exits(X2APIC_ICR, true);
  }

  /** WRMSR of the EOI register, which is virtualized. */
  writeEoi(p: Processor): true {
    const { regs } = p;
    return !this.#store(p, APIC_EOI, (regs[RAX] | regs[RDX]) === 0) || this.#endOfInterrupt(p);
  }

  /** WRMSR of the ICR, which is virtualized. */
  writeIcr(p: Processor): true {
    const low = p.regs[RAX];
    const valid = (low & X2APIC_ICR_RESERVED) === 0;
    return !this.#store(p, APIC_ICR, valid) || this.#unicast(p, low, p.regs[RDX]);
  }

  /** Stores EDX:EAX in the page; what is reserved raises #GP instead. */
  #store(p: Processor, offset: number, valid: boolean): boolean {
    if (!valid) {
      raise(p, GP_VECTOR, 0);
      return false;
    }
    const { page } = this.#vcpu.lapic;
    page[offset >>> 2] = p.regs[RAX];
    page[(offset >>> 2) + 1] = p.regs[RDX];
    p.charge(p.cost.msr);
    return true;
  }

  // What follows.

  /**
   * VTPR has a new value: TPR virtualization (SDM 3C 30.1.2). Without virtual interrupts it exits below the threshold,
   * behind the instruction.
   */
  setTpr(p: Processor, value: number): void {
    this.#vcpu.lapic.set(APIC_TASKPRI, value);
    if (this.#interrupts.enabled) {
      p.charge(p.cost.virtualEoi);
      this.#interrupts.tprWritten();
    } else if (value >>> 4 < this.#vmcs.tprThreshold) {
      p.leave(EXIT_REASON_TPR_BELOW_THRESHOLD);
    }
  }

  #endOfInterrupt(p: Processor): true {
    p.charge(p.cost.virtualEoi);
    p.retire(p.context.pending);
    this.#interrupts.endOfInterrupt(p);
    return true;
  }

  #selfIpi(p: Processor, vector: number): true {
    p.charge(p.cost.virtualEoi);
    p.retire(p.context.pending);
    this.#interrupts.selfIpi(vector);
    return true;
  }

  /** VICR_LO was written through the page (SDM 3C 30.4.3.2). */
  #icrWritten(p: Processor, low: number, destination: number): true {
    const vector = low & APIC_VECTOR_MASK;
    if (this.#interrupts.enabled && (low & SELF_IPI_BITS) === APIC_DEST_SELF && vector >= 16) {
      return this.#selfIpi(p, vector);
    }
    p.charge(p.cost.virtualApic);
    if (!this.#virtualizesIpis()) return apicWriteExit(p, APIC_ICR);
    return this.#unicast(p, low, destination);
  }

  #virtualizesIpis(): boolean {
    const { primary, tertiary } = this.#vmcs;
    return (primary & CPU_BASED_ACTIVATE_TERTIARY_CONTROLS) !== 0 &&
      (tertiary & TERTIARY_EXEC_IPI_VIRT) !== 0;
  }

  /** IPI virtualization does one fixed edge to one physical destination. */
  #unicast(p: Processor, low: number, destination: number): true {
    if ((low & UNICAST_BITS) !== 0) return apicWriteExit(p, APIC_ICR);
    if (p.engine.explores) return p.perform(ipiVirtualization(p, low, destination));
    ipiAtOnce(p, low, destination);
    return true;
  }
}

/** The bits of an access of 1, 2 or 4 bytes. */
function mask(bytes: number): number {
  return bytes === 4 ? -1 : (1 << (8 * bytes)) - 1;
}
