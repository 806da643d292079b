/**
 * Exits that are served before the slow path: without leaving the inner loop, and so without harvesting PV EOI.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { u64 } from "../../abi/mod.ts";
import { writeX2apicIcr } from "../lapic/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as vendor from "./backend.ts";
import { emulateHalt } from "./halt.ts";
import * as modes from "./modes.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { IA32_TSC_DEADLINE, RAX, RCX, RDX, X2APIC_ICR } = abi;
const { TP } = tracing;
const { FastPath } = vendor;
const { MpState } = modes;
type FastPath = vendor.FastPath;

/** WRMSR of the x2APIC ICR, where the optimized map knows the targets, and of IA32_TSC_DEADLINE. */
export function fastWrmsr(vcpu: Vcpu): FastPath {
  const { processor, vm, lapic } = vcpu;
  const { regs } = processor;
  const low = regs[RAX];
  const high = regs[RDX];
  switch (regs[RCX]) {
    case X2APIC_ICR:
      if (!vm.behaviour.icrFastPath || !lapic.x2apicMode) return FastPath.None;
      if (writeX2apicIcr(lapic, low, high, true) !== "sent") return FastPath.None;
      break;
    case IA32_TSC_DEADLINE:
      if (!vm.behaviour.timerFastPath) return FastPath.None;
      lapic.timer.setDeadline(u64(low, high));
      break;
    default:
      return FastPath.None;
  }
  vcpu.charge(vcpu.cost.msrEmulation);
  vcpu.trace(TP.kvm_msr, 1, regs[RCX], low, high, 0);
  vcpu.backend.skipInstruction();
  return FastPath.Reenter;
}

/** HLT: where something waits for the vCPU it goes on at once. */
export function fastHalt(vcpu: Vcpu): FastPath {
  if (!vcpu.vm.behaviour.haltFastPath) return FastPath.None;
  emulateHalt(vcpu);
  return vcpu.mpState === MpState.Runnable ? FastPath.Reenter : FastPath.Handled;
}

/** INVD: a no-op. */
export function fastInvd(vcpu: Vcpu): FastPath {
  if (!vcpu.vm.behaviour.haltFastPath) return FastPath.None;
  vcpu.backend.skipInstruction();
  return FastPath.Reenter;
}
