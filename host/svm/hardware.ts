/**
 * SVM guest mode: which instruction and event exits, with which code and information (APM volume 2, 15.7 to 15.13),
 * and what the processor does for the guest without an exit: V_TPR.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { PagingFeatures } from "../../abi/mod.ts";
import * as cpu from "../cpu/mod.ts";
import type { Processor, Virtualization } from "../cpu/mod.ts";
import { accessPageMapped, accessPageMemory } from "../kvm/access_page.ts";
import * as modes from "../kvm/modes.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { type HostFault, NO_EPT, Npt, type PhysicalMemory, type SecondDimension } from "../mmu/mod.ts";
import { vmrunFlush } from "./asid.ts";
import { AvicHardware } from "./avic/hardware.ts";
import { checkAvic } from "./entry_failed.ts";
import * as permissions from "./msr_permissions.ts";
import * as control from "./vmcb.ts";
import type { Vmcb } from "./vmcb.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_DEFAULT_BASE,
  APIC_PAGE_SIZE,
  CR0_CD,
  CR0_NW,
  DB_VECTOR,
  FLAG_IF,
  HIGH,
  NMI_VECTOR,
  PFERR_GUEST_FINAL,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
  RAX,
  RDI,
  RFLAGS,
  SVM_EXIT_CPUID,
  SVM_EXIT_CR0_SEL_WRITE,
  SVM_EXIT_EXCP_BASE,
  SVM_EXIT_HLT,
  SVM_EXIT_INTR,
  SVM_EXIT_INVD,
  SVM_EXIT_INVPCID,
  SVM_EXIT_IOIO,
  SVM_EXIT_IRET,
  SVM_EXIT_MSR,
  SVM_EXIT_NPF,
  SVM_EXIT_READ_CR0,
  SVM_EXIT_SHUTDOWN,
  SVM_EXIT_VINTR,
  SVM_EXIT_VMMCALL,
  SVM_EXIT_WBINVD,
  SVM_EXIT_WRITE_CR0,
  SVM_EXIT_WRITE_CR8,
  SYS_CR0,
  UD_VECTOR,
  V_IGN_TPR_MASK,
  V_INTR_PRIO_SHIFT,
  V_IRQ_MASK,
  V_TPR_MASK,
  X2APIC_MSR_BASE,
} = abi;
const { DIRECT_ACCESS_MSRS } = permissions;
const { deliverInjectedException, deliverInterrupt, raise } = cpu;
const { EVTINJ_TYPE_INTR, EVTINJ_TYPE_MASK, EVTINJ_TYPE_NMI, EVTINJ_VALID, WRITTEN_TLB_CONTROL } = control;
const { Straight } = modes;

/** Exceptions that KVM intercepts with nested paging: #DB, #UD, #AC, #MC (init_vmcb). */
const EXCEPTION_INTERCEPTS = (1 << DB_VECTOR) | (1 << UD_VECTOR) | (1 << 17) | (1 << 18);
/** Of an MSR's number, what all 256 x2APIC MSRs have in common. */
const X2APIC_MSR_MASK = ~0xff;
/** CR0 bits that a selective intercept lets through: TS and MP (APM 2 15.8.1). */
const CR0_SELECTIVE = (1 << 3) | (1 << 1);
/** Nested page fault error code (APM 2 15.25.6): the final translation of a guest address, by a user-level access. */
const NPF_FINAL = PFERR_GUEST_FINAL + PFERR_USER;
/** Present, with a reserved bit set: how KVM marks MMIO. */
const NPF_RESERVED = PFERR_PRESENT | PFERR_RSVD;
/** EXITINFO1 of IOIO (APM 2 15.10.2): IN. */
const IOIO_IN = 1;
/** EXITINFO1 of IOIO bit 4: 8 bits; the next two 16 and 32. */
const IOIO_SIZE_SHIFT = 4;
/** EXITINFO1 of IOIO: 32-bit addresses. */
const IOIO_A32 = 1 << 8;
/** EXITINFO1 of IOIO: 64-bit addresses. */
const IOIO_A64 = 1 << 9;
/** EXITINFO1 of a control-register access (APM 2 15.8.1): valid (bit 63), register 0 (RAX). */
const CR_OPERAND_RAX: number = 2 ** 63;
/** CR0 bits that KVM keeps clear in the VMCB (KVM_X86_QUIRK_CD_NW_CLEARED): while the guest has them set, it is lied to. */
const CR0_CACHE = CR0_CD | CR0_NW;

/** The host's own paging, whose format nested tables have. */
const HOST_PAGING: PagingFeatures = { maxPhysicalBits: 48, pages1G: true, amd: true };

/** The virtualization hardware of one SVM processor. */
export class SvmHardware implements Virtualization {
  /** The vCPU that it runs. */
  declare readonly vcpu: Vcpu;
  /** What controls it. */
  declare readonly vmcb: Vmcb;
  /** Its AVIC. */
  declare readonly avic: AvicHardware;
  #stepFrom = 0;

  /** The hardware that `vmcb` controls. */
  constructor(vcpu: Vcpu, vmcb: Vmcb) {
    this.vcpu = vcpu;
    this.vmcb = vmcb;
    this.avic = new AvicHardware(vcpu, vmcb);
  }

  /** VMRUN: delivers the event in EVENTINJ. With AVIC, looks for virtual interrupts, which come after it. */
  enter(p: Processor): void {
    const { vmcb } = this;
    if (vmcb.written !== 0) this.#load();
    const event = vmcb.eventInj;
    this.#stepFrom = p.instructions;
    p.iretExit = vmcb.interceptIret ? SVM_EXIT_IRET : 0; // While KVM waits for the end of an NMI handler.
    if (vmcb.avic) this.avic.evaluate(p);
    else p.requestWindow(vmcb.interceptVintr || vmcb.singleStep);
    if ((event & EVTINJ_VALID) === 0) return;
    vmcb.eventInj = 0;
    const vector = event & 0xff;
    if ((event & EVTINJ_TYPE_MASK) === EVTINJ_TYPE_INTR) deliverInterrupt(p, vector, false);
    else if ((event & EVTINJ_TYPE_MASK) === EVTINJ_TYPE_NMI) deliverInterrupt(p, NMI_VECTOR, true);
    else deliverInjectedException(p, vector, vmcb.eventInjError);
  }

  #load(): void {
    const { vcpu, vmcb, avic } = this;
    if ((vmcb.written & WRITTEN_TLB_CONTROL) !== 0) {
      vmcb.written &= ~WRITTEN_TLB_CONTROL;
      const flush = vmrunFlush(vmcb);
      if (flush !== undefined) vcpu.pcpu!.tlbInUse?.invalidate(flush);
    }
    if (!vmcb.avicDirty) return;
    checkAvic(vcpu, vmcb);
    if (vmcb.avic) avic.loadPointers();
  }

  /** A physical interrupt exits. A doorbell makes AVIC look; without it, it means nothing. */
  asynchronous(p: Processor): boolean {
    const pcpu = this.vcpu.pcpu!;
    if (pcpu.interruptAt <= p.thread.time) return p.leave(SVM_EXIT_INTR);
    pcpu.notified();
    return this.vmcb.avic && this.avic.doorbell(p);
  }

  /** A single step ends in #DB; a virtual interrupt that could be taken exits. AVIC's are delivered, and it knows no V_IRQ. */
  window(p: Processor): boolean {
    const vmcb = this.vmcb;
    if (vmcb.singleStep && p.instructions > this.#stepFrom) return p.leave(SVM_EXIT_EXCP_BASE + DB_VECTOR);
    if (vmcb.avic) return this.avic.deliver(p);
    if (!vmcb.interceptVintr || (vmcb.intCtl & V_IRQ_MASK) === 0) return false;
    if ((p.regs[RFLAGS] & FLAG_IF) === 0 || p.shadow) return false;
    const priority = (vmcb.intCtl >>> V_INTR_PRIO_SHIFT) & 0xf;
    if ((vmcb.intCtl & V_IGN_TPR_MASK) === 0 && priority <= (vmcb.intCtl & V_TPR_MASK)) return false;
    return p.leave(SVM_EXIT_VINTR);
  }

  /** Intercepted exceptions exit. */
  exception(p: Processor, vector: number, errorCode: number): boolean {
    if (((EXCEPTION_INTERCEPTS >>> vector) & 1) === 0) return false;
    return p.leaveWith(SVM_EXIT_EXCP_BASE + vector, errorCode, 0);
  }

  /** A triple fault is a shutdown. */
  tripleFault(p: Processor): void {
    p.leave(SVM_EXIT_SHUTDOWN);
  }

  /** CPUID exits. */
  cpuid(p: Processor): boolean {
    return p.leave(SVM_EXIT_CPUID);
  }

  /** HLT exits. */
  hlt(p: Processor): boolean {
    return p.leave(SVM_EXIT_HLT);
  }

  /** PAUSE does not exit: the pause filter is off (pause_filter_count=0). */
  pause(_p: Processor): boolean {
    return false;
  }

  /** MSR accesses exit unless they pass through; EXITINFO1 is 1 for a write. What passes of an x2APIC is AVIC's. */
  writeMsr(p: Processor, msr: number): boolean {
    if (this.#exits(msr)) return p.leaveWith(SVM_EXIT_MSR, 1, 0);
    return (msr & X2APIC_MSR_MASK) === X2APIC_MSR_BASE && this.avic.writeMsr(p, msr);
  }

  /** As for writes. */
  readMsr(p: Processor, msr: number): boolean {
    if (this.#exits(msr)) return p.leaveWith(SVM_EXIT_MSR, 0, 0);
    return (msr & X2APIC_MSR_MASK) === X2APIC_MSR_BASE && this.avic.readMsr(p, msr);
  }

  #exits(msr: number): boolean {
    if ((msr & X2APIC_MSR_MASK) === X2APIC_MSR_BASE) return this.vmcb.x2apicPermissions[msr & 0xff] === 0;
    return !DIRECT_ACCESS_MSRS.has(msr);
  }

  /** VMMCALL exits; VMCALL is an invalid opcode here. */
  hypercall(p: Processor, vmmcall: boolean): boolean {
    if (vmmcall) return p.leave(SVM_EXIT_VMMCALL);
    raise(p, UD_VECTOR, 0);
    return true;
  }

  /** I/O exits. */
  io(p: Processor, port: number, bytes: number, write: boolean): boolean {
    const addresses = p.longMode ? IOIO_A64 : IOIO_A32;
    const info = port * 0x1_0000 + addresses + (bytes << IOIO_SIZE_SHIFT) + (write ? 0 : IOIO_IN);
    return p.leaveWith(SVM_EXIT_IOIO, info, 0);
  }

  /**
   * CR0 exits when more than TS and MP change, and always while its shadow differs; CR4 always; CR8 while a requested
   * interrupt waits behind it.
   */
  movToCr(p: Processor, cr: number): boolean {
    switch (cr) {
      case 0:
        if ((p.sys[SYS_CR0] & CR0_CACHE) !== 0) return p.leaveWith(SVM_EXIT_WRITE_CR0, CR_OPERAND_RAX, 0);
        if (((p.regs[RAX] ^ p.sys[SYS_CR0]) & ~CR0_SELECTIVE) === 0) return false;
        return p.leaveWith(SVM_EXIT_CR0_SEL_WRITE, CR_OPERAND_RAX, 0);
      case 4:
        return p.leaveWith(SVM_EXIT_WRITE_CR0 + cr, CR_OPERAND_RAX, 0);
      case 8:
        return this.vmcb.interceptCr8Write ? p.leaveWith(SVM_EXIT_WRITE_CR8, CR_OPERAND_RAX, 0) : false;
      default:
        return false;
    }
  }

  /** Reads of CR4 exit, those of CR0 while its shadow differs. */
  movFromCr(p: Processor, cr: number): boolean {
    const exits = cr === 4 || (cr === 0 && (p.sys[SYS_CR0] & CR0_CACHE) !== 0);
    return exits ? p.leaveWith(SVM_EXIT_READ_CR0 + cr, CR_OPERAND_RAX, 0) : false;
  }

  /** INVD and WBINVD exit. */
  invalidate(p: Processor, writeBack: boolean): boolean {
    return p.leave(writeBack ? SVM_EXIT_WBINVD : SVM_EXIT_INVD);
  }

  /**
   * Accesses outside memory are nested page faults, and so are those to the APIC's page while it is not mapped. Where it is,
   * it is AVIC's, or a page of memory as any other: x2AVIC decodes no address, and a disabled APIC has no AVIC.
   */
  unbacked(p: Processor, address: number, bytes: number, write: boolean): boolean {
    const { vm } = this.vcpu;
    const offset = address - APIC_DEFAULT_BASE;
    if (offset >= 0 && offset < APIC_PAGE_SIZE && accessPageMapped(vm) && !this.avic.pageDeleted) {
      if (this.avic.claims(address)) return this.avic.access(p, address, bytes, write);
      // Any other vCPU without AVIC is about to take it up: KVM waits for that before it maps the page.
      const unclaimed = this.vmcb.x2avic || !this.vcpu.lapic.hardwareEnabled;
      if (unclaimed && offset + bytes <= APIC_PAGE_SIZE) return accessPageMemory(vm, p, offset);
    }
    const marked = vm.mmioMarks.has(address) ? NPF_RESERVED : 0;
    return p.leaveWith(SVM_EXIT_NPF, NPF_FINAL + marked + (write ? PFERR_WRITE : 0), address);
  }

  // Translation.

  /** The ASID. Nested tables are no tag. */
  tlbTags(): { readonly vpid: number; readonly root: number } {
    return { vpid: this.vmcb.asid, root: NO_EPT };
  }

  /** Nested tables. */
  second(memory: PhysicalMemory): SecondDimension {
    return new Npt({ memory, ncr3: this.vmcb.nestedCr3, nx: true, features: HOST_PAGING });
  }

  /** A nested page fault. */
  hostFault(p: Processor, fault: HostFault): void {
    if (fault.kind !== "nested page fault") throw p.error(`${fault.kind} on a processor with nested paging`);
    const marked = this.vcpu.vm.mmioMarks.has(fault.physical) ? NPF_RESERVED : 0;
    p.leaveWith(SVM_EXIT_NPF, fault.errorCode + marked, fault.physical);
  }

  /** INVLPG does not exit with nested paging. */
  invlpg(_p: Processor, _linear: number): boolean {
    return false;
  }

  /** Nor does INVPCID, but where CPUID keeps it from the guest (svm_recalc_instruction_intercepts). */
  invpcid(p: Processor, type: number): boolean {
    if (this.vcpu.cpuid.invpcid) return false;
    return p.leaveWith(SVM_EXIT_INVPCID, p.regs[RDI + 1] * HIGH + p.regs[RDI], type);
  }

  /** CR8 is V_TPR. */
  readCr8(_p: Processor): number {
    return this.vmcb.intCtl & V_TPR_MASK;
  }

  /** MOV to CR8 writes V_TPR; with AVIC the page follows. */
  writeCr8(p: Processor, value: number): void {
    this.vmcb.intCtl = (this.vmcb.intCtl & ~V_TPR_MASK) | value;
    this.vcpu.straight = Straight.None; // The next exit must bring it to the page.
    if (this.vmcb.avic) this.avic.cr8Written(p, value);
  }
}
