/**
 * Which vectors a local APIC has been asked for and serves: the IRR, the ISR and the priorities in its register page, and
 * beside the page what KVM remembers to avoid searching it (arch/x86/kvm/lapic.c).
 *
 * An interrupt that goes the straight way mostly comes and goes before anybody looks at the page. Then its bits are never
 * written there, and the page's cache lines are left alone: among hundreds of vCPUs, that is what counts.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { words } from "../../abi/mod.ts";
import * as vectors from "./vectors.ts";
import type { ApicPage } from "./vectors.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_IRR, APIC_ISR, APIC_PROCPRI, APIC_TASKPRI, APIC_TMR } = abi;
const { clearVector, highestVector, setVector, testVector } = vectors;

/** Words of the part of the page that has registers (KVM_APIC_REG_SIZE, 0x400 bytes). */
const PAGE_WORDS = 256;
/** The first words of the IRR and of the ISR. */
const IRR = APIC_IRR >>> 2;
const ISR = APIC_ISR >>> 2;
/** The words of the task and the processor priority. */
const TPR = APIC_TASKPRI >>> 2;
const PPR = APIC_PROCPRI >>> 2;

/** In place of a vector in service: it has ended. */
const ENDED = -2;

/** Requests, service and priorities of a local APIC. */
export class VectorState {
  /** A hint: false only if no IRR bit is set. */
  irrPending = true;
  /** A hint: false only if no TMR bit is set. */
  levels = true;
  /** Which of the eight IRR registers have a bit set. */
  irrRegisters = 0;
  /** How many ISR bits are set. */
  isrCount = 0;
  /** The highest ISR bit; -1 when that is not known. */
  highestIsrCache: number = -1;
  /** Something is here and not in the page: one of the next three. */
  #ahead = false;
  /** A vector that is requested and whose IRR bit is not in the page yet, as nobody has looked; -1 for none. */
  #lateIrr: number = -1;
  /**
   * One that is in service, likewise: its ISR bit, and its class as the processor priority. {@linkcode ENDED} where only
   * the priority is late, -1 for nothing.
   */
  #lateIsr: number = -1;
  /** The task priority, as long as nobody looks at the page; -1 where it is only there. */
  #tpr: number = -1;
  readonly #page: ApicPage = words(PAGE_WORDS);

  /** The register page, for whoever looks: what is not in it yet is written first. */
  get page(): ApicPage {
    if (this.#ahead) this.#writeLate();
    return this.#page;
  }

  #writeLate(): void {
    const page = this.#page;
    this.#ahead = false;
    this.#tpr = -1;
    if (this.#lateIrr !== -1) {
      setVector(page, APIC_IRR, this.#lateIrr);
      this.#lateIrr = -1;
    }
    if (this.#lateIsr !== -1) {
      if (this.#lateIsr !== ENDED) setVector(page, APIC_ISR, this.#lateIsr);
      page[PPR] = this.#lateIsr === ENDED ? page[TPR] & 0xff : this.#lateIsr & 0xf0;
      this.#lateIsr = -1;
    }
  }

  /** The register at an offset of the page. */
  get(offset: number): number {
    return this.page[offset >>> 2];
  }

  /** Sets the register at an offset of the page. */
  set(offset: number, value: number): void {
    this.page[offset >>> 2] = value;
  }

  // Requests.

  /** Records a request for a vector. */
  setIrr(vector: number): void {
    setVector(this.page, APIC_IRR, vector);
    this.irrRegisters |= 1 << (vector >>> 5);
    // The hint is raised after the bit: whoever sees the hint finds the bit.
    this.irrPending = true;
  }

  /** Records an edge-triggered request for a vector. */
  requestEdge(vector: number): void {
    if (this.irrRegisters === 0 && !this.levels) {
      this.#lateIrr = vector;
      this.#ahead = true;
    } else {
      if (this.levels) clearVector(this.page, APIC_TMR, vector);
      setVector(this.page, APIC_IRR, vector);
    }
    this.irrRegisters |= 1 << (vector >>> 5);
    this.irrPending = true; // After the bit, as above.
  }

  /** Hardware has taken a request up. */
  clearIrr(vector: number): void {
    const register = vector >>> 5;
    const left = this.page[IRR + (register << 2)] & ~(1 << (vector & 31));
    this.page[IRR + (register << 2)] = left;
    if (left === 0) this.irrRegisters &= ~(1 << register);
  }

  /** Records requests for the vectors whose bits are set, all of one register. Answers with those that are new. */
  requestAll(register: number, bits: number): number {
    const word = IRR + (register << 2);
    const fresh = bits & ~this.page[word];
    if (fresh === 0) return 0;
    this.page[word] |= bits;
    this.irrRegisters |= 1 << register;
    this.irrPending = true; // After the bits, as above.
    return fresh >>> 0;
  }

  /** The highest vector that is requested, -1 for none. */
  highestIrr(): number {
    if (this.irrRegisters === 0) return -1;
    const register = 31 - Math.clz32(this.irrRegisters);
    return (register << 5) + 31 - Math.clz32(this.page[IRR + (register << 2)]);
  }

  /** The vector that is requested, where that is the only one; -1 otherwise. One register has a bit set. */
  onlyIrr(): number {
    if (this.#lateIrr !== -1) return this.#lateIrr;
    const register = 31 - Math.clz32(this.irrRegisters);
    const bits = this.page[IRR + (register << 2)] | 0;
    return (bits & (bits - 1)) === 0 ? (register << 5) + 31 - Math.clz32(bits) : -1;
  }

  /** Searches the page for requests: nobody kept count. Answers with the highest, -1 for none. */
  findIrr(): number {
    const { page } = this;
    const highest = highestVector(page, APIC_IRR);
    let registers = 0;
    for (let register = 0; register <= highest >> 5; register++) {
      if (page[IRR + (register << 2)] !== 0) registers |= 1 << register;
    }
    this.irrRegisters = registers;
    return highest;
  }

  // Vectors in service.

  /** The highest vector in service, -1 for none. */
  highestIsr(): number {
    if (this.isrCount === 0) return -1;
    if (this.highestIsrCache !== -1) return this.highestIsrCache;
    return highestVector(this.page, APIC_ISR);
  }

  /** Whether a vector waits for service or for its EOI. */
  pendingEoi(vector: number): boolean {
    return testVector(this.page, APIC_ISR, vector) || testVector(this.page, APIC_IRR, vector);
  }

  /** Acknowledges a vector: from requested to in service. */
  acknowledge(vector: number): void {
    const { page } = this;
    const register = vector >>> 5;
    const bit = 1 << (vector & 31);
    const requested = page[IRR + (register << 2)] & ~bit;
    page[IRR + (register << 2)] = requested;
    if (requested === 0) this.irrRegisters &= ~(1 << register);
    this.irrPending = this.irrRegisters !== 0;
    const serving = page[ISR + (register << 2)];
    if ((serving & bit) === 0) {
      page[ISR + (register << 2)] = serving | bit;
      this.isrCount++;
      // Only the highest vector is ever injected: the latest bit is the highest.
      this.highestIsrCache = vector;
      this.storePpr(vector);
    } else {
      this.storePpr(this.highestIsr());
    }
  }

  /** The same where nothing is in service, no other vector is requested, and the task priority does not hold it back. */
  serveOnly(vector: number): void {
    if (this.#lateIrr === -1) this.#page[IRR + ((vector >>> 5) << 2)] = 0;
    this.#lateIrr = -1;
    this.irrRegisters = 0;
    this.irrPending = false;
    this.#lateIsr = vector;
    this.#ahead = true;
    this.isrCount = 1;
    this.highestIsrCache = vector;
  }

  /** Takes a vector out of service of which the page knows nothing yet. Whether it was such a one. */
  protected endLate(vector: number): boolean {
    if (vector !== this.#lateIsr) return false;
    this.#lateIsr = ENDED;
    this.isrCount = 0;
    this.highestIsrCache = -1;
    return true;
  }

  /** The highest vector has not been taken out of service, after all. */
  resumeService(vector: number): void {
    setVector(this.page, APIC_ISR, vector);
    this.isrCount++;
    this.highestIsrCache = vector;
    this.storePpr(vector);
  }

  // Priorities (SDM 3A 11.8.3).

  /** The task priority. */
  get taskPriority(): number {
    if (this.#tpr === -1) {
      this.#tpr = this.#page[TPR] & 0xff;
      this.#ahead = true;
    }
    return this.#tpr;
  }

  /** Stores the processor priority while `isr` is the highest vector in service, -1 for none; answers with it. */
  protected storePpr(isr: number): number {
    const { page } = this;
    const tpr = page[TPR] & 0xff;
    const inService = isr === -1 ? 0 : isr & 0xf0;
    const ppr = (tpr & 0xf0) >= inService ? tpr : inService;
    page[PPR] = ppr;
    return ppr;
  }
}
