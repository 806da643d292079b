/**
 * Paravirtual end of interrupt, host side: MSR_KVM_PV_EOI_EN, arming before an entry, harvesting after an exit.
 *
 *     PENDING  guest bit
 *        0        -        not armed
 *        1        1        armed; the guest has not ended the interrupt
 *        1        0        armed; the guest has
 *
 * Everything happens on the vCPU's own thread: plain functions.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as requests from "../kvm/requests.ts";
import { HostAccess } from "../kvm/host_access.ts";
import type { MsrHandler } from "../kvm/msr.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { GuestCache } from "../memory/mod.ts";
import * as tracing from "../trace/mod.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { KVM_MSR_ENABLED, KVM_PV_EOI_ENABLED, MSR_KVM_PV_EOI_EN } = abi;
const { ATTENTION_PV_EOI } = requests;
const { TP } = tracing;

/** Why PV EOI is not armed for the interrupt in service; "armed" where it is. */
export type PvEoiState =
  | "armed"
  | "no in-service vector is known"
  | "the guest has not enabled it"
  | "the local APIC is disabled"
  | "another vector may be pending"
  | "the I/O APIC must see this EOI";

/** One vCPU's PV EOI. */
export class PvEoi {
  /** MSR_KVM_PV_EOI_EN, low half. */
  msrLow = 0;
  /** MSR_KVM_PV_EOI_EN, high half. */
  msrHigh = 0;

  readonly #vcpu: Vcpu;
  readonly #flag: GuestCache;

  /** PV EOI that the guest has not enabled. */
  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
    this.#flag = new GuestCache(vcpu.vm.memory, new HostAccess(vcpu, "PV EOI"));
  }

  /** Local APIC reset: off, and whatever was armed is forgotten. */
  reset(): void {
    this.msrLow = 0;
    this.msrHigh = 0;
    this.#vcpu.pvEoiEnabled = false;
    this.#vcpu.attention &= ~ATTENTION_PV_EOI;
  }

  /** Armed: the guest may end the interrupt in service by clearing the bit. */
  get pending(): boolean {
    return (this.#vcpu.attention & ATTENTION_PV_EOI) !== 0;
  }

  /** Whether the guest has enabled it. */
  get enabled(): boolean {
    return this.#vcpu.pvEoiEnabled;
  }

  /**
   * A write of the MSR. false raises #GP: the address is not 4-byte aligned, or enabling finds no memory there; the old
   * value stays. Nothing is written to guest memory.
   */
  write(low: number, high: number): boolean {
    if ((low & 2) !== 0) return false;
    if ((low & KVM_MSR_ENABLED) !== 0) {
      const address = high * 2 ** 32 + ((low & ~KVM_MSR_ENABLED) >>> 0);
      if (!this.#flag.init(address, 1)) return false;
    }
    this.msrLow = low;
    this.#vcpu.pvEoiEnabled = (low & KVM_MSR_ENABLED) !== 0;
    this.msrHigh = high;
    return true;
  }

  /** Why it would not be armed now, or that it would. The order is KVM's (apic_sync_pv_eoi_to_guest). */
  explain(): PvEoiState {
    const { lapic } = this.#vcpu;
    if (!lapic.enabled) return "the local APIC is disabled";
    if (!this.enabled) return "the guest has not enabled it";
    // A hint, and the cache: neither IRR nor ISR is searched.
    if (lapic.irrPending) return "another vector may be pending";
    if (lapic.highestIsrCache === -1) return "no in-service vector is known";
    if (this.#vcpu.ioapicHandles(lapic.highestIsrCache)) return "the I/O APIC must see this EOI";
    return "armed";
  }

  /** Before an entry, in the event block: tells the guest that clearing the bit is enough, where that is safe. */
  arm(): void {
    if (!this.enabled) return;
    const { lapic } = this.#vcpu;
    if (
      lapic.irrPending || lapic.highestIsrCache === -1 || this.#vcpu.ioapicHandles(lapic.highestIsrCache)
    ) {
      return;
    }
    this.#vcpu.charge(this.#vcpu.cost.pvEoi);
    if (this.#flag.writeByte(KVM_PV_EOI_ENABLED)) this.#vcpu.attention |= ATTENTION_PV_EOI;
  }

  /**
   * After an exit, before it is handled, where it is armed: if the guest has cleared the bit, ends the interrupt for it; in either case
   * the short way is closed again. A flag that cannot be read, or cannot be closed, counts as cleared, and stays
   * pending.
   */
  harvest(): void {
    const vcpu = this.#vcpu;
    if (!this.enabled) {
      if (vcpu.vm.quirk("pv-eoi-disable-while-pending")) {
        vcpu.vm.hostFailure("BUG_ON(!pv_eoi_enabled(vcpu)) in apic_sync_pv_eoi_from_guest");
      }
      // Fixed by ignoring what was armed before the guest switched PV EOI off.
      vcpu.attention &= ~ATTENTION_PV_EOI;
      return;
    }
    vcpu.charge(vcpu.cost.pvEoi);
    if (this.#testAndClear()) return;
    const vector = vcpu.lapic.eoi();
    vcpu.trace(TP.kvm_pv_eoi, vcpu.vcpuId, vector);
  }

  /** Whether the guest has still to end the interrupt (pv_eoi_test_and_clr_pending). */
  #testAndClear(): boolean {
    const flag = this.#flag.readByte();
    if (flag < 0) return false;
    const set = (flag & KVM_PV_EOI_ENABLED) !== 0;
    if (set && !this.#flag.writeByte(0)) return false;
    this.#vcpu.attention &= ~ATTENTION_PV_EOI;
    return set;
  }
}

/** MSR_KVM_PV_EOI_EN. */
export const PV_EOI_MSR: MsrHandler = {
  index: MSR_KVM_PV_EOI_EN,
  feature: "PV_EOI",
  read(vcpu, value) {
    value.low = vcpu.pvEoi.msrLow;
    value.high = vcpu.pvEoi.msrHigh;
    return true;
  },
  write: (vcpu, low, high) => vcpu.pvEoi.write(low, high),
};
