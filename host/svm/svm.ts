/**
 * KVM's SVM module: kvm_x86_ops for one vCPU (arch/x86/kvm/svm/svm.c), on hardware without virtual NMIs: the end of an
 * NMI handler is seen by intercepting IRET.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { high } from "../../abi/mod.ts";
import * as vendor from "../kvm/backend.ts";
import type { Steps } from "../core/mod.ts";
import { setApicvInhibit } from "../kvm/apicv.ts";
import type { Backend, CommonExits } from "../kvm/backend.ts";
import * as fast from "../kvm/fast_path.ts";
import * as modes from "../kvm/modes.ts";
import * as msrs from "../kvm/msr.ts";
import * as requests from "../kvm/requests.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import type { Lapic } from "../lapic/mod.ts";
import type { Pcpu } from "../sched/mod.ts";
import { Asid } from "./asid.ts";
import { Avic } from "./avic/avic.ts";
import * as delivery from "./avic/deliver.ts";
import { handleSvmExit } from "./exits.ts";
import { SvmHardware } from "./hardware.ts";
import * as control from "./vmcb.ts";
import { Vmcb } from "./vmcb.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_TASKPRI,
  FLAG_IF,
  NMI_VECTOR,
  RFLAGS,
  SVM_EXIT_AVIC_INCOMPLETE_IPI,
  SVM_EXIT_HLT,
  SVM_EXIT_INTR,
  SVM_EXIT_INVD,
  SVM_EXIT_MSR,
  SVM_EXIT_REASONS,
  V_INTR_PRIO_SHIFT,
  V_IRQ_MASK,
  V_TPR_MASK,
} = abi;
const { FastPath } = vendor;
const { fastHalt, fastInvd, fastWrmsr } = fast;
const { emulateWrmsr } = msrs;
const { deliverAtOnce, deliverInterrupt } = delivery;
const { REQ_EVENT } = requests;
const {
  EVTINJ_TYPE_EXEPT,
  EVTINJ_TYPE_INTR,
  EVTINJ_TYPE_NMI,
  EVTINJ_VALID,
  EVTINJ_VALID_ERR,
  TLB_CONTROL_DO_NOTHING,
} = control;
type FastPath = vendor.FastPath;
const { Straight } = modes;
type Straight = modes.Straight;

const V_INTR_PRIO_MASK = 0xf << V_INTR_PRIO_SHIFT;

/** Physical interrupts, and the MSR exit whose EXITINFO1 says that it was a write. */
const COMMON_EXITS: CommonExits = { interrupt: SVM_EXIT_INTR, wrmsr: SVM_EXIT_MSR, wrmsrInfo: 1 };

/** The SVM module's part of a vCPU. */
export class Svm implements Backend {
  /** Which vendor. */
  readonly name = "svm";
  /** The VMCB. */
  readonly vmcb: Vmcb = new Vmcb();
  /** The hardware that it controls. */
  declare readonly hardware: SvmHardware;
  /** SVM has no timer that exits. */
  readonly hasPreemptionTimer = false;
  /** AMD splits the x2APIC ICR. */
  readonly x2apicIcrIsSplit = true;
  /** The host hears no doorbells. */
  readonly notifiedByInterrupt = false;
  /** See {@linkcode COMMON_EXITS}. */
  readonly commonExits = COMMON_EXITS;
  /** The nested page fault and AVIC's exits are the last, 0x400 to 0x403. */
  readonly exitPlaces = 0x104;
  /** The vCPU. */
  declare readonly vcpu: Vcpu;
  /** Its ASID. */
  declare readonly asid: Asid;
  /** KVM's part of AVIC; undefined where it is not used, and before the vCPU's first reset. */
  avic: Avic | undefined = undefined;
  #nmiMasked = false;
  /** The entry was to flush: the next one is not. */
  #flushed = false;
  /** An IRET was intercepted and has not completed: NMIs are still masked. */
  #awaitingIret = false;
  #iretRip = 0;

  /** The SVM part of a new vCPU. */
  constructor(vcpu: Vcpu) {
    this.vcpu = vcpu;
    this.hardware = new SvmHardware(vcpu, this.vmcb);
    this.asid = new Asid(vcpu, this.vmcb);
  }

  /** Of an incomplete IPI, the ICR's high half. */
  get exitInfo1High(): number {
    const { exitReason, exitInfo1 } = this.vcpu.processor;
    return exitReason === SVM_EXIT_AVIC_INCOMPLETE_IPI ? this.vmcb.incompleteIcrHigh : high(exitInfo1);
  }

  /** The name that kvm_exit prints. */
  exitName(reason: number): string {
    return SVM_EXIT_REASONS.get(reason) ?? `0x${reason.toString(16)}`;
  }

  /** RESET, or INIT. The first RESET is at the end of the vCPU's creation. */
  reset(_init: boolean): void {
    const { nestedCr3 } = this.vmcb;
    Object.assign(this.vmcb, new Vmcb(), { nestedCr3 });
    this.asid.reset();
    this.#nmiMasked = false;
    this.#awaitingIret = false;
    if (this.vcpu.vm.enableApicv) this.avic ??= new Avic(this.vcpu, this.vmcb);
    this.avic?.reset();
  }

  /** Nothing is posted elsewhere than in the page. */
  discardPosted(): void {}

  /** The APIC's mode is AVIC's too. */
  apicModeChanged(): void {
    this.avic?.modeChanged();
  }

  // Interrupts that hardware delivers.

  /** AVIC is to be used, or not any more. */
  refreshApicv(): void {
    this.avic?.refresh();
  }

  /** AVIC finds the highest vector in service in the page. */
  serviceChanged(_highestIsr: number): void {}

  /** Which EOIs exit, the TMR in the page says. */
  loadEoiExitmap(): void {}

  /** Hands an interrupt to the target's hardware. */
  deliver(target: Lapic, deliveryMode: number, vector: number, levelTriggered: boolean): void {
    const { vm } = target.vcpu;
    if (vm.engine.explores) vm.perform(deliverInterrupt(target, { deliveryMode, vector, levelTriggered }));
    else deliverAtOnce(target, deliveryMode, vector, levelTriggered);
  }

  /** Nothing is posted elsewhere; but other processors set requests in the page, which KVM has not counted. */
  syncPirToIrr(): Steps<number> | undefined {
    if (this.vcpu.lapic.apicvActive) this.vcpu.lapic.findIrr();
    return undefined;
  }

  /** The thread is on a CPU again. */
  load(): Steps | undefined {
    return this.#activeAvic?.load();
  }

  /** The thread leaves its CPU. */
  put(): Steps | undefined {
    return this.#activeAvic?.put();
  }

  /** The vCPU is about to look for events before it sleeps: whoever finds it not running now will wake it. */
  blocking(): Steps | undefined {
    return this.#activeAvic?.put();
  }

  /** It goes on. */
  unblocking(): Steps | undefined {
    return this.#activeAvic?.load();
  }

  get #activeAvic(): Avic | undefined {
    return this.vcpu.lapic.apicvActive ? this.avic : undefined;
  }

  // Translations.

  /** What ASID the vCPU has is a matter of the CPU that it runs on. */
  loadedOn(pcpu: Pcpu): void {
    this.asid.loaded(pcpu);
  }

  /** Writes N_CR3. */
  loadMmuPgd(root: number): void {
    this.vmcb.nestedCr3 = root;
    this.vcpu.processor.mmu?.moved();
  }

  /** pre_svm_run. */
  renewAsid(): void {
    this.asid.renew();
    this.#flushed = true;
  }

  /** See {@linkcode Asid.tag}. */
  asidTag(): { readonly cpu: number; readonly vpid: number } | undefined {
    return this.asid.tag;
  }

  /** SVM knows no narrower flush than that of the ASID. */
  flushTlbAll(): void {
    this.asid.flush();
    this.#flushed = true;
  }

  /** As for all. */
  flushTlbCurrent(): void {
    this.flushTlbAll();
  }

  /** As for all. */
  flushTlbGuest(): void {
    this.flushTlbAll();
  }

  /** INVLPGA. */
  flushTlbGva(address: number): void {
    this.asid.flushAddress(address);
  }

  /** The host sends itself a reschedule interrupt, which ends the guest's stay at once. */
  requestImmediateExit(): void {
    this.vcpu.pcpu!.interrupt(this.vcpu.time);
  }

  /** V_TPR gets the task priority's class (sync_lapic_to_cr8), with AVIC as without: it may have been KVM that wrote it. */
  prepareEntry(): void {
    if (this.vmcb.avic && this.vcpu.vm.quirk("avic-cr8-out-of-sync")) return;
    this.vmcb.intCtl = (this.vmcb.intCtl & ~V_TPR_MASK) | this.vcpu.lapic.cr8;
  }

  /**
   * What was injected has been delivered. The task priority is V_TPR again, its low four bits lost, unless writes are
   * intercepted (sync_cr8_to_lapic). An IRET that has completed unmasks NMIs.
   */
  completeExit(): void {
    const { vcpu } = this;
    if (vcpu.injected) vcpu.eventDelivered();
    if (this.#flushed) {
      this.#flushed = false;
      this.vmcb.tlbControl = TLB_CONTROL_DO_NOTHING;
    }
    if (!this.vmcb.interceptCr8Write) vcpu.lapic.keepTpr((this.vmcb.intCtl & V_TPR_MASK) << 4);
    if (this.#awaitingIret && vcpu.processor.rip !== this.#iretRip) {
      this.#awaitingIret = false;
      this.#nmiMasked = false;
      vcpu.request(REQ_EVENT);
    }
  }

  /** svm_exit_handlers_fastpath. What exits most is looked for first. */
  fastPath(): FastPath {
    const { vcpu } = this;
    const { exitReason, exitInfo1 } = vcpu.processor;
    if (exitReason === SVM_EXIT_MSR) return exitInfo1 === 1 ? fastWrmsr(vcpu) : FastPath.None;
    if (exitReason !== SVM_EXIT_INTR) return this.#rarerFastPath(exitReason);
    vcpu.stats.irq_exits++;
    return FastPath.Handled; // By the host, which takes its interrupt right after the exit.
  }

  #rarerFastPath(exitReason: number): FastPath {
    if (exitReason === SVM_EXIT_HLT) return fastHalt(this.vcpu);
    return exitReason === SVM_EXIT_INVD ? fastInvd(this.vcpu) : FastPath.None;
  }

  /** svm_handle_exit. What exits most needs no table. */
  handleExit(): void {
    const { vcpu } = this;
    const { exitReason, exitInfo1 } = vcpu.processor;
    if (exitReason === SVM_EXIT_MSR && exitInfo1 === 1) emulateWrmsr(vcpu);
    else handleSvmExit(vcpu, this);
  }

  /** All, unless there is something to look for, to flush or to keep; while CR8 is intercepted, an injection changes that. */
  straightWays(): Straight {
    const { intCtl, interceptCr8Write, interceptVintr, singleStep, written } = this.vmcb;
    if (interceptVintr || singleStep || written !== 0 || this.#flushed || this.#awaitingIret) {
      return Straight.None;
    }
    if (interceptCr8Write) return Straight.Sends;
    return (intCtl & V_TPR_MASK) << 4 === this.vcpu.lapic.get(APIC_TASKPRI) ? Straight.All : Straight.None;
  }

  /** RIP moves on by the instruction's length, and the interrupt shadow ends. */
  skipInstruction(): void {
    this.vcpu.processor.skipInstruction();
  }

  /** RFLAGS.IF, and no interrupt shadow. */
  interruptAllowed(): boolean {
    const { processor } = this.vcpu;
    return (processor.regs[RFLAGS] & FLAG_IF) !== 0 && !processor.shadow;
  }

  /** No NMI handler runs, and no interrupt shadow. */
  nmiAllowed(): boolean {
    return !this.#nmiMasked && !this.vcpu.processor.shadow;
  }

  /** An NMI handler runs. */
  nmiMasked(): boolean {
    return this.#nmiMasked;
  }

  /** Writes an external interrupt into EVENTINJ. */
  injectInterrupt(vector: number): void {
    this.vcpu.injected = true;
    this.vmcb.eventInj = EVTINJ_VALID | EVTINJ_TYPE_INTR | vector;
  }

  /** Writes an NMI; its handler's IRET is intercepted. */
  injectNmi(): void {
    this.vcpu.injected = true;
    this.vmcb.eventInj = EVTINJ_VALID | EVTINJ_TYPE_NMI | NMI_VECTOR;
    this.#nmiMasked = true;
    this.vmcb.interceptIret = true;
  }

  /** Writes an exception. */
  injectException(vector: number, errorCode: number): void {
    const withCode = errorCode >= 0 ? EVTINJ_VALID_ERR : 0;
    this.vcpu.injected = true;
    this.vmcb.eventInj = EVTINJ_VALID | EVTINJ_TYPE_EXEPT | withCode | vector;
    this.vmcb.eventInjError = Math.max(0, errorCode);
  }

  /** What was written stays queued and is written again at the next entry. */
  cancelInjection(): void {
    if ((this.vmcb.eventInj & EVTINJ_VALID) !== 0) this.vcpu.request(REQ_EVENT);
    this.vmcb.eventInj = 0;
  }

  /**
   * A virtual interrupt of the highest priority, whose delivery is intercepted (svm_set_vintr). AVIC knows no such thing:
   * until then the whole virtual machine does without.
   */
  enableInterruptWindow(): void {
    setApicvInhibit(this.vcpu.vm, "IRQWIN", true);
    this.vmcb.interceptVintr = true;
    this.vmcb.intCtl |= V_IRQ_MASK | V_INTR_PRIO_MASK;
  }

  /** The virtual interrupt has served its purpose (svm_clear_vintr). */
  clearVintr(): void {
    this.vmcb.interceptVintr = false;
    this.vmcb.intCtl &= ~(V_IRQ_MASK | V_INTR_PRIO_MASK);
  }

  /** While the handler runs, its IRET will exit; behind that IRET, and behind a shadow, one step is enough. */
  enableNmiWindow(): void {
    if (this.#nmiMasked && !this.#awaitingIret) return;
    this.vmcb.singleStep = true;
  }

  /** The NMI handler is at its IRET: NMIs are unmasked when that has completed. */
  iretIntercepted(): void {
    const { vcpu } = this;
    vcpu.stats.nmi_window_exits++;
    this.#awaitingIret = true;
    this.vmcb.interceptIret = false;
    this.#iretRip = vcpu.processor.rip;
    vcpu.request(REQ_EVENT);
  }

  /** The #DB of a single step. */
  singleStepped(): void {
    this.vmcb.singleStep = false;
    this.vcpu.request(REQ_EVENT);
  }

  /** Writes of CR8 are intercepted while the task priority holds a requested vector back. */
  updateCr8Intercept(taskPriorityClass: number, requestedClass: number): void {
    this.vmcb.interceptCr8Write = requestedClass !== -1 && taskPriorityClass >= requestedClass;
  }
}
