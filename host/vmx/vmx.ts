/**
 * KVM's VMX module: kvm_x86_ops for one vCPU (arch/x86/kvm/vmx/vmx.c).
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { high } from "../../abi/mod.ts";
import * as vendor from "../kvm/backend.ts";
import type { Steps } from "../core/mod.ts";
import type { Backend, CommonExits } from "../kvm/backend.ts";
import * as fast from "../kvm/fast_path.ts";
import * as modes from "../kvm/modes.ts";
import * as msrs from "../kvm/msr.ts";
import * as requests from "../kvm/requests.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import type { Lapic } from "../lapic/mod.ts";
import type { Pcpu } from "../sched/mod.ts";
import {
  loadEoiExitmap,
  refreshApicv,
  resetVirtualApic,
  serviceChanged,
  setVirtualApicMode,
} from "./apicv.ts";
import { initControls } from "./exec_controls.ts";
import { handleVmxExit } from "./exits.ts";
import { VmxHardware } from "./hardware.ts";
import { enterDescriptor } from "./ipi_virtualization.ts";
import { PiWakeup } from "./pi_wakeup.ts";
import { PostedInterrupts } from "./posted_interrupts.ts";
import type { VmxSetup } from "./setup.ts";
import * as tlb from "./tlb.ts";
import { Vmcs } from "./vmcs.ts";
import * as virtual from "./virtual_interrupts.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CPU_BASED_INTR_WINDOW_EXITING,
  CPU_BASED_NMI_WINDOW_EXITING,
  EXIT_REASON_EXTERNAL_INTERRUPT,
  EXIT_REASON_HLT,
  EXIT_REASON_INVD,
  EXIT_REASON_MSR_WRITE,
  EXIT_REASON_PREEMPTION_TIMER,
  FLAG_IF,
  INTR_INFO_ERROR_CODE,
  INTR_INFO_VALID,
  INTR_TYPE_EXT_INTR,
  INTR_TYPE_HARD_EXCEPTION,
  INTR_TYPE_NMI,
  NMI_VECTOR,
  RFLAGS,
  VMX_EXIT_REASONS,
} = abi;
const { FastPath } = vendor;
const { fastHalt, fastInvd, fastWrmsr } = fast;
const { emulateWrmsr } = msrs;
const { REQ_EVENT, REQ_TLB_FLUSH } = requests;
type FastPath = vendor.FastPath;
const { Straight } = modes;
const { WINDOWS } = virtual;
type Straight = modes.Straight;

/** External interrupts, and WRMSR without a qualification. */
const COMMON_EXITS: CommonExits = {
  interrupt: EXIT_REASON_EXTERNAL_INTERRUPT,
  wrmsr: EXIT_REASON_MSR_WRITE,
  wrmsrInfo: 0,
};

/** The VMX module's part of a vCPU. */
export class Vmx implements Backend {
  /** Which vendor. */
  readonly name = "vmx";
  /** Intel keeps the x2APIC ICR in one piece. */
  readonly x2apicIcrIsSplit = false;
  /** The host has a handler for the notification vector. */
  readonly notifiedByInterrupt = true;
  /** See {@linkcode COMMON_EXITS}. */
  readonly commonExits = COMMON_EXITS;
  /** Basic exit reasons are small numbers. */
  readonly exitPlaces = 0x80;
  /** Where notifications of what is posted go. */
  readonly #wakeup: PiWakeup;
  /** The entry is to exit at once. */
  #immediateExit = false;
  /** The present exit is that one. */
  #forced = false;
  /** The CPU that the VMCS is loaded on, or was last. */
  #pcpu: Pcpu | undefined = undefined;
  /** The vCPU. */
  declare readonly vcpu: Vcpu;
  /** The VMCS. */
  declare readonly vmcs: Vmcs;
  /** What KVM uses of the processor. */
  declare readonly setup: VmxSetup;
  /** The hardware that it controls. */
  declare readonly hardware: VmxHardware;
  /** What was posted to it. */
  declare readonly posted: PostedInterrupts;

  /** The VMX part of a new vCPU, with a VPID of its own; 0 where it has none. */
  constructor(vcpu: Vcpu, vpid: number = 0) {
    this.vcpu = vcpu;
    const setup = vcpu.vm.vmxSetup!;
    this.vmcs = new Vmcs(setup.capabilities);
    this.setup = setup;
    initControls(this.vmcs, this.setup, { apicvActive: false, vpid, invpcid: vcpu.cpuid.invpcid });
    this.hardware = new VmxHardware(vcpu, this.vmcs);
    this.posted = new PostedInterrupts(vcpu);
    this.#wakeup = new PiWakeup(vcpu, this.posted.descriptor);
    enterDescriptor(this);
  }

  /** The VMX-preemption timer; in explored runs timers are threads instead. */
  get hasPreemptionTimer(): boolean {
    return !this.vcpu.engine.explores;
  }

  /** Qualifications are numbers. */
  get exitInfo1High(): number {
    return high(this.vcpu.processor.exitInfo1);
  }

  /** The name that kvm_exit prints. */
  exitName(reason: number): string {
    return VMX_EXIT_REASONS[reason] ?? `0x${reason.toString(16)}`;
  }

  /**
   * RESET, or INIT: nothing is injected, no window is open, the APIC mode's controls are set, the VPID is flushed
   * (vmx_vcpu_reset). A vCPU that has no CPU yet has nothing to flush: its first one flushes everything.
   */
  reset(init: boolean): void {
    if (!init) resetVirtualApic(this);
    this.vmcs.entryIntrInfo = 0;
    this.vmcs.tprThreshold = 0;
    this.setWindows(WINDOWS, false);
    this.apicModeChanged();
    if (this.vcpu.pcpu !== undefined) this.flushTlbGuest();
  }

  /** What was posted is gone. */
  discardPosted(): void {
    this.posted.discard();
  }

  /** The APIC mode's controls. */
  apicModeChanged(): void {
    setVirtualApicMode(this);
  }

  // Interrupts that hardware delivers.

  /** APICv is to be used, or not any more: the hardware looks for windows alone until the next entry. */
  refreshApicv(): void {
    refreshApicv(this);
    this.setWindows(0, false);
  }

  /** The highest vector in service has changed. */
  serviceChanged(highestIsr: number): void {
    serviceChanged(this, highestIsr);
  }

  /** The vectors whose EOI the I/O APIC must see have changed. */
  loadEoiExitmap(): void {
    loadEoiExitmap(this);
  }

  /** Hands an interrupt to the target's hardware. */
  deliver(target: Lapic, deliveryMode: number, vector: number, levelTriggered: boolean): void {
    if (target.apicvActive) {
      const { vm } = target.vcpu;
      if (vm.engine.explores) vm.perform(this.posted.post(deliveryMode, vector, levelTriggered));
      else this.posted.postAtOnce(deliveryMode, vector, levelTriggered);
      return;
    }
    target.setIrr(vector);
    target.vcpu.request(REQ_EVENT);
    target.vcpu.kick();
  }

  /** Moves what was posted to the IRR. Mostly nothing was, and then nobody need come between. */
  syncPirToIrr(): Steps<number> | undefined {
    const { posted } = this;
    if (posted.descriptor.on || this.vcpu.engine.explores) return posted.synchronize();
    posted.settle(this.vcpu.lapic.highestIrr(), false);
    return undefined;
  }

  /** The thread is on a CPU again. */
  load(): Steps | undefined {
    return this.#wakeup.load();
  }

  /** The thread leaves its CPU: only hardware that posts by itself need know. */
  put(): Steps | undefined {
    return this.vcpu.vm.enableIpiv ? this.#wakeup.put() : undefined;
  }

  /** The vCPU is about to look for events before it sleeps. */
  blocking(): Steps | undefined {
    return undefined;
  }

  /** It goes on. */
  unblocking(): Steps | undefined {
    return undefined;
  }

  // Translations.

  /** On another CPU everything is flushed: it may remember what was before the vCPU left it (vmx_vcpu_load_vmcs). */
  loadedOn(pcpu: Pcpu): void {
    if (pcpu === this.#pcpu) return;
    this.#pcpu = pcpu;
    this.vcpu.request(REQ_TLB_FLUSH);
  }

  /** Writes the EPT pointer. */
  loadMmuPgd(root: number): void {
    tlb.loadMmuPgd(this, root);
  }

  /** A VPID is for life. */
  renewAsid(): void {}

  /** There are none. */
  asidTag(): undefined {}

  /** INVEPT of all roots. */
  flushTlbAll(): void {
    tlb.flushTlbAll(this);
  }

  /** INVEPT of the root that is loaded. */
  flushTlbCurrent(): void {
    tlb.flushTlbCurrent(this);
  }

  /** INVVPID of the vCPU's VPID. */
  flushTlbGuest(): void {
    tlb.flushTlbGuest(this);
  }

  /** INVVPID of one address. */
  flushTlbGva(address: number): void {
    tlb.flushTlbGva(this, address);
  }

  /** KVM forces an immediate exit with a preemption timer of 0. */
  requestImmediateExit(): void {
    this.#immediateExit = true;
    this.vcpu.setPreemptionTimer(this.vcpu.clock);
  }

  /** Nothing is left to do. */
  prepareEntry(): void {}

  /** What was injected has been delivered; what a fault of EPT's has cut short, its handler queues again. */
  completeExit(): void {
    if (this.vcpu.injected) this.#delivered();
  }

  #delivered(): void {
    this.vcpu.eventDelivered();
    if (this.#immediateExit) this.#exitedAtOnce();
  }

  #exitedAtOnce(): void {
    const { vcpu } = this;
    this.#immediateExit = false;
    this.#forced = vcpu.processor.exitReason === EXIT_REASON_PREEMPTION_TIMER;
    vcpu.setPreemptionTimer(Infinity);
    if (vcpu.lapic.timer.hvInUse) vcpu.lapic.timer.switchToHv();
  }

  /** vmx_exit_handlers_fastpath. What exits most is looked for first. */
  fastPath(): FastPath {
    const { vcpu } = this;
    const { exitReason } = vcpu.processor;
    if (exitReason === EXIT_REASON_MSR_WRITE) return fastWrmsr(vcpu);
    if (exitReason !== EXIT_REASON_EXTERNAL_INTERRUPT) return this.#rarerFastPath(exitReason);
    vcpu.stats.irq_exits++;
    return FastPath.Handled; // By the host, which takes its interrupt right after the exit.
  }

  #rarerFastPath(exitReason: number): FastPath {
    const { vcpu } = this;
    switch (exitReason) {
      case EXIT_REASON_HLT:
        return fastHalt(vcpu);
      case EXIT_REASON_INVD:
        return fastInvd(vcpu);
      case EXIT_REASON_PREEMPTION_TIMER:
        if (this.#forced) {
          this.#forced = false; // KVM's own immediate exit, not the guest's timer.
          return FastPath.Handled;
        }
        if (!vcpu.lapic.timer.hvInUse) return FastPath.Handled;
        if (!vcpu.vm.behaviour.timerFastPath) return FastPath.None;
        vcpu.lapic.timer.hvExpired();
        return FastPath.Reenter;
      default:
        return FastPath.None;
    }
  }

  /** vmx_handle_exit. What exits most needs no table. */
  handleExit(): void {
    const { vcpu } = this;
    if (vcpu.processor.exitReason === EXIT_REASON_MSR_WRITE) emulateWrmsr(vcpu);
    else handleVmxExit(vcpu, this);
  }

  /** All, unless there is something to look for, or to check. */
  straightWays(): Straight {
    const { primary, tprThreshold, unchecked } = this.vmcs;
    const plain = (tprThreshold | unchecked | (primary & WINDOWS)) === 0 && !this.#immediateExit;
    return plain ? Straight.All : Straight.None;
  }

  /** RIP moves on by the instruction's length, and the STI shadow ends (vmx_skip_emulated_instruction). */
  skipInstruction(): void {
    this.vcpu.processor.skipInstruction();
  }

  /** RFLAGS.IF, and no blocking by STI. */
  interruptAllowed(): boolean {
    const { processor } = this.vcpu;
    return (processor.regs[RFLAGS] & FLAG_IF) !== 0 && !processor.shadow;
  }

  /** No blocking by NMI or STI. */
  nmiAllowed(): boolean {
    const { processor } = this.vcpu;
    return !processor.nmiBlocked && !processor.shadow;
  }

  /** Blocking by NMI. */
  nmiMasked(): boolean {
    return this.vcpu.processor.nmiBlocked;
  }

  /** Writes an external interrupt into the entry's interruption information. */
  injectInterrupt(vector: number): void {
    this.vcpu.injected = true;
    this.vmcs.entryIntrInfo = INTR_INFO_VALID | INTR_TYPE_EXT_INTR | vector;
  }

  /** Writes an NMI. */
  injectNmi(): void {
    this.vcpu.injected = true;
    this.vmcs.entryIntrInfo = INTR_INFO_VALID | INTR_TYPE_NMI | NMI_VECTOR;
  }

  /** Writes an exception. */
  injectException(vector: number, errorCode: number): void {
    const withCode = errorCode >= 0 ? INTR_INFO_ERROR_CODE : 0;
    this.vcpu.injected = true;
    this.vmcs.entryIntrInfo = INTR_INFO_VALID | INTR_TYPE_HARD_EXCEPTION | withCode | vector;
    this.vmcs.entryErrorCode = Math.max(0, errorCode);
  }

  /** What was written stays queued and is written again at the next entry. */
  cancelInjection(): void {
    if ((this.vmcs.entryIntrInfo & INTR_INFO_VALID) !== 0) this.vcpu.request(REQ_EVENT);
    this.vmcs.entryIntrInfo = 0;
  }

  /** Interrupt-window exiting. */
  enableInterruptWindow(): void {
    this.setWindows(CPU_BASED_INTR_WINDOW_EXITING, true);
  }

  /** Sets window-exiting controls; the hardware looks for windows only while there are some. */
  setWindows(controls: number, on: boolean): void {
    const { vmcs } = this;
    vmcs.primary = on ? vmcs.primary | controls : vmcs.primary & ~controls;
    this.vcpu.processor.requestWindow((vmcs.primary & WINDOWS) !== 0);
  }

  /** NMI-window exiting; behind STI, an interrupt window comes first (vmx_enable_nmi_window). */
  enableNmiWindow(): void {
    if (this.vcpu.processor.shadow) this.enableInterruptWindow();
    else this.setWindows(CPU_BASED_NMI_WINDOW_EXITING, true);
  }

  /** The TPR threshold: the class of the requested vector, while the task priority is not below it. */
  updateCr8Intercept(taskPriorityClass: number, requestedClass: number): void {
    this.vmcs.tprThreshold = requestedClass === -1 || taskPriorityClass < requestedClass ? 0 : requestedClass;
  }
}
