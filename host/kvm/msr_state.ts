/**
 * MSRs that KVM keeps for a vCPU and that have no better place.
 *
 * @module
 */

import type { Vcpu } from "./vcpu.ts";

/** Values of one vCPU. */
export class MsrState {
  /** MSR_KVM_POLL_CONTROL bit 0: the host may poll. Set at creation; INIT leaves it alone. */
  pollControl = true;
  /** IA32_TSC_ADJUST, in cycles. */
  tscAdjust = 0n;

  readonly #vcpu: Vcpu;

  /** The values after KVM_CREATE_VCPU. */
  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
  }

  /** RESET, or INIT. */
  reset(init: boolean): void {
    if (init) return;
    this.tscAdjust = 0n;
    this.#vcpu.processor.tscOffset = 0;
  }
}
