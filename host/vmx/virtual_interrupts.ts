/**
 * Virtual interrupts, as the processor has them (SDM 3C 30.1 and 30.2): which one is requested and which one is in
 * service stands in the VMCS (RVI and SVI), what is requested besides in the virtual-APIC page. Software may write any
 * of it and nothing follows: pending interrupts are evaluated at five points alone.
 *
 *     VM entry | TPR, EOI, self-IPI virtualization | posted-interrupt processing
 *         -> evaluation: RVI above VPPR?  recognized, or not any more
 *         -> at an instruction boundary with RFLAGS.IF and without a shadow: delivery
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as cpu from "../cpu/mod.ts";
import type { Processor } from "../cpu/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import * as vectors from "../lapic/vectors.ts";
import type { Vmcs } from "./vmcs.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_ISR,
  APIC_PROCPRI,
  APIC_TASKPRI,
  CPU_BASED_INTR_WINDOW_EXITING,
  CPU_BASED_NMI_WINDOW_EXITING,
  EXIT_REASON_EOI_INDUCED,
  FLAG_IF,
  RFLAGS,
  SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
} = abi;
const { deliverInterrupt } = cpu;
const { clearVector, highestVector, setVector } = vectors;

/** The controls that make the hardware exit at a window. */
export const WINDOWS: number = CPU_BASED_INTR_WINDOW_EXITING | CPU_BASED_NMI_WINDOW_EXITING;
/** The words of the task and the processor priority. */
const VTPR = APIC_TASKPRI >>> 2;
const VPPR = APIC_PROCPRI >>> 2;

/** The virtual interrupts of one logical processor. */
export class VirtualInterrupts {
  /** A virtual interrupt is recognized: it is delivered as soon as the guest takes interrupts. */
  recognized = false;

  readonly #vcpu: Vcpu;
  readonly #vmcs: Vmcs;

  /** Those that `vmcs` controls. */
  constructor(vcpu: Vcpu, vmcs: Vmcs) {
    this.#vcpu = vcpu;
    this.#vmcs = vmcs;
  }

  /** The virtual-interrupt-delivery control. */
  get enabled(): boolean {
    return (this.#vmcs.secondary & SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY) !== 0;
  }

  /** Software writes RVI. */
  setRvi(vector: number): void {
    this.#vmcs.rvi = vector;
  }

  /** VM entry, with virtual-interrupt delivery. */
  entered(): void {
    this.#virtualizePpr();
    this.evaluate();
  }

  /** TPR virtualization: VTPR was written. */
  tprWritten(): void {
    this.#virtualizePpr();
    this.evaluate();
  }

  /** EOI virtualization (SDM 3C 30.1.4). It exits where software wants to see this vector's end. */
  endOfInterrupt(p: Processor): boolean {
    const vmcs = this.#vmcs;
    const { page } = this.#vcpu.lapic;
    const vector = vmcs.svi;
    clearVector(page, APIC_ISR, vector);
    vmcs.svi = Math.max(0, highestVector(page, APIC_ISR));
    this.#virtualizePpr();
    if (((vmcs.eoiExitBitmap[vector >>> 5] >>> (vector & 31)) & 1) !== 0) {
      return p.leaveWith(EXIT_REASON_EOI_INDUCED, vector, 0);
    }
    // With nothing requested, what is not recognized is not recognized now.
    if (this.recognized || vmcs.rvi !== 0) this.evaluate();
    return true;
  }

  /** Self-IPI virtualization (SDM 3C 30.1.5). */
  selfIpi(vector: number): void {
    this.#vcpu.lapic.setIrr(vector);
    this.posted(vector);
  }

  /** The end of posted-interrupt processing: `highest` is the highest vector that was posted, -1 for none. */
  posted(highest: number): void {
    const vmcs = this.#vmcs;
    if (highest > vmcs.rvi) vmcs.rvi = highest;
    this.evaluate();
  }

  /** PPR virtualization (SDM 3C 30.1.3). */
  #virtualizePpr(): void {
    const { page } = this.#vcpu.lapic;
    const tpr = page[VTPR] & 0xff;
    const inService = this.#vmcs.svi & 0xf0;
    page[VPPR] = (tpr & 0xf0) >= inService ? tpr : inService;
  }

  /** Evaluation of pending virtual interrupts (SDM 3C 30.2.1): it may take an earlier recognition back. */
  evaluate(): void {
    const { primary, rvi } = this.#vmcs;
    const { page } = this.#vcpu.lapic;
    const above = (rvi & 0xf0) > (page[VPPR] & 0xf0);
    this.#recognize(above && (primary & CPU_BASED_INTR_WINDOW_EXITING) === 0);
  }

  /** The processor looks at each instruction boundary whether it can be delivered. */
  #recognize(recognized: boolean): void {
    this.recognized = recognized;
    this.#vcpu.processor.requestWindow(recognized || (this.#vmcs.primary & WINDOWS) !== 0);
  }

  /** Delivery of the one that is recognized (SDM 3C 30.2.2). Whether another could follow is not looked at. */
  deliver(p: Processor): true {
    const vmcs = this.#vmcs;
    const { lapic } = this.#vcpu;
    const vector = vmcs.rvi;
    lapic.clearIrr(vector);
    vmcs.rvi = Math.max(0, lapic.highestIrr());
    this.#recognize(false);
    this.serve(p, vector);
    return true;
  }

  /** Whether a vector that was posted, -1 for none, would be delivered next, and come alone. */
  wouldDeliver(p: Processor, vector: number): boolean {
    const { lapic } = this.#vcpu;
    if (p.windowRequested || this.#vmcs.rvi !== 0 || lapic.irrRegisters !== 0) return false;
    if ((p.regs[RFLAGS] & FLAG_IF) === 0 || p.shadow) return false;
    return vector !== -1 && (vector & 0xf0) > (lapic.page[VPPR] & 0xf0);
  }

  /** A vector that is not requested any more is in service, and its handler begins. */
  serve(p: Processor, vector: number): void {
    const { page } = this.#vcpu.lapic;
    setVector(page, APIC_ISR, vector);
    this.#vmcs.svi = vector;
    page[VPPR] = vector & 0xf0;
    p.charge(p.cost.virtualInterrupt);
    deliverInterrupt(p, vector, false);
  }
}
