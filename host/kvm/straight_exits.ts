/**
 * The straight way of the two exits that every interrupt costs its target: the one that lets the host inject it, and the
 * end of the interrupt. Where nothing else is going on, each comes to what the run loop would make of it, whose many
 * questions have one answer then: they are asked first, all of them, and a single other answer leaves the exit to the
 * loop untouched. Nothing is recorded here, only counted.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as events from "./events.ts";
import * as modes from "./modes.ts";
import * as requests from "./requests.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_TASKPRI, RCX, RDX, X2APIC_EOI } = abi;
const { TP } = tracing;
const { injectInterrupt, updateCr8Intercept } = events;
const { MpState } = modes;
const { REQ_EVENT } = requests;

const TPR = APIC_TASKPRI >>> 2;

/** Serves the present exit up to the entry, if it is one of the two and nothing else goes on. Whether that is so. */
export function straightExit(vcpu: Vcpu): boolean {
  if (vcpu.backend.exitedForInterrupt()) return straightInterrupt(vcpu);
  return vcpu.processor.regs[RCX] === X2APIC_EOI && vcpu.backend.exitedForWrmsr() && straightEoi(vcpu);
}

/** Whether the vCPU is in the state that it is in mostly, at an exit. */
function plain(vcpu: Vcpu, requests: number): boolean {
  const { lapic, vm } = vcpu;
  return (vcpu.attention | vcpu.events | vcpu.nmiPending | lapic.pendingEvents) === 0 &&
    vcpu.requests === requests && vcpu.mpState === MpState.Runnable && lapic.enabled &&
    !vcpu.recording && !vm.enableApicv;
}

/** A write of the x2APIC EOI register, where nothing else waits: the vector leaves the ISR. */
function straightEoi(vcpu: Vcpu): boolean {
  const { cost, lapic, processor } = vcpu;
  const vector = lapic.highestIsrCache;
  const time = vcpu.time + cost.msrEmulation + cost.apicRegister;
  if (
    !plain(vcpu, 0) || !lapic.x2apicMode || processor.regs[RDX] !== 0 || lapic.irrRegisters !== 0 ||
    vector === -1
  ) return false;
  if (time >= processor.asyncAt || vcpu.pvEoiEnabled || vcpu.ioapicHandles(vector)) return false;
  vcpu.time = time;
  lapic.endService(vector);
  processor.skipInstruction();
  vcpu.immediateExit = false;
  vcpu.backend.updateCr8Intercept(0, -1);
  vcpu.stats.req_event++;
  const { countRows, row } = vcpu;
  countRows[row + TP.kvm_apic]++;
  countRows[row + TP.kvm_eoi]++;
  countRows[row + TP.kvm_msr]++;
  return true;
}

/** The physical interrupt of a kick, where a vector waits for a local APIC that serves none: it is injected. */
function straightInterrupt(vcpu: Vcpu): boolean {
  const { backend, lapic } = vcpu;
  if (
    !plain(vcpu, REQ_EVENT) || lapic.irrRegisters === 0 || lapic.isrCount !== 0 || !backend.interruptAllowed()
  ) return false;
  const vector = lapic.highestIrr();
  if ((vector & 0xf0) <= (lapic.page[TPR] & 0xff)) return false;
  const { processor, stats } = vcpu;
  if (vcpu.time >= processor.asyncAt) vcpu.serveInterrupts();
  vcpu.requests = 0;
  vcpu.immediateExit = false;
  stats.irq_exits++;
  stats.req_event++;
  injectInterrupt(vcpu, vector);
  updateCr8Intercept(vcpu);
  if (vcpu.pvEoiEnabled) vcpu.pvEoi.arm();
  if (vcpu.time >= processor.asyncAt) vcpu.serveInterrupts();
  return true;
}
