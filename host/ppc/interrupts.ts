/**
 * A vCPU's interrupts: which are pending, and how one begins (arch/powerpc/kvm/book3s.c,
 * kvmppc_book3s_irqprio_deliver; book3s_pr.c, kvmppc_inject_interrupt_pr; booke.c, kvmppc_booke_irqprio_deliver).
 *
 * @module
 */

import {
  BOOK3S_INTERRUPTS,
  BOOKE_INTERRUPTS,
  DSISR_NOHPTE,
  type MachineFault,
  MSR_CE,
  MSR_DE,
  MSR_EE,
  MSR_LE,
  MSR_ME,
  MSR_PR,
  MSR_SF,
  type PpcInterrupt,
  SRR1_MSR_BITS,
} from "../../abi/mod.ts";
import type { PpcVcpu } from "./vcpu.ts";

/** What may be pending. On BookE an external interrupt that stays until its device lowers it has a place of its own. */
export type PpcPending = PpcInterrupt | "EXTERNAL_LEVEL";

/** By priority, the highest first; both families have these in the same order (asm/kvm_asm.h, kvm/booke.h). */
const PRIORITIES: readonly PpcPending[] = [
  "DATA_STORAGE",
  "INST_STORAGE",
  "PROGRAM",
  "SYSCALL",
  "EXTERNAL",
  "DECREMENTER",
  "EXTERNAL_LEVEL",
];

/** What MSR[EE] and a critical section hold back. */
const MASKABLE: readonly PpcPending[] = ["EXTERNAL", "DECREMENTER", "EXTERNAL_LEVEL"];

/** Pending interrupts of one vCPU. */
export class PpcInterrupts {
  /** BookE: where the vectors are. */
  ivpr = 0;
  /** BookE: the offset of each interrupt's vector, by number. */
  readonly ivor: Uint32Array = new Uint32Array(16);
  /** Book3S: where the vectors are. */
  hior = 0;
  /** How often one was queued. */
  queued = 0;
  readonly #vcpu: PpcVcpu;
  readonly #pending = new Set<PpcPending>();
  /** Book3S: the next external interrupt goes away when it is delivered, whoever raised it (external_oneshot). */
  #externalOnce = false;
  /** BookE: what ESR and DEAR will say. */
  #esr = 0;
  #dear = 0n;
  /** BookE: what the handler of the queued one may send to a fixup. */
  #fault: MachineFault | undefined = undefined;

  /** None. */
  constructor(vcpu: PpcVcpu) {
    this.#vcpu = vcpu;
  }

  /** Whether one is pending, whatever holds it back: what wakes a vCPU. */
  get pending(): boolean {
    return this.#pending.size > 0;
  }

  /** Whether one is pending that may begin now. */
  get deliverable(): boolean {
    return PRIORITIES.some((interrupt) => this.#pending.has(interrupt) && this.#allowed(interrupt));
  }

  /** User space raises the external interrupt: until it lowers it, or for one delivery (KVM_INTERRUPT). */
  raise(how: "level" | "once"): void {
    if (this.#book3s) {
      if (how === "once") this.#externalOnce = true;
      this.queue("EXTERNAL");
    } else {
      this.queue(how === "once" ? "EXTERNAL" : "EXTERNAL_LEVEL");
    }
  }

  /** User space lowers it, however it was raised. */
  lower(): void {
    this.#pending.delete("EXTERNAL_LEVEL");
    this.dequeue("EXTERNAL");
  }

  /** Makes one pending. */
  queue(interrupt: PpcPending): void {
    this.queued++;
    this.#pending.add(interrupt);
    this.#vcpu.traceQueued(interrupt);
  }

  /** It is pending no more. Book3S tells the guest at once. */
  dequeue(interrupt: PpcPending): void {
    const before = this.pending;
    this.#pending.delete(interrupt);
    if (this.#book3s) this.#tell(before);
  }

  /** A program interrupt, with what SRR1 or ESR will say of its cause. */
  program(cause: number, fault?: MachineFault): void {
    if (this.#book3s) {
      this.inject("PROGRAM", cause, fault);
    } else {
      this.#esr = cause;
      this.#fault = fault;
      this.queue("PROGRAM");
    }
  }

  /** A data storage interrupt. `cause` is what DSISR or ESR will say. */
  dataStorage(address: bigint, cause: number, fault?: MachineFault): void {
    if (this.#book3s) {
      const { shared } = this.#vcpu.processor;
      shared.set("dar", address);
      shared.set("dsisr", BigInt(cause));
      this.inject("DATA_STORAGE", 0, fault);
    } else {
      this.#dear = address;
      this.#esr = cause;
      this.#fault = fault;
      this.queue("DATA_STORAGE");
    }
  }

  /** An instruction storage interrupt: no translation was found. */
  instStorage(): void {
    if (this.#book3s) {
      this.inject("INST_STORAGE", DSISR_NOHPTE); // SRR1 has the same bit for it.
    } else {
      this.#esr = 0;
      this.queue("INST_STORAGE");
    }
  }

  /**
   * KVM enters: the pending interrupt of the highest priority that may begin begins, and the guest hears of the rest.
   */
  deliver(): void {
    const before = this.pending;
    for (const interrupt of PRIORITIES) {
      if (!this.#pending.has(interrupt) || !this.#allowed(interrupt)) continue;
      this.#begin(interrupt);
      if (!this.#stays(interrupt)) this.#pending.delete(interrupt);
      break;
    }
    this.#tell(before);
  }

  #begin(interrupt: PpcPending): void {
    const { shared } = this.#vcpu.processor;
    if (!this.#book3s) {
      if (interrupt === "DATA_STORAGE") shared.set("dar", this.#dear);
      if (interrupt === "DATA_STORAGE" || interrupt === "INST_STORAGE" || interrupt === "PROGRAM") {
        shared.set("esr", BigInt(this.#esr));
      }
    }
    const fault = this.#fault;
    this.#fault = undefined;
    this.inject(interrupt === "EXTERNAL_LEVEL" ? "EXTERNAL" : interrupt, 0, fault);
  }

  /** Whether delivery leaves it pending: the decrementer until it is written, a level until its device lowers it. */
  #stays(interrupt: PpcPending): boolean {
    if (interrupt === "DECREMENTER" || interrupt === "EXTERNAL_LEVEL") return true;
    if (interrupt !== "EXTERNAL" || !this.#book3s) return false;
    const once = this.#externalOnce;
    this.#externalOnce = false;
    return !once;
  }

  #allowed(interrupt: PpcPending): boolean {
    if (!MASKABLE.includes(interrupt)) return true;
    const msr = this.#vcpu.processor.shared.get("msr");
    return (msr & BigInt(MSR_EE)) !== 0n && !this.critical;
  }

  /**
   * Whether the guest is in a critical section: `critical` equals r1, in the mode's width, and it is not in user
   * mode. Hosts whose guests have a privileged state of their own never look, unless they are of BookE.
   */
  get critical(): boolean {
    const { processor: p, host } = this.#vcpu;
    if (this.#book3s && !host.problemState) return false;
    const msr = p.shared.get("msr");
    const width = (msr & MSR_SF) === 0n ? 32 : 64;
    const same = BigInt.asUintN(width, p.shared.get("critical")) === BigInt.asUintN(width, p.gpr(1));
    return same && (msr & BigInt(MSR_PR)) === 0n;
  }

  /** An interrupt begins: SRR0, SRR1, the new mode, the vector. */
  inject(interrupt: PpcInterrupt, srr1: number = 0, fault?: MachineFault): void {
    const { processor: p } = this.#vcpu;
    const msr = p.shared.get("msr");
    p.shared.set("srr0", BigInt(p.context.pc));
    p.shared.set("srr1", this.#book3s ? (msr & SRR1_MSR_BITS) | BigInt(srr1) : msr);
    if (this.#book3s) {
      // intr_msr: with hypervisor state, machine checks stay enabled.
      const low = (this.#vcpu.interruptsLittle ? MSR_LE : 0) | (this.#vcpu.host.problemState ? 0 : MSR_ME);
      const mode = (p.bits === 64 ? MSR_SF : 0n) | BigInt(low);
      p.context.pc = this.hior + BOOK3S_INTERRUPTS[interrupt];
      this.#vcpu.setMsr(mode);
    } else {
      p.context.pc = (this.ivpr | this.ivor[BOOKE_INTERRUPTS[interrupt]]) >>> 0;
      this.#vcpu.setMsr(msr & BigInt(MSR_CE | MSR_ME | MSR_DE));
    }
    this.#vcpu.enterHandler(fault);
  }

  /** The number of an interrupt, as a fault tells it. */
  number(interrupt: PpcInterrupt): number {
    return (this.#book3s ? BOOK3S_INTERRUPTS : BOOKE_INTERRUPTS)[interrupt];
  }

  /** Tells the guest whether something is pending: BookE at each entry; Book3S writes 0 only where something was. */
  #tell(before: boolean): void {
    const { processor: p, host } = this.#vcpu;
    if (!this.#book3s) p.shared.set("int_pending", this.pending ? 1n : 0n);
    else if (!host.problemState) return;
    else if (this.pending) p.shared.set("int_pending", 1n);
    else if (before) p.shared.set("int_pending", 0n);
  }

  get #book3s(): boolean {
    return this.#vcpu.host.family === "book3s";
  }
}
