/**
 * AVIC in guest mode: what the processor makes of accesses to the APIC, and the virtual interrupts that it takes from
 * the backing page (APM volume 2, 15.29.3 to 15.29.6).
 *
 *     VMRUN | doorbell | EOI | TPR -> evaluation: is a requested vector's class above the priority? pending, or not
 *         -> at an instruction boundary with RFLAGS.IF and without a shadow: delivery
 *
 * A request that software writes to the page and does not ring for waits for the next of these.
 *
 * @module
 */

import * as abi from "../../../abi/mod.ts";
import * as cpu from "../../cpu/mod.ts";
import type { Processor } from "../../cpu/mod.ts";
import type { Vcpu } from "../../kvm/vcpu.ts";
import * as vectors from "../../lapic/vectors.ts";
import type { ApicPage } from "../../lapic/vectors.ts";
import type { Vmcb } from "../vmcb.ts";
import * as ipi from "./ipi.ts";
import * as registers from "./registers.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_DEST_SELF,
  APIC_EOI,
  APIC_ICR,
  APIC_ICR2,
  APIC_IRR,
  APIC_ISR,
  APIC_PAGE_SIZE,
  APIC_PROCPRI,
  APIC_SELF_IPI,
  APIC_TASKPRI,
  APIC_TMR,
  FLAG_IF,
  GP_VECTOR,
  HIGH,
  OP_STORE32,
  RAX,
  RDX,
  RFLAGS,
  SVM_EXIT_AVIC_UNACCELERATED_ACCESS,
  V_TPR_MASK,
  X2APIC_MSR_BASE,
} = abi;
const { ACCESS, deliverInterrupt, emulateOperand, raise } = cpu;
const { clearVector, highestVector, setVector, testVector } = vectors;
const { sendDirected, sendIpi } = ipi;
const { accessClass, refusesRead, refusesWrite } = registers;

/** The words of the task and the processor priority. */
const TPR = APIC_TASKPRI >>> 2;
const PPR = APIC_PROCPRI >>> 2;

const NO_PAGE = new Uint32Array(0);

/** AVIC of one processor. */
export class AvicHardware {
  /** The vCPU that it runs. */
  declare readonly vcpu: Vcpu;
  /** What controls it. */
  declare readonly vmcb: Vmcb;
  /** The backing page. */
  page: ApicPage = NO_PAGE;
  /** The physical APIC ID table. */
  physical: Uint32Array = NO_PAGE;
  /** The logical APIC ID table; of no use in x2APIC mode. */
  logical: Uint32Array = NO_PAGE;
  /** A virtual interrupt is delivered as soon as the guest takes interrupts. */
  pending = false;
  /** KVM has taken the APIC's page out of guest memory for good: nothing is mapped there any more. */
  pageDeleted = false;

  /** The one that `vmcb` controls. */
  constructor(vcpu: Vcpu, vmcb: Vmcb) {
    this.vcpu = vcpu;
    this.vmcb = vmcb;
  }

  // Virtual interrupts.

  /** VMRUN finds new pointers in the VMCB. */
  loadPointers(): void {
    const { vmcb } = this;
    const { hostMemory } = this.vcpu.machine;
    this.page = hostMemory.at(vmcb.avicBackingPage);
    this.physical = hostMemory.at(vmcb.avicPhysicalTable);
    this.logical = vmcb.x2avic ? NO_PAGE : hostMemory.at(vmcb.avicLogicalTable);
  }

  /** At VMRUN, and at the other points: looks whether a virtual interrupt is to be delivered; what was pending before may not be any more. */
  evaluate(p: Processor): void {
    const requested = highestVector(this.page, APIC_IRR);
    const priority = this.#updatePpr();
    this.#settle(p, requested >= 0 && (requested & 0xf0) > (priority & 0xf0));
  }

  #settle(p: Processor, pending: boolean): void {
    const { vmcb } = this;
    this.pending = pending;
    p.requestWindow(pending || vmcb.interceptVintr || vmcb.singleStep);
  }

  /** The processor priority: the class in service, or the task priority where that is higher. */
  #updatePpr(): number {
    const { page } = this;
    const tpr = page[TPR] & 0xff;
    const highest = highestVector(page, APIC_ISR);
    const inService = highest < 0 ? 0 : highest & 0xf0;
    return (page[PPR] = (tpr & 0xf0) >= inService ? tpr : inService);
  }

  /** Delivers what is pending, if the guest takes interrupts now: the highest vector that is requested by now. */
  deliver(p: Processor): boolean {
    if (!this.pending || (p.regs[RFLAGS] & FLAG_IF) === 0 || p.shadow) return false;
    this.#settle(p, false); // What else is requested is not above this one.
    return this.#serve(p, highestVector(this.page, APIC_IRR));
  }

  /** A doorbell has rung: the evaluation, and mostly the delivery that comes next. Whether anything was delivered. */
  doorbell(p: Processor): boolean {
    const vector = highestVector(this.page, APIC_IRR);
    const priority = this.#updatePpr();
    const above = vector >= 0 && (vector & 0xf0) > (priority & 0xf0);
    if (above && !p.windowRequested && (p.regs[RFLAGS] & FLAG_IF) !== 0 && !p.shadow) {
      return this.#serve(p, vector);
    }
    this.#settle(p, above);
    return false;
  }

  #serve(p: Processor, vector: number): true {
    const { page } = this;
    this.vcpu.lapic.clearIrr(vector);
    setVector(page, APIC_ISR, vector);
    page[PPR] = vector & 0xf0; // Its class is above all others in service, and above the task priority.
    p.charge(p.cost.virtualInterrupt);
    deliverInterrupt(p, vector, false);
    return true;
  }

  /** Requests a vector of this processor's own. */
  request(vector: number): void {
    setVector(this.page, APIC_IRR, vector);
  }

  /** A write of the EOI register. Where the vector's trigger mode is level, software ends it: nothing is done yet. */
  #endOfInterrupt(p: Processor): true {
    const { page } = this;
    const vector = highestVector(page, APIC_ISR);
    p.charge(p.cost.virtualEoi);
    p.skipInstruction();
    if (vector >= 0 && testVector(page, APIC_TMR, vector)) {
      return this.#unaccelerated(p, APIC_EOI, true, vector);
    }
    if (vector >= 0) clearVector(page, APIC_ISR, vector);
    this.evaluate(p);
    return true;
  }

  /** The task priority has a new value; V_TPR is its class. */
  #writeTpr(p: Processor, value: number): true {
    this.page[TPR] = value & 0xff;
    this.vmcb.intCtl = (this.vmcb.intCtl & ~V_TPR_MASK) | ((value >>> 4) & V_TPR_MASK);
    p.charge(p.cost.virtualEoi);
    this.evaluate(p);
    return true;
  }

  /** MOV to CR8 has set V_TPR: the page follows. */
  cr8Written(p: Processor, value: number): void {
    this.#writeTpr(p, value << 4);
  }

  // Accesses.

  /** Whether an address is on the page that AVIC looks after. In x2APIC mode there is none. */
  claims(address: number): boolean {
    if (this.pageDeleted) return false;
    const offset = address - this.vmcb.avicApicBar;
    return offset >= 0 && offset < APIC_PAGE_SIZE && this.vmcb.avic && !this.vmcb.x2avic;
  }

  /** A data access to the page. A read that is carried out leaves its value to the instruction. */
  access(p: Processor, address: number, bytes: number, write: boolean): boolean {
    const within = address - this.vmcb.avicApicBar;
    const offset = within & 0xff0;
    // The manual defines bytes 3:0 of each 16 alone, and writes of 32 bits; software may decide about others.
    const defined = (within & 0xf) + bytes <= 4 && (!write || bytes === 4);
    // System instructions read their operands, too: those are no loads.
    const reads = ACCESS[p.context.pending]?.reads ?? true;
    const readable = !reads || accessClass(offset, false) === "allow";
    if (!defined || !readable || (write && accessClass(offset, true) === "fault")) {
      return this.#unaccelerated(p, offset, write, 0);
    }
    p.charge(p.cost.virtualApic);
    if (write) return this.#store(p, offset);
    const value = this.page[offset >>> 2] >>> (8 * (within & 3));
    p.virtualValue = bytes === 4 ? value : value & ((1 << (8 * bytes)) - 1);
    return false;
  }

  /** The write of a store, or of a read-modify-write. */
  #store(p: Processor, offset: number): true {
    const op = p.context.pending;
    p.charge(p.cost[ACCESS[op]!.primitive]);
    if (op === OP_STORE32) return this.#write(p, offset, p.regs[RAX]);
    return this.#write(p, offset, Number(emulateOperand(p, op, BigInt(this.page[offset >>> 2]))));
  }

  /** RDMSR of an x2APIC register that is not intercepted. Always dealt with. */
  readMsr(p: Processor, msr: number): true {
    const offset = (msr - X2APIC_MSR_BASE) << 4;
    if (refusesRead(offset)) {
      raise(p, GP_VECTOR, 0);
      return true;
    }
    if (accessClass(offset, false) === "fault") return this.#unaccelerated(p, offset, false, 0);
    const { regs } = p;
    regs[RAX] = this.page[offset >>> 2];
    regs[RAX + 1] = 0;
    regs[RDX] = offset === APIC_ICR ? this.page[APIC_ICR2 >>> 2] : 0;
    regs[RDX + 1] = 0;
    p.charge(p.cost.msr + p.cost.virtualApic);
    p.skipInstruction();
    return true;
  }

  /** WRMSR of an x2APIC register that is not intercepted. Always dealt with. */
  writeMsr(p: Processor, msr: number): true {
    const offset = (msr - X2APIC_MSR_BASE) << 4;
    const low = p.regs[RAX];
    const high = p.regs[RDX];
    if (refusesWrite(offset, low, high)) {
      raise(p, GP_VECTOR, 0);
      return true;
    }
    p.charge(p.cost.msr + p.cost.virtualApic);
    if (offset === APIC_ICR) this.page[APIC_ICR2 >>> 2] = high; // Split, unlike Intel's.
    if (offset === APIC_SELF_IPI) return p.perform(sendIpi(this, p, APIC_DEST_SELF | low, 0));
    return this.#write(p, offset, low);
  }

  /** A write that is not refused: stores it, and does what follows from that. */
  #write(p: Processor, offset: number, value: number): true {
    const { page } = this;
    switch (offset) {
      case APIC_TASKPRI:
        p.skipInstruction();
        return this.#writeTpr(p, value);
      case APIC_EOI:
        page[APIC_EOI >>> 2] = value;
        return this.#endOfInterrupt(p);
      case APIC_ICR:
        page[APIC_ICR >>> 2] = value;
        if (!p.engine.explores && sendDirected(this, p, value, page[APIC_ICR2 >>> 2])) return true;
        return p.perform(sendIpi(this, p, value, page[APIC_ICR2 >>> 2]));
    }
    page[offset >>> 2] = value;
    p.skipInstruction();
    return accessClass(offset, true) === "trap" ? this.#unaccelerated(p, offset, true, 0) : true;
  }

  /** An unaccelerated-access exit (APM 2 15.29.9.2): a fault where the instruction is still to be executed. */
  #unaccelerated(p: Processor, offset: number, write: boolean, vector: number): true {
    return p.leaveWith(SVM_EXIT_AVIC_UNACCELERATED_ACCESS, (write ? HIGH : 0) + offset, vector);
  }
}
