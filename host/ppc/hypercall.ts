/**
 * KVM's hypercalls on PowerPC (arch/powerpc/kvm/powerpc.c, kvmppc_kvm_pv): r11 says which, and r4 is always written.
 *
 * @module
 */

import {
  type CallOutcome,
  decodeCall,
  encodeResults,
  EV_STATUS,
  KVM_MAGIC_FEAT_MAS0_TO_SPRG7,
  KVM_MAGIC_FEAT_SR,
  MAGIC_PAGE_FLAG_NOT_MAPPED_NX,
  MSR_SF,
  PPC_PR_CONVENTION,
  type PpcCallRegister,
  ppcHypercallName,
  returns,
} from "../../abi/mod.ts";
import type { PpcVcpu } from "./vcpu.ts";

const PAGE = ~0xfffn;
const { EV_SUCCESS, EV_UNIMPLEMENTED } = EV_STATUS;

/** Handles a hypercall of a guest's kernel: reads the registers of the convention, acts, and writes r3 and r4. */
export function hypercall(vcpu: PpcVcpu): void {
  const { processor: p } = vcpu;
  // All conventions have the same registers.
  const mode = (p.shared.get("msr") & MSR_SF) !== 0n ? "wide" : "narrow";
  const call = decodeCall(PPC_PR_CONVENTION, (register) => p.gpr(numberOf(register)), mode);
  const token = Number(call.number);
  vcpu.charge(vcpu.vm.cost.hypercall);
  const outcome = dispatch(vcpu, token, call.arguments);
  vcpu.lastOutcome = outcome;
  const registers = encodeResults(PPC_PR_CONVENTION, outcome.values, mode);
  for (const [register, value] of Object.entries(registers) as [PpcCallRegister, bigint][]) {
    p.setGpr(numberOf(register), value);
  }
}

function numberOf(register: PpcCallRegister): number {
  return Number(register.slice(1));
}

function dispatch(
  vcpu: PpcVcpu,
  token: number,
  [real, effective]: readonly bigint[],
): CallOutcome & { kind: "registers" } {
  switch (ppcHypercallName(token)) {
    case "KVM_HC_FEATURES":
      return answer(EV_SUCCESS, vcpu.host.features);
    case "KVM_HC_PPC_MAP_MAGIC_PAGE":
      vcpu.mapMagicPage({ real: real & PAGE, effective: effective & PAGE }, {
        guestCaresForNx: (effective & BigInt(MAGIC_PAGE_FLAG_NOT_MAPPED_NX)) !== 0n,
      });
      return answer(EV_SUCCESS, KVM_MAGIC_FEAT_SR | KVM_MAGIC_FEAT_MAS0_TO_SPRG7);
    case "EV_IDLE":
      vcpu.halt();
      return answer(EV_SUCCESS, 0);
    default:
      return answer(EV_UNIMPLEMENTED, 0);
  }
}

function answer(status: number, value: number): CallOutcome & { kind: "registers" } {
  return returns(BigInt(status), BigInt(value));
}
