/**
 * Exits that are served before the slow path: without leaving the inner loop, and so without harvesting PV EOI.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { u64 } from "../../abi/mod.ts";
import * as apic from "../lapic/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as vendor from "./backend.ts";
import { emulateHalt } from "./halt.ts";
import * as modes from "./modes.ts";
import * as requests from "./requests.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_DEST_LOGICAL,
  APIC_MODE_MASK,
  APIC_SHORT_MASK,
  IA32_TSC_DEADLINE,
  RAX,
  RCX,
  RDX,
  X2APIC_BROADCAST,
  X2APIC_ICR,
} = abi;
const { TP } = tracing;
const { FastPath } = vendor;
const { MpState, VcpuMode } = modes;
const { ATTENTION_PV_EOI } = requests;
const { fastWriteX2apicIcr, writeX2apicIcr } = apic;
type FastPath = vendor.FastPath;

/** WRMSR of the x2APIC ICR, where the optimized map knows the targets, and of IA32_TSC_DEADLINE. */
export function fastWrmsr(vcpu: Vcpu): FastPath {
  const { regs } = vcpu.processor;
  const index = regs[RCX];
  if (index === X2APIC_ICR) return fastIcr(vcpu, regs);
  return index === IA32_TSC_DEADLINE ? fastDeadline(vcpu, regs) : FastPath.None;
}

function fastIcr(vcpu: Vcpu, regs: Uint32Array): FastPath {
  const { behaviour } = vcpu.vm;
  if (!behaviour.icrFastPath || !vcpu.lapic.x2apicMode) return FastPath.None;
  if (!behaviour.icrFastPathReenters) return fastIcrOfOne(vcpu, regs);
  // Signed halves are small integers.
  return fastWriteX2apicIcr(vcpu, regs[RAX] | 0, regs[RDX] | 0) ? wrmsrDone(vcpu, regs) : FastPath.None;
}

/** As of 2019: a fixed IPI to one physical destination, sent the way of the slow path; it is its exit that is shorter. */
function fastIcrOfOne(vcpu: Vcpu, regs: Uint32Array): FastPath {
  const [low, destination] = [regs[RAX], regs[RDX]];
  const one = (low & (APIC_SHORT_MASK | APIC_DEST_LOGICAL | APIC_MODE_MASK)) === 0 &&
    destination !== X2APIC_BROADCAST;
  if (!one || !writeX2apicIcr(vcpu.lapic, low, destination)) return FastPath.None;
  wrmsrDone(vcpu, regs);
  return FastPath.Handled;
}

function fastDeadline(vcpu: Vcpu, regs: Uint32Array): FastPath {
  const { timerFastPath, deadlineFastPath } = vcpu.vm.behaviour;
  if (!deadlineFastPath && !(timerFastPath && vcpu.backend.hasPreemptionTimer)) return FastPath.None;
  vcpu.lapic.timer.setDeadline(u64(regs[RAX], regs[RDX]));
  return wrmsrDone(vcpu, regs);
}

function wrmsrDone(vcpu: Vcpu, regs: Uint32Array): FastPath {
  vcpu.time += vcpu.cost.msrEmulation;
  if (vcpu.hit(TP.kvm_msr)) vcpu.record(TP.kvm_msr, 1, regs[RCX], regs[RAX], regs[RDX], 0);
  vcpu.processor.skipInstruction();
  return FastPath.Reenter;
}

/** Where the guest is not entered again at once: the host takes its interrupts, and what was not served is served now. */
export function afterFastPath(vcpu: Vcpu, fastPath: FastPath): void {
  vcpu.mode = VcpuMode.Outside;
  if (vcpu.time >= vcpu.processor.asyncAt) vcpu.serveInterrupts();
  if ((vcpu.attention & ATTENTION_PV_EOI) !== 0) vcpu.pvEoi.harvest();
  if (fastPath === FastPath.None) vcpu.backend.handleExit();
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
