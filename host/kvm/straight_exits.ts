/**
 * The straight way from an exit to the next entry, for the exits that every IPI costs: the sender's write of the ICR,
 * the physical interrupt that lets the host inject the vector, and the end of the interrupt. Where nothing else is
 * going on, each comes to what the run loop would make of it, whose many questions have one answer then. What only the
 * host changes is asked at the entry before, once; what others change, here; and a single other answer leaves the exit
 * to the loop untouched. Nothing is recorded here, only counted.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as cpu from "../cpu/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as vendor from "./backend.ts";
import * as fast from "./fast_path.ts";
import * as modes from "./modes.ts";
import * as requests from "./requests.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { APIC_TASKPRI, FLAG_IF, OP_WRMSR, RCX, RDX, RFLAGS, X2APIC_EOI, X2APIC_ICR } = abi;
const { TP } = tracing;
const { FastPath } = vendor;
const { afterFastPath, fastWrmsr } = fast;
const { deliverInterrupt } = cpu;
const { Phase, VcpuMode } = modes;
const { EVENT_EXCEPTION_PENDING, EVENT_INTERRUPT_INJECTED, REQ_EVENT } = requests;

/** Where exits by number begin in a row of counts. */
const EXITS = tracing.TRACEPOINTS.length;
const TPR = APIC_TASKPRI >>> 2;

/** At an entry: whether nothing is going on that the vCPU's own turns must see to, but interrupts. */
export function goesStraight(vcpu: Vcpu): boolean {
  if (vcpu.recording || vcpu.vm.enableApicv) return false;
  const others = vcpu.attention | vcpu.nmiPending | (vcpu.events & EVENT_EXCEPTION_PENDING);
  return others === 0 && !vcpu.immediateExit && vcpu.lapic.enabled && vcpu.backend.entersPlainly();
}

/** Serves the present exit up to the entry, if it is one of the three and nothing else goes on. Whether that is so. */
export function straightTurn(vcpu: Vcpu): boolean {
  if (vcpu.attention !== 0) return false;
  const { backend, processor } = vcpu;
  const { exitReason } = processor;
  if (exitReason === backend.interruptExit) return straightInterrupt(vcpu);
  if (exitReason !== backend.wrmsrExit || processor.exitInfo1 !== backend.wrmsrInfo) return false;
  if (vcpu.requests !== 0 || !vcpu.lapic.x2apicMode) return false;
  switch (processor.regs[RCX]) {
    case X2APIC_EOI:
      return straightEoi(vcpu);
    case X2APIC_ICR:
      return straightIcr(vcpu);
    default:
      return false;
  }
}

/** What every exit begins with. */
function exited(vcpu: Vcpu, reason: number): void {
  if (vcpu.injected) vcpu.eventDelivered();
  vcpu.machine.countExit();
  const { countRows, row } = vcpu;
  countRows[row + EXITS + reason]++;
  countRows[row + TP.kvm_exit]++;
}

/** Back to the guest; what hardware would look at was looked at before, and is as it was. */
function enter(vcpu: Vcpu, price: number): void {
  vcpu.countRows[vcpu.row + TP.kvm_entry]++;
  vcpu.mode = VcpuMode.InGuest;
  vcpu.time += price;
  vcpu.processor.guestMode = true;
}

/** A write of the x2APIC EOI register, where nothing else waits: the vector leaves the ISR. */
function straightEoi(vcpu: Vcpu): boolean {
  const { cost, lapic, processor } = vcpu;
  const vector = lapic.highestIsrCache;
  const time = vcpu.time + cost.msrEmulation + cost.apicRegister;
  if (vector === -1 || lapic.irrRegisters !== 0 || processor.regs[RDX] !== 0) return false;
  if (time >= processor.asyncAt || vcpu.pvEoiEnabled || vcpu.ioapicHandles(vector)) return false;
  exited(vcpu, vcpu.backend.wrmsrExit);
  vcpu.time = time;
  lapic.endService(vector);
  processor.retire(OP_WRMSR);
  vcpu.stats.req_event++;
  const { countRows, row } = vcpu;
  countRows[row + TP.kvm_apic]++;
  countRows[row + TP.kvm_eoi]++;
  countRows[row + TP.kvm_msr]++;
  enter(vcpu, cost.vmentry);
  return true;
}

/** A write of the x2APIC ICR, through KVM's fast path. Where the guest is not entered behind it, the loop goes on. */
function straightIcr(vcpu: Vcpu): boolean {
  exited(vcpu, vcpu.backend.wrmsrExit);
  const fastPath = fastWrmsr(vcpu);
  if (
    fastPath === FastPath.Reenter && vcpu.mode === VcpuMode.InGuest && (vcpu.requests | vcpu.attention) === 0
  ) {
    enter(vcpu, vcpu.cost.reentry);
    return true;
  }
  afterFastPath(vcpu, fastPath);
  vcpu.phase = Phase.Served;
  return false;
}

/** The physical interrupt of a kick, where a single vector waits for a local APIC that serves none: it is injected. */
function straightInterrupt(vcpu: Vcpu): boolean {
  const { lapic, processor, stats } = vcpu;
  const { irrRegisters } = lapic;
  if (vcpu.requests !== REQ_EVENT || lapic.isrCount !== 0 || lapic.pendingEvents !== 0) return false;
  if (irrRegisters === 0 || (irrRegisters & (irrRegisters - 1)) !== 0) return false;
  const vector = lapic.onlyIrr();
  if (vector === -1 || (vector & 0xf0) <= (lapic.page[TPR] & 0xff)) return false;
  if ((processor.regs[RFLAGS] & FLAG_IF) === 0 || processor.shadow) return false;
  exited(vcpu, vcpu.backend.interruptExit);
  if (vcpu.time >= processor.asyncAt) vcpu.serveInterrupts();
  vcpu.requests = 0;
  stats.irq_exits++;
  stats.req_event++;
  stats.irq_injections++;
  vcpu.countRows[vcpu.row + TP.kvm_inj_virq]++;
  lapic.acknowledge(vector);
  vcpu.events = EVENT_INTERRUPT_INJECTED;
  vcpu.injectedInterrupt = vector;
  vcpu.injected = true;
  vcpu.time += vcpu.cost.inject;
  if (vcpu.pvEoiEnabled) vcpu.pvEoi.arm();
  if (vcpu.time >= processor.asyncAt) vcpu.serveInterrupts();
  enter(vcpu, vcpu.cost.vmentry);
  deliverInterrupt(processor, vector, false);
  return true;
}
