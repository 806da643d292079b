/**
 * KVM_HC_SEND_IPI: one hypercall sends one interrupt to up to 128 local APICs (arch/x86/kvm/lapic.c, kvm_pv_send_ipi).
 *
 * @module
 */

import {
  APIC_DEST_LOGICAL,
  APIC_INT_ASSERT,
  APIC_INT_LEVELTRIG,
  APIC_MODE_MASK,
  APIC_SHORT_MASK,
  APIC_VECTOR_MASK,
  KVM_EINVAL,
  KVM_EOPNOTSUPP,
  lowestBit,
} from "../../abi/mod.ts";
import { A0, A1, A2, A3, argumentHigh, argumentLow } from "../kvm/hypercall_arguments.ts";
import type { HypercallHandler } from "../kvm/hypercall.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { acceptEdge, acceptInterrupt, type ApicMap, isEdge } from "../lapic/mod.ts";

/** KVM_HC_SEND_IPI. */
export const SEND_IPI: HypercallHandler = { name: "KVM_HC_SEND_IPI", call: sendIpi };

/**
 * Sends. Answers with how many APICs accepted the interrupt. The vector is not checked, bits 63:32 of the ICR and the
 * reserved ones are ignored, the sender may mean itself, and nobody is an answer too: 0.
 */
function sendIpi(vcpu: Vcpu): number {
  const { vm } = vcpu;
  const icr = argumentLow(vcpu, A3);
  if ((icr & (APIC_DEST_LOGICAL | APIC_SHORT_MASK)) !== 0) return -KVM_EINVAL;
  const map = vm.apicMap;
  if (map === undefined) {
    if (!vm.behaviour.sendIpiChecked || vm.quirk("send-ipi-null-map")) {
      vm.hostFailure("NULL pointer dereference: kvm_pv_send_ipi reads the APIC map, and there is none");
    }
    return -KVM_EOPNOTSUPP;
  }
  const min = argumentLow(vcpu, A2);
  const second = (min + (vcpu.processor.longMode ? 64 : 32)) >>> 0; // A u32: it wraps.
  return sendBitmap(vcpu, map, icr, min, argumentLow(vcpu, A0), argumentHigh(vcpu, A0)) +
    sendBitmap(vcpu, map, icr, second, argumentLow(vcpu, A1), argumentHigh(vcpu, A1));
}

/** Sends to the APICs of one bitmap, whose bit 0 is APIC ID `min` (__pv_send_ipi). In 32-bit mode `high` is 0. */
function sendBitmap(vcpu: Vcpu, map: ApicMap, icr: number, min: number, low: number, high: number): number {
  const { vm } = vcpu;
  const checked = vm.behaviour.sendIpiChecked && !vm.quirk("send-ipi-unchecked-bounds");
  if (checked && min > map.maxApicId) return 0;
  let accepted = 0;
  for (let word = 0; word < 2; word++) {
    for (let bits = word === 0 ? low : high; bits !== 0; bits &= bits - 1) {
      const id = min + 32 * word + lowestBit(bits);
      if (id > map.maxApicId) {
        if (checked) return accepted;
        vm.hostFailure(`kvm_pv_send_ipi reads slot ${id} of an APIC map with ${map.maxApicId + 1} slots`);
      }
      vcpu.charge(vcpu.cost.ipiBit);
      accepted += sendTo(vcpu, map, id, icr);
    }
  }
  return accepted;
}

function sendTo(vcpu: Vcpu, map: ApicMap, id: number, icr: number): number {
  const lapic = map.phys[id];
  if (lapic === undefined) {
    if (vcpu.vm.behaviour.sendIpiChecked) return 0;
    vcpu.vm.hostFailure(`NULL pointer dereference: slot ${id} of the APIC map is empty`);
  }
  if (isEdge(icr)) return acceptEdge(vcpu, lapic, icr & APIC_VECTOR_MASK);
  const level = (icr & APIC_INT_ASSERT) !== 0;
  const levelTriggered = (icr & APIC_INT_LEVELTRIG) !== 0;
  return acceptInterrupt(lapic, icr & APIC_MODE_MASK, icr & APIC_VECTOR_MASK, level, levelTriggered);
}
