/**
 * The straight way from an exit to the next entry, for the exits that every IPI costs: the sender's write of the ICR,
 * the physical interrupt that lets the host inject the vector, and the end of the interrupt. Where nothing else is
 * going on, each comes to what the run loop would make of it, whose many questions have one answer then. What only the
 * host changes is asked at the entry before, once; what others change, here; and a single other answer leaves the exit
 * to the loop untouched. Nothing is recorded here, only counted.
 *
 * Where nobody comes between the exit and the host's turn, both are taken at once; where somebody does, the turn is. An
 * EOI's turn changes nothing that others see, so it is taken at once in any case: whoever touches the vCPU before it is
 * due has it taken back. Whoever only looks while it runs, from a guest's own code, may see it before.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import * as core from "../core/mod.ts";
import * as cpu from "../cpu/mod.ts";
import * as tracing from "../trace/mod.ts";
import * as vendor from "./backend.ts";
import * as fast from "./fast_path.ts";
import * as modes from "./modes.ts";
import * as requests from "./requests.ts";
import type { Vcpu } from "./vcpu.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { CS, FLAG_IF, OP_WRMSR, RCX, RDX, RFLAGS, X2APIC_EOI, X2APIC_ICR } = abi;
const { LONG_AGO } = core;
const { TP } = tracing;
const { FastPath } = vendor;
const { afterFastPath, fastWrmsr } = fast;
const { deliverInterrupt } = cpu;
const { Phase, Straight, VcpuMode } = modes;
type Straight = modes.Straight;
const { EVENT_EXCEPTION_PENDING, EVENT_INTERRUPT_INJECTED, REQ_EVENT } = requests;

/** Beside the vector of an early end of interrupt: the entry before the exit had delivered an event. */
const DELIVERED = 0x100;

/** At an entry: the ways that are open, as nothing is going on that the vCPU's own turns must see to, but interrupts. */
export function straightWays(vcpu: Vcpu): Straight {
  if (vcpu.recording || vcpu.vm.enableApicv) return Straight.None;
  const others = vcpu.attention | vcpu.nmiPending | (vcpu.events & EVENT_EXCEPTION_PENDING);
  if (others !== 0 || vcpu.immediateExit || !vcpu.lapic.enabled) return Straight.None;
  return vcpu.backend.straightWays();
}

/** The host's turn after an exit, up to the entry, if it is one of the three and nothing else goes on. Whether that is so. */
export function straightTurn(vcpu: Vcpu): boolean {
  if (vcpu.attention !== 0) return false;
  const { commonExits, processor } = vcpu;
  const { exitReason } = processor;
  if (exitReason === commonExits.interrupt) {
    const vector = nextVector(vcpu);
    if (vector === -1) return false;
    injectAndEnter(vcpu, vector);
    return true;
  }
  if (exitReason !== commonExits.wrmsr || processor.exitInfo1 !== commonExits.wrmsrInfo) return false;
  if (vcpu.requests !== 0 || !vcpu.lapic.x2apicMode) return false;
  switch (processor.regs[RCX]) {
    case X2APIC_EOI:
      return endOfInterrupt(vcpu, vcpu.time);
    case X2APIC_ICR:
      return sendAndEnter(vcpu);
    default:
      return false;
  }
}

/**
 * WRMSR of the x2APIC's EOI or ICR: the exit, and where nobody comes between, the turn and the entry. Both exit wherever
 * this way is open, as they pass through with APICv or AVIC alone (vmx_update_msr_bitmap_x2apic,
 * avic_set_x2apic_msr_interception). Whether it was one of the two.
 */
export function straightWrmsr(vcpu: Vcpu): boolean {
  const { engine, processor } = vcpu;
  const { regs } = processor;
  const register = regs[RCX];
  if (vcpu.straight === Straight.None || (register !== X2APIC_EOI && register !== X2APIC_ICR)) return false;
  if ((regs[CS] & 3) !== 0 || !vcpu.lapic.x2apicMode) return false;
  const exited = vcpu.time + vcpu.cost.vmexit;
  const quiet = (vcpu.attention | vcpu.requests) === 0;
  const alone = exited < engine.horizon;
  if (register === X2APIC_EOI && quiet && (alone ? endOfInterrupt(vcpu, exited) : endEarly(vcpu, exited))) {
    engine.countStep();
    return true;
  }
  processor.leaveWith(vcpu.commonExits.wrmsr, vcpu.commonExits.wrmsrInfo, 0);
  if (!alone || !quiet || register !== X2APIC_ICR) return true;
  engine.at = exited;
  if (!sendAndEnter(vcpu)) vcpu.hostStep();
  engine.countStep();
  return true;
}

/** The same for a physical interrupt that is due. */
export function straightInterrupt(vcpu: Vcpu): boolean {
  const { engine, processor } = vcpu;
  const exited = vcpu.time + vcpu.cost.vmexit;
  if (vcpu.straight === Straight.None || exited >= engine.horizon || vcpu.attention !== 0) return false;
  if (vcpu.pcpu!.interruptAt > vcpu.time || vcpu.preemptionAt <= vcpu.time) return false;
  const vector = nextVector(vcpu);
  if (vector === -1) return false;
  processor.leaveWith(vcpu.commonExits.interrupt, 0, 0);
  injectAndEnter(vcpu, vector);
  engine.countStep();
  return true;
}

/** What every exit begins with. */
function beginExit(vcpu: Vcpu): void {
  if (vcpu.injected) vcpu.eventDelivered();
  vcpu.machine.countExit();
}

/** Back to the guest; what hardware would look at was looked at before, and is as it was. */
function enter(vcpu: Vcpu, price: number): void {
  vcpu.mode = VcpuMode.InGuest;
  vcpu.time += price;
  vcpu.processor.guestMode = true;
}

/**
 * A write of the x2APIC EOI register whose exit was over at `exited`, where nothing else waits: the vector leaves the
 * ISR. Whether that is so.
 */
function endOfInterrupt(vcpu: Vcpu, exited: number): boolean {
  const { commonExits, cost, lapic, processor } = vcpu;
  const vector = lapic.highestIsrCache;
  const time = exited + cost.msrEmulation + cost.apicRegister;
  if (vcpu.straight !== Straight.All || vector === -1) return false;
  if (lapic.irrRegisters !== 0 || processor.regs[RDX] !== 0) return false;
  if (time >= processor.asyncAt || vcpu.pvEoiEnabled || vcpu.ioapicHandles(vector)) return false;
  beginExit(vcpu);
  processor.exitReason = commonExits.wrmsr;
  processor.exitInfo1 = commonExits.wrmsrInfo;
  vcpu.time = time;
  lapic.endService(vector);
  processor.retire(OP_WRMSR);
  vcpu.straightEnds++;
  enter(vcpu, cost.vmentry);
  return true;
}

/** The same, while others come before the exit is over. Whether it is done, for {@linkcode takeTurnBack} to undo. */
function endEarly(vcpu: Vcpu, exited: number): boolean {
  const { injected, processor } = vcpu;
  const vector = vcpu.lapic.highestIsrCache;
  if (processor.shadow || vcpu.mode !== VcpuMode.InGuest || !vcpu.engine.reaches(exited)) return false;
  if (!endOfInterrupt(vcpu, exited)) return false;
  vcpu.earlyTurnAt = exited;
  vcpu.earlyVector = injected ? vector | DELIVERED : vector;
  return true;
}

/** Takes back the turn that {@linkcode endEarly} has taken: the exit is not over yet, and somebody touches the vCPU. */
export function takeTurnBack(vcpu: Vcpu): void {
  const { earlyTurnAt, earlyVector, engine, processor } = vcpu;
  vcpu.earlyTurnAt = LONG_AGO;
  if ((earlyVector & DELIVERED) !== 0) {
    vcpu.injected = true;
    vcpu.events |= EVENT_INTERRUPT_INJECTED;
  }
  vcpu.machine.takeExitBack();
  engine.takeStepBack();
  vcpu.straightEnds--;
  vcpu.lapic.resumeService(earlyVector & 0xff);
  processor.context.pending = OP_WRMSR;
  processor.instructions--;
  processor.guestMode = false;
  engine.wakeAt(vcpu, earlyTurnAt);
}

/** A write of the x2APIC ICR, through KVM's fast path. Where the guest is not entered behind it, the loop goes on: false. */
function sendAndEnter(vcpu: Vcpu): boolean {
  beginExit(vcpu);
  vcpu.hitExit(vcpu.commonExits.wrmsr);
  const fastPath = fastWrmsr(vcpu);
  if (
    fastPath === FastPath.Reenter && vcpu.mode === VcpuMode.InGuest && (vcpu.requests | vcpu.attention) === 0
  ) {
    vcpu.hit(TP.kvm_entry);
    enter(vcpu, vcpu.cost.reentry);
    return true;
  }
  afterFastPath(vcpu, fastPath);
  vcpu.phase = Phase.Served;
  vcpu.straight = Straight.None;
  return false;
}

/** The vector to inject after a kick: the only one that waits, for a local APIC that serves none. -1 in any other case. */
function nextVector(vcpu: Vcpu): number {
  const { lapic, processor } = vcpu;
  const { irrRegisters } = lapic;
  if (vcpu.straight !== Straight.All || vcpu.requests !== REQ_EVENT) return -1;
  if ((lapic.isrCount | lapic.pendingEvents) !== 0) return -1;
  if (irrRegisters === 0 || (irrRegisters & (irrRegisters - 1)) !== 0) return -1;
  if ((processor.regs[RFLAGS] & FLAG_IF) === 0 || processor.shadow) return -1;
  const vector = lapic.onlyIrr();
  return (vector & 0xf0) > lapic.taskPriority ? vector : -1;
}

/** A physical interrupt's exit is over: the host takes it, and injects the vector for whose sake it was sent. */
function injectAndEnter(vcpu: Vcpu, vector: number): void {
  const { lapic, processor } = vcpu;
  beginExit(vcpu);
  if (vcpu.time >= processor.asyncAt) vcpu.serveInterrupts();
  vcpu.requests = 0;
  vcpu.straightInjections++;
  lapic.serveOnly(vector);
  vcpu.events = EVENT_INTERRUPT_INJECTED;
  vcpu.injectedInterrupt = vector;
  vcpu.injected = true;
  vcpu.time += vcpu.cost.inject;
  if (vcpu.pvEoiEnabled) vcpu.pvEoi.arm();
  if (vcpu.time >= processor.asyncAt) vcpu.serveInterrupts();
  enter(vcpu, vcpu.cost.vmentry);
  deliverInterrupt(processor, vector, false);
}
