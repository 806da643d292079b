/**
 * A local APIC as KVM keeps it: its mode, its priorities, and the end of an interrupt (arch/x86/kvm/lapic.c). The vectors
 * that it was asked for and serves are {@linkcode VectorState}'s.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as requests from "../kvm/requests.ts";
import { syncPosted } from "../kvm/shared.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { LapicTimer } from "./timer.ts";
import * as vectors from "./vectors.ts";
import { VectorState } from "./vector_state.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APICBASE_ENABLE,
  APICBASE_X2APIC_ENABLE,
  APIC_DEFAULT_BASE,
  APIC_ID,
  APIC_ISR,
  APIC_PROCPRI,
  APIC_SPIV,
  APIC_SPIV_APIC_ENABLED,
  APIC_TASKPRI,
  APIC_TMR,
} = abi;
const { TP } = tracing;
const { REQ_EVENT } = requests;
const { clearVector, testVector } = vectors;

/** Pending event: INIT. */
export const PENDING_INIT = 1;
/** Pending event: a start-up IPI. */
export const PENDING_SIPI = 2;

/** KVM gives a vCPU an LVT entry for corrected machine checks only if MCG_CAP has CMCI: it does not by default. */
export const LVT_ENTRIES = 6;

/** A local APIC. */
export class Lapic extends VectorState {
  // What every interrupt touches stands together, behind the vectors' state.
  /** IA32_APIC_BASE.EN. */
  hardwareEnabled = true;
  /** Whether it is in x2APIC mode. */
  x2apicMode = false;
  /** Both: IA32_APIC_BASE.EN and the spurious-vector register's enable bit. */
  enabled = false;
  /** Whether hardware delivers its interrupts: APICv, or AVIC (apicv_active). */
  apicvActive = false;
  /** {@linkcode PENDING_INIT} and {@linkcode PENDING_SIPI}. */
  pendingEvents = 0;
  #base: number = (APIC_DEFAULT_BASE | APICBASE_ENABLE) >>> 0;
  /** IA32_APIC_BASE, high half. */
  baseHigh = 0;
  /** Spurious-vector register bit 8, remembered. */
  softwareEnabled = false;
  /** Counts lowest-priority acceptances. */
  arbitrationPriority = 0;
  /** The vector of the pending start-up IPI. */
  sipiVector = 0;
  /** The vCPU that it belongs to. */
  declare readonly vcpu: Vcpu;
  /** The timer. */
  declare readonly timer: LapicTimer;

  /** An APIC in an undefined state; {@linkcode resetLapic} gives it one. */
  constructor(vcpu: Vcpu) {
    super();
    this.vcpu = vcpu;
    this.timer = new LapicTimer(this);
  }

  /** IA32_APIC_BASE, low half. */
  get base(): number {
    return this.#base;
  }

  set base(value: number) {
    this.#base = value;
    this.hardwareEnabled = (value & APICBASE_ENABLE) !== 0;
    this.enabled = this.softwareEnabled && this.hardwareEnabled;
    this.x2apicMode = (value & APICBASE_X2APIC_ENABLE) !== 0;
  }

  /** The xAPIC ID: bits 31:24 of the ID register. */
  get xapicId(): number {
    return this.page[APIC_ID >>> 2] >>> 24;
  }

  /** The x2APIC ID: KVM fixes it to the vCPU's number. */
  get x2apicId(): number {
    return this.vcpu.vcpuId;
  }

  // Priorities (SDM 3A 11.8.3).

  /** Recomputes the processor priority. */
  #computePpr(): number {
    return this.storePpr(this.highestIsr());
  }

  /** The highest requested vector if its class is above a priority, -1 otherwise (apic_has_interrupt_for_ppr). */
  #above(ppr: number): number {
    const vector = this.vcpu.vm.enableApicv ? syncPosted(this.vcpu) : this.highestIrr();
    return vector === -1 || (vector & 0xf0) <= ppr ? -1 : vector;
  }

  /** Recomputes the processor priority; if it fell below a requested vector, that one is to be looked at. */
  updatePpr(): void {
    const old = this.get(APIC_PROCPRI);
    const ppr = this.#computePpr();
    if (ppr < old && this.#above(ppr) !== -1) this.vcpu.request(REQ_EVENT);
  }

  /** Sets the task priority. */
  setTpr(value: number): void {
    this.set(APIC_TASKPRI, value);
    this.updatePpr();
  }

  /** Hardware has kept the task priority: mostly it is what it was, and the processor priority follows from it already. */
  keepTpr(value: number): void {
    if (value !== this.get(APIC_TASKPRI) || this.apicvActive) this.setTpr(value);
  }

  /** CR8: the class of the task priority. */
  get cr8(): number {
    return (this.get(APIC_TASKPRI) & 0xf0) >>> 4;
  }

  /** The vector that can be injected now, -1 for none. */
  injectable(): number {
    if (!this.hardwareEnabled) return -1;
    return this.#above(this.#computePpr());
  }

  /**
   * End of interrupt: takes the highest vector out of service, whichever the guest meant, and tells the I/O APIC where
   * that handles it. Answers with the vector, -1 if none was in service.
   */
  eoi(): number {
    const { vcpu } = this;
    const vector = this.highestIsr();
    if (vcpu.hit(TP.kvm_eoi)) vcpu.record(TP.kvm_eoi, vcpu.vcpuId, vector);
    if (vector === -1) return vector;
    this.endService(vector);
    // A requested vector above the new priority is looked at in any case.
    if (vcpu.ioapicHandles(vector)) this.#tellIoapic(vector);
    vcpu.requests |= REQ_EVENT;
    return vector;
  }

  /** Takes the highest vector out of service. */
  endService(vector: number): void {
    if (this.endLate(vector)) return;
    clearVector(this.page, APIC_ISR, vector);
    if (!this.apicvActive) {
      this.isrCount--;
      this.highestIsrCache = -1;
    }
    const next = this.highestIsr();
    if (this.apicvActive) this.vcpu.backend.serviceChanged(next);
    this.storePpr(next);
  }

  /** Hardware has ended an interrupt whose EOI the I/O APIC must see (kvm_apic_set_eoi_accelerated). */
  eoiAccelerated(vector: number): void {
    const { vcpu } = this;
    vcpu.trace(TP.kvm_eoi, vcpu.vcpuId, vector);
    if (vcpu.ioapicHandles(vector)) this.#tellIoapic(vector);
    vcpu.request(REQ_EVENT);
  }

  #tellIoapic(vector: number): void {
    const { vcpu } = this;
    vcpu.vm.ioapic.endOfInterrupt(vcpu, vector, testVector(this.page, APIC_TMR, vector));
  }

  /** The spurious-vector register was set to `value`. */
  spivChanged(value: number): void {
    this.page[APIC_SPIV >>> 2] = value;
    const enabled = (value & APIC_SPIV_APIC_ENABLED) !== 0;
    if (enabled !== this.softwareEnabled) {
      this.softwareEnabled = enabled;
      this.enabled = enabled && this.hardwareEnabled;
      this.vcpu.vm.apicMapDirty(this.vcpu);
    }
  }
}
