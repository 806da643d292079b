/**
 * MSR_KVM_POLL_CONTROL: a guest that polls by itself before it halts asks its host not to.
 *
 * @module
 */

import { MSR_KVM_POLL_CONTROL } from "../../abi/mod.ts";
import type { MsrHandler } from "../kvm/msr.ts";

/** Bit 0: the host may poll. Every other bit is reserved. */
export const POLL_CONTROL_MSR: MsrHandler = {
  index: MSR_KVM_POLL_CONTROL,
  feature: "POLL_CONTROL",
  read({ msrs }, value) {
    value.low = msrs.pollControl ? 1 : 0;
    value.high = 0;
    return true;
  },
  write({ msrs }, low, high) {
    if ((low & ~1) !== 0 || high !== 0) return false;
    msrs.pollControl = low === 1;
    return true;
  },
};
