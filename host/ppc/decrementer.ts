/**
 * The decrementer: a timer of the host behind a register of the guest (arch/powerpc/kvm/emulate.c,
 * kvmppc_emulate_dec; booke.c, kvmppc_decrementer_func). The time base counts the machine's cycles. That of BookE which
 * begins again by itself (TCR[ARE], DECAR) is left out.
 *
 * @module
 */

import { TCR_DIE, TSR_DIS } from "../../abi/mod.ts";
import { Timer } from "../core/mod.ts";
import type { PpcVcpu } from "./vcpu.ts";

/** A vCPU's decrementer. */
export class Decrementer {
  /** BookE's timer status. */
  tsr = 0;
  /** BookE's timer control. */
  tcr = 0;
  readonly #vcpu: PpcVcpu;
  readonly #timer: Timer;
  #written = 0;
  #since = 0;

  /** One that was never written, and does not run. */
  constructor(vcpu: PpcVcpu) {
    this.#vcpu = vcpu;
    this.#timer = new Timer(vcpu.engine, `${vcpu.name} decrementer`, () => this.#expired());
  }

  /** What the guest reads. */
  get value(): number {
    const gone = this.#vcpu.clock - this.#since;
    // BookE's stops at 0; Book3S' goes on below.
    if (this.#booke && gone > this.#written) return 0;
    return (this.#written - gone) >>> 0;
  }

  /** The guest writes it: it is armed again. */
  write(value: number): void {
    this.#written = value;
    this.#since = this.#vcpu.clock;
    this.#timer.cancel();
    if (!this.#booke) this.#vcpu.interrupts.dequeue("DECREMENTER");
    else if (value === 0) return; // As good as not running.
    this.#timer.arm(this.#since + value);
  }

  /** BookE: the guest acknowledges. */
  clearStatus(bits: number): void {
    this.tsr &= ~bits;
    this.#update();
  }

  /** BookE: the guest says whether it wants to be interrupted. */
  setControl(value: number): void {
    this.tcr = value;
    this.#update();
  }

  get #booke(): boolean {
    return this.#vcpu.host.family === "booke";
  }

  #expired(): void {
    if (this.#booke) {
      this.tsr |= TSR_DIS;
      this.#update();
    } else {
      this.#vcpu.interrupts.queue("DECREMENTER");
    }
    this.#vcpu.kick("DECREMENTER");
  }

  #update(): void {
    const due = (this.tcr & TCR_DIE) !== 0 && (this.tsr & TSR_DIS) !== 0;
    if (due) this.#vcpu.interrupts.queue("DECREMENTER");
    else this.#vcpu.interrupts.dequeue("DECREMENTER");
  }
}
