/**
 * The local APIC timer: one-shot, periodic and TSC-deadline mode (SDM 3A 11.5.4).
 *
 * KVM times it in one of two ways. On VMX, while the vCPU runs, the VMX-preemption timer counts down in guest mode and
 * its exit is the expiry ("hv timer"). On SVM, and while the vCPU is blocked, it is a timer of the host whose
 * interrupt ends the vCPU's stay in guest mode. The lead that lapic_timer_advance gives is not modelled: this is a
 * host with that parameter off.
 *
 * @module
 */

import {
  APIC_LVT_MASKED,
  APIC_LVT_TIMER_MODE_MASK,
  APIC_LVT_TIMER_ONESHOT,
  APIC_LVT_TIMER_PERIODIC,
  APIC_LVT_TIMER_TSCDEADLINE,
  APIC_LVTT,
  APIC_TDCR,
  APIC_TMICT,
  timerDivisor,
} from "../../abi/mod.ts";
import { Timer } from "../core/mod.ts";
import { TP } from "../trace/mod.ts";
import { ATTENTION_TIMER, REQ_UNBLOCK } from "../kvm/requests.ts";
import { cyclesToNs, nsToCycles } from "../kvm/time.ts";
import { localDeliver } from "./delivery.ts";
import type { Lapic } from "./lapic.ts";

/** A periodic timer may not fire more often than this (min_timer_period_us, 200). */
const MIN_PERIOD_NS = 200_000;

/** One bus cycle of the timer is one nanosecond (APIC_BUS_CYCLE_NS_DEFAULT). */
const BUS_CYCLE_NS = 1;

/** The VMX-preemption timer counts 32 bits down, one in 32 TSC cycles (IA32_VMX_MISC bits 4:0): farther it cannot. */
const PREEMPTION_TIMER_REACH: number = 2 ** 37;

/** A deadline beyond every counter. */
const NEVER = 0xffff_ffff_ffff_ffffn;

/** The timer of one local APIC. */
export class LapicTimer {
  /** LVT timer bits 18:17, as last acted upon. */
  mode: number = APIC_LVT_TIMER_ONESHOT;
  /** What the divide configuration selects. */
  divisor = 2;
  /** The period in nanoseconds; 0 while the timer is stopped. */
  periodNs = 0;
  #pending = false;
  /** IA32_TSC_DEADLINE; 0 for disarmed. In the count-down modes, the TSC value of the next expiry. */
  tscDeadline = 0n;
  /** How often it has expired, also while an earlier expiry was pending. */
  expiries = 0;

  readonly #lapic: Lapic;
  readonly #soft: Timer;
  /** When a count-down ends, in nanoseconds of host time. */
  #targetNs = 0;
  #hvInUse = false;

  /** A stopped timer. */
  constructor(lapic: Lapic) {
    this.#lapic = lapic;
    const { engine, name } = lapic.vcpu;
    this.#soft = new Timer(engine, `${name} timer`, () => this.#softExpired());
  }

  /** Whether an expiry is not delivered yet. */
  get pending(): boolean {
    return this.#pending;
  }

  set pending(pending: boolean) {
    this.#pending = pending;
    const { vcpu } = this.#lapic;
    vcpu.touch();
    if (pending) vcpu.attention |= ATTENTION_TIMER;
    else vcpu.attention &= ~ATTENTION_TIMER;
  }

  get #nowNs(): number {
    return cyclesToNs(this.#lapic.vcpu.engine.now, this.#lapic.vcpu.vm.tscKhz);
  }

  /** Whether the VMX-preemption timer times it. */
  get hvInUse(): boolean {
    return this.#hvInUse;
  }

  get #deadlineMode(): boolean {
    return this.mode === APIC_LVT_TIMER_TSCDEADLINE;
  }

  get #oneShot(): boolean {
    return this.mode === APIC_LVT_TIMER_ONESHOT;
  }

  get #periodic(): boolean {
    return this.mode === APIC_LVT_TIMER_PERIODIC;
  }

  /** The LVT timer register was written: a change to or from TSC-deadline mode stops the timer. */
  modeChanged(): void {
    const mode = this.#lapic.get(APIC_LVTT) & APIC_LVT_TIMER_MODE_MASK;
    if (mode === this.mode) return;
    if (this.#deadlineMode !== (mode === APIC_LVT_TIMER_TSCDEADLINE)) {
      this.cancel();
      this.#lapic.set(APIC_TMICT, 0);
      this.periodNs = 0;
      this.tscDeadline = 0n;
    }
    this.mode = mode;
    this.#limitFrequency();
  }

  /** The initial count was written. */
  initialCount(count: number): void {
    if (this.#deadlineMode) return;
    this.cancel();
    this.#lapic.set(APIC_TMICT, count);
    this.#start();
  }

  /** The divide configuration was written: what is left of a count-down stretches or shrinks with the divisor. */
  divideChanged(): void {
    const old = this.divisor;
    this.divisor = timerDivisor(this.#lapic.get(APIC_TDCR));
    if (this.divisor === old || this.periodNs === 0) return;
    this.#soft.cancel();
    this.#setPeriod();
    const now = this.#nowNs;
    const remaining = Math.max(0, this.#targetNs - now);
    this.#setTarget(now, Number(BigInt(remaining) * BigInt(this.divisor) / BigInt(old)));
    this.#restart();
  }

  /** The current count. */
  currentCount(): number {
    if (this.#deadlineMode || this.#lapic.get(APIC_TMICT) === 0 || this.periodNs === 0) return 0;
    const remaining = Math.max(0, this.#targetNs - this.#nowNs);
    return Math.floor((remaining % this.periodNs) / (BUS_CYCLE_NS * this.divisor));
  }

  /** IA32_TSC_DEADLINE was written; without the mode that is a no-op. */
  setDeadline(deadline: bigint): void {
    if (!this.#lapic.hardwareEnabled || !this.#deadlineMode) return;
    this.#soft.cancel();
    this.tscDeadline = deadline;
    this.#start();
  }

  /** What IA32_TSC_DEADLINE reads. */
  get deadline(): bigint {
    return this.#lapic.hardwareEnabled && this.#deadlineMode ? this.tscDeadline : 0n;
  }

  /** Stops the timer and forgets an expiry that was not delivered. */
  cancel(): void {
    this.#soft.cancel();
    this.#cancelHv();
    this.pending = false;
  }

  /** RESET and INIT. */
  reset(): void {
    this.cancel();
    this.mode = APIC_LVT_TIMER_ONESHOT;
    this.periodNs = 0;
    this.tscDeadline = 0n;
    this.divisor = timerDivisor(this.#lapic.get(APIC_TDCR));
  }

  /** Whether an expiry waits for delivery through an LVT entry that is not masked. */
  hasPending(): boolean {
    return this.pending && this.#lapic.enabled && (this.#lapic.get(APIC_LVTT) & APIC_LVT_MASKED) === 0;
  }

  /** Delivers the expiry that is pending. */
  injectPending(): void {
    if (!this.pending) return;
    this.#inject();
    this.pending = false;
  }

  #inject(): void {
    localDeliver(this.#lapic, APIC_LVTT);
    if (this.#deadlineMode) {
      this.tscDeadline = 0n;
    } else if (this.#oneShot) {
      this.tscDeadline = 0n;
      this.#targetNs = 0;
    }
  }

  /** In the reserved mode nothing begins, and what runs goes on (__start_apic_timer). */
  #start(): void {
    this.pending = false;
    if ((this.#periodic || this.#oneShot) && !this.#beginCountDown()) return;
    this.#restart();
  }

  #setPeriod(): void {
    this.periodNs = this.#lapic.get(APIC_TMICT) * BUS_CYCLE_NS * this.divisor;
    this.#limitFrequency();
  }

  #limitFrequency(): void {
    if (this.#periodic && this.periodNs > 0 && this.periodNs < MIN_PERIOD_NS) this.periodNs = MIN_PERIOD_NS;
  }

  #beginCountDown(): boolean {
    this.#setPeriod();
    if (this.periodNs === 0) {
      this.tscDeadline = 0n;
      return false;
    }
    this.#setTarget(this.#nowNs, this.periodNs);
    return true;
  }

  #setTarget(nowNs: number, inNs: number): void {
    const { vcpu } = this.#lapic;
    this.#targetNs = nowNs + inNs;
    this.tscDeadline = BigInt(nsToCycles(this.#targetNs, vcpu.vm.tscKhz) + vcpu.processor.tscOffset);
  }

  /** The next period. One that is past already starts now: missed ticks are not made up for (CVE-2025-71104). */
  #nextPeriod(): void {
    const now = this.#nowNs;
    const target = this.#targetNs + this.periodNs;
    if (target < now && this.#lapic.vcpu.vm.quirk("lapic-timer-catches-up")) {
      // As an unsigned number the difference is huge: the hv timer cannot reach it, and the host's timer takes over.
      this.#targetNs = target;
      this.tscDeadline = NEVER;
    } else {
      this.#setTarget(now, Math.max(0, target - now));
    }
  }

  #restart(): void {
    if (!this.#periodic && this.pending) return;
    if (!this.#startHv()) this.#startSoft();
  }

  /** The host time at which the deadline is reached; Infinity for never. */
  #deadlineCycles(): number {
    const cycles = this.tscDeadline - BigInt(this.#lapic.vcpu.processor.tscOffset);
    return cycles > BigInt(Number.MAX_SAFE_INTEGER) ? Infinity : Number(cycles);
  }

  /** The same for a timer of the host, which does not look at the TSC in the count-down modes. */
  #softCycles(): number {
    const { vm, engine, processor } = this.#lapic.vcpu;
    if (!this.#deadlineMode) return nsToCycles(this.#targetNs, vm.tscKhz);
    // KVM computes the nanoseconds in 64 bits: a deadline hours ahead comes too early (start_sw_tscdeadline).
    const scaled = (this.tscDeadline - BigInt(engine.now + processor.tscOffset)) * 1_000_000n;
    if (scaled < 2n ** 64n) return this.#deadlineCycles();
    return engine.now + nsToCycles(Number(BigInt.asUintN(64, scaled) / BigInt(vm.tscKhz)), vm.tscKhz);
  }

  #startHv(): boolean {
    const { vcpu } = this.#lapic;
    if (!vcpu.backend.hasPreemptionTimer || vcpu.blocked || this.tscDeadline === 0n) return false;
    const deadline = this.#deadlineCycles();
    if (deadline - vcpu.engine.now >= PREEMPTION_TIMER_REACH) return false;
    this.#soft.cancel();
    this.#hvInUse = true;
    vcpu.setPreemptionTimer(deadline);
    if (!this.#periodic) {
      if (this.pending) {
        this.#cancelHv();
      } else if (deadline <= vcpu.engine.now) {
        this.#expired(false);
        this.#cancelHv();
      }
    }
    vcpu.trace(TP.kvm_hv_timer_state, vcpu.vcpuId, this.#hvInUse ? 1 : 0);
    return true;
  }

  #cancelHv(): void {
    if (!this.#hvInUse) return;
    this.#hvInUse = false;
    this.#lapic.vcpu.setPreemptionTimer(Infinity);
  }

  #startSoft(): void {
    const { vcpu } = this.#lapic;
    this.#cancelHv();
    if (!this.#periodic && this.pending) return;
    if (this.#deadlineMode ? this.tscDeadline !== 0n : this.#counts) this.#armSoft();
    vcpu.trace(TP.kvm_hv_timer_state, vcpu.vcpuId, 0);
  }

  #armSoft(): void {
    const deadline = this.#softCycles();
    if (deadline > this.#lapic.vcpu.engine.now) {
      this.#soft.arm(deadline);
    } else {
      this.#expired(false);
      if (this.#periodic) this.#softNext();
    }
  }

  /** Whether a count-down runs. */
  get #counts(): boolean {
    return (this.#periodic || this.#oneShot) && this.periodNs > 0;
  }

  #softNext(): void {
    this.#nextPeriod();
    this.#soft.arm(Math.max(this.#softCycles(), this.#lapic.vcpu.engine.now));
  }

  #expired(fromTimer: boolean): void {
    this.expiries++;
    if (this.pending) return;
    const { vcpu } = this.#lapic;
    if (!fromTimer && this.#lapic.apicvActive) {
      // Hardware takes it at once, and a masked entry drops it (apic_timer_expired).
      this.#inject();
      return;
    }
    this.pending = true;
    vcpu.request(REQ_UNBLOCK);
    if (fromTimer) vcpu.kick();
  }

  #softExpired(): void {
    this.#expired(true);
    if (this.#periodic && this.periodNs > 0) this.#softNext();
  }

  /** The VMX-preemption timer's exit. */
  hvExpired(): void {
    if (!this.#hvInUse) return;
    this.#expired(false);
    this.#cancelHv();
    if (this.#periodic && this.periodNs > 0) {
      this.#nextPeriod();
      this.#restart();
    }
  }

  /** The vCPU is about to block: only the host's timer can wake it. Whether the hv timer was in use. */
  switchToSoft(): boolean {
    if (!this.#hvInUse) return false;
    this.#startSoft();
    return true;
  }

  /** The vCPU is back from blocking. */
  switchToHv(): void {
    this.#restart();
  }
}
