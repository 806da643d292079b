/**
 * KVM_HC_CLOCK_PAIRING: what time it is on the host, and the guest's TSC at that moment (arch/x86/kvm/x86.c,
 * kvm_pv_clock_pairing). Guests set their clocks by it (drivers/ptp/ptp_kvm_x86.c).
 *
 * KVM answers -KVM_EOPNOTSUPP, too, where the TSC is not the host's clock source or has to catch up with another frequency:
 * neither happens here.
 *
 * @module
 */

import {
  KVM_CLOCK_PAIRING,
  KVM_CLOCK_PAIRING_WALLCLOCK,
  KVM_EFAULT,
  KVM_ENOSYS,
  KVM_EOPNOTSUPP,
} from "../../abi/mod.ts";
import { writeGuestBytes } from "../kvm/host_access.ts";
import { A0, A1, argumentHigh, argumentLow } from "../kvm/hypercall_arguments.ts";
import type { HypercallHandler } from "../kvm/hypercall.ts";
import { cyclesToNs } from "../kvm/time.ts";
import type { Vcpu } from "../kvm/vcpu.ts";

/** KVM_HC_CLOCK_PAIRING. */
export const CLOCK_PAIRING: HypercallHandler = { name: "KVM_HC_CLOCK_PAIRING", call: pairClocks };

const NS_PER_SECOND = 1_000_000_000;

function pairClocks(vcpu: Vcpu): number {
  const { vm } = vcpu;
  if (!vm.behaviour.clockPairing) return -KVM_ENOSYS;
  if (argumentLow(vcpu, A1) !== KVM_CLOCK_PAIRING_WALLCLOCK || argumentHigh(vcpu, A1) !== 0) {
    return -KVM_EOPNOTSUPP;
  }
  const address = argumentHigh(vcpu, A0) * 2 ** 32 + argumentLow(vcpu, A0);
  return writeGuestBytes(vm, address, pairing(vcpu)) ? 0 : -KVM_EFAULT;
}

/** One read of the host's TSC gives both times. Flags and padding are zero. */
function pairing({ vm, clock, processor }: Vcpu): Uint8Array {
  const { fields, size } = KVM_CLOCK_PAIRING;
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  const ns = cyclesToNs(clock, vm.tscKhz);
  const seconds = vm.machine.realtime + Math.floor(ns / NS_PER_SECOND);
  view.setBigInt64(fields.sec.offset, BigInt(seconds), true);
  view.setBigInt64(fields.nsec.offset, BigInt(ns % NS_PER_SECOND), true);
  view.setBigUint64(fields.tsc.offset, BigInt(clock) + BigInt(processor.tscOffset), true);
  return bytes;
}
