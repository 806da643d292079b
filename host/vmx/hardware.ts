/**
 * VMX non-root operation: which instruction and event exits, with which reason and qualification (SDM 3C chapters 26
 * and 28). What the processor does for the guest's APIC without an exit is in virtual_apic.ts and
 * virtual_interrupts.ts.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { tableRoot } from "../../abi/mod.ts";
import * as cpu from "../cpu/mod.ts";
import type { Processor, Virtualization } from "../cpu/mod.ts";
import { NotModelled } from "../cpu/mod.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { Ept, type HostFault, type PhysicalMemory, type SecondDimension } from "../mmu/mod.ts";
import { checkControls } from "./entry_failed.ts";
import { accessPageMapped, accessPageMemory } from "../kvm/access_page.ts";
import { IpiTarget } from "./ipi_target.ts";
import type { MsrBitmap } from "./msr_bitmap.ts";
import { PiDescriptor } from "./posted_descriptor.ts";
import { deliverPosted, processAtOnce, processPostedInterrupts } from "./posted_interrupts.ts";
import { VirtualApic } from "./virtual_apic.ts";
import { VirtualInterrupts } from "./virtual_interrupts.ts";
import type { Vmcs } from "./vmcs.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_DEFAULT_BASE,
  APIC_PAGE_SIZE,
  APIC_TASKPRI,
  CPU_BASED_INTR_WINDOW_EXITING,
  CPU_BASED_INVLPG_EXITING,
  CPU_BASED_NMI_WINDOW_EXITING,
  CPU_BASED_TPR_SHADOW,
  CR0_WP,
  DB_VECTOR,
  EPT_VIOLATION_LINEAR,
  EPT_VIOLATION_READ,
  EPT_VIOLATION_TRANSLATED,
  EPT_VIOLATION_WRITE,
  EXIT_REASON_CPUID,
  EXIT_REASON_CR_ACCESS,
  EXIT_REASON_EPT_MISCONFIG,
  EXIT_REASON_EPT_VIOLATION,
  EXIT_REASON_EXCEPTION_NMI,
  EXIT_REASON_EXTERNAL_INTERRUPT,
  EXIT_REASON_HLT,
  EXIT_REASON_INTERRUPT_WINDOW,
  EXIT_REASON_INVD,
  EXIT_REASON_INVLPG,
  EXIT_REASON_INVPCID,
  EXIT_REASON_IO_INSTRUCTION,
  EXIT_REASON_MSR_READ,
  EXIT_REASON_MSR_WRITE,
  EXIT_REASON_NMI_WINDOW,
  EXIT_REASON_PREEMPTION_TIMER,
  EXIT_REASON_TPR_BELOW_THRESHOLD,
  EXIT_REASON_TRIPLE_FAULT,
  EXIT_REASON_VMCALL,
  EXIT_REASON_WBINVD,
  FLAG_IF,
  INTR_INFO_VALID,
  INTR_TYPE_EXT_INTR,
  INTR_TYPE_HARD_EXCEPTION,
  INTR_TYPE_NMI,
  NMI_VECTOR,
  PIN_BASED_POSTED_INTR,
  RAX,
  RFLAGS,
  SECONDARY_EXEC_ENABLE_EPT,
  SECONDARY_EXEC_ENABLE_INVPCID,
  SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
  SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES,
  SYS_CR0,
  SYS_CR4,
  UD_VECTOR,
  X2APIC_EOI,
  X2APIC_ICR,
  X2APIC_MSR_BASE,
} = abi;
const { deliverInjectedException, deliverInterrupt, raise } = cpu;

/** Exceptions that KVM intercepts with EPT: #DB, #UD, #AC, #MC (vmx_update_exception_bitmap). */
export const EXCEPTION_BITMAP: number = (1 << DB_VECTOR) | (1 << UD_VECTOR) | (1 << 17) | (1 << 18);
/** Interruption information bits 10:8: the type (SDM 3C table 25-17). */
const INTR_TYPE_MASK = 7 << 8;
/** CR0 bits that the guest owns with EPT: TS, WP (KVM_POSSIBLE_CR0_GUEST_BITS). */
const CR0_GUEST_OWNED = (1 << 3) | CR0_WP;
/** CR4 bits that the guest owns with EPT: PVI, TSD, DE, PGE, PCE, OSFXSR, OSXMMEXCPT (KVM_POSSIBLE_CR4_GUEST_BITS). */
const CR4_GUEST_OWNED = 0x78e;
/** Of an MSR's number, what all 256 x2APIC MSRs have in common. */
const X2APIC_MSR_MASK = ~0xff;
/** EPT-violation qualification of a data access (SDM 3C table 28-7): of a linear address, translated. */
const EPT_LINEAR = EPT_VIOLATION_LINEAR | EPT_VIOLATION_TRANSLATED;

/** The virtualization hardware of one VMX processor. */
export class VmxHardware implements Virtualization {
  /** The vCPU that it runs. */
  declare readonly vcpu: Vcpu;
  /** What controls it. */
  declare readonly vmcs: Vmcs;
  /** Its MSR bitmap. */
  declare readonly msrBitmap: MsrBitmap;
  /** Virtual interrupts. */
  declare readonly virtualInterrupts: VirtualInterrupts;
  /** The virtualized APIC. */
  declare readonly virtualApic: VirtualApic;
  /** Where its IPIs went last. */
  readonly ipiTarget: IpiTarget = new IpiTarget();
  #descriptor: PiDescriptor | undefined = undefined;
  #pidTable: Uint32Array | undefined = undefined;

  /** The hardware that `vmcs` controls. */
  constructor(vcpu: Vcpu, vmcs: Vmcs) {
    this.vcpu = vcpu;
    this.vmcs = vmcs;
    this.msrBitmap = vmcs.msrBitmap;
    this.virtualInterrupts = new VirtualInterrupts(vcpu, vmcs);
    this.virtualApic = new VirtualApic(vcpu, vmcs, this.virtualInterrupts);
  }

  /** VM entry: checks and delivers what software has written, mostly nothing; then the virtual APIC has its say. */
  enter(p: Processor): void {
    const { vmcs } = this;
    const info = vmcs.entryIntrInfo;
    if ((info | vmcs.unchecked) !== 0) this.#checkAndInject(p, info);
    if ((vmcs.secondary & SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY) !== 0) this.virtualInterrupts.entered();
    else if (vmcs.tprThreshold !== 0) this.#compareTpr(p);
  }

  /**
   * The task priority may have fallen below the threshold since the threshold was written. Where accesses are virtualized
   * that exits at once, behind the injected event (SDM 3C 27.7.7); elsewhere it is no legal entry.
   */
  #compareTpr(p: Processor): void {
    const { vmcs } = this;
    if ((vmcs.primary & CPU_BASED_TPR_SHADOW) === 0 || !p.guestMode) return;
    if (this.readCr8(p) >= (vmcs.tprThreshold & 0xf)) return;
    if ((vmcs.secondary & SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) === 0) checkControls(this.vcpu, vmcs);
    else p.leave(EXIT_REASON_TPR_BELOW_THRESHOLD);
  }

  /**
   * Checks controls that were written since the last entry, and delivers the event in the entry's interruption
   * information, whose valid bit the exit will find clear.
   */
  #checkAndInject(p: Processor, info: number): void {
    const { vmcs } = this;
    if (vmcs.unchecked !== 0) this.#checkControls();
    if ((info & INTR_INFO_VALID) === 0) return;
    vmcs.entryIntrInfo = 0;
    const vector = info & 0xff;
    if ((info & INTR_TYPE_MASK) === INTR_TYPE_EXT_INTR) deliverInterrupt(p, vector, false);
    else if ((info & INTR_TYPE_MASK) === INTR_TYPE_NMI) deliverInterrupt(p, NMI_VECTOR, true);
    else deliverInjectedException(p, vector, vmcs.entryErrorCode);
  }

  /** Checks the controls; what they say, and point to, is looked for again. */
  #checkControls(): void {
    checkControls(this.vcpu, this.vmcs);
    this.virtualApic.controlsChanged();
    this.#descriptor = undefined;
    this.#pidTable = undefined;
  }

  /** The posted-interrupt descriptor. */
  descriptor(): PiDescriptor {
    return this.#descriptor ??= new PiDescriptor(this.#at(this.vmcs.postedIntrDesc));
  }

  /** The PID-pointer table. */
  pidTable(): Uint32Array {
    return this.#pidTable ??= this.#at(this.vmcs.pidPointerTable);
  }

  #at(address: number): Uint32Array {
    return this.vcpu.machine.hostMemory.at(address);
  }

  /** The preemption timer has priority over windows and virtual interrupts, and these over external ones (SDM 3C 26.2). */
  asynchronous(p: Processor): boolean {
    if (this.vcpu.preemptionTimerExpired) return p.leave(EXIT_REASON_PREEMPTION_TIMER);
    if (p.windowRequested && this.window(p)) return true;
    if (!this.#notified(p)) return p.leave(EXIT_REASON_EXTERNAL_INTERRUPT);
    if (p.engine.explores) return p.perform(processPostedInterrupts(p, this));
    if (!deliverPosted(p, this)) processAtOnce(p, this);
    return true;
  }

  /** Whether all that has arrived is the notification vector, which the processor takes by itself; it acknowledges that. */
  #notified(p: Processor): boolean {
    if ((this.vmcs.pin & PIN_BASED_POSTED_INTR) === 0) return false;
    const pcpu = this.vcpu.pcpu!;
    if (pcpu.interruptAt <= p.thread.time) return false;
    pcpu.notified();
    p.stopWaiting();
    return true;
  }

  /** NMI-window exits have priority over interrupt-window exits, and over the virtual interrupts that come in their place. */
  window(p: Processor): boolean {
    if (p.shadow) return false;
    const { primary } = this.vmcs;
    if ((primary & CPU_BASED_NMI_WINDOW_EXITING) !== 0 && !p.nmiBlocked) {
      return p.leave(EXIT_REASON_NMI_WINDOW);
    }
    if ((p.regs[RFLAGS] & FLAG_IF) === 0) return false;
    if ((primary & CPU_BASED_INTR_WINDOW_EXITING) !== 0) return p.leave(EXIT_REASON_INTERRUPT_WINDOW);
    const { virtualInterrupts } = this;
    return virtualInterrupts.recognized && virtualInterrupts.deliver(p);
  }

  /** Exceptions in the bitmap exit, with RIP at the instruction. */
  exception(p: Processor, vector: number, _errorCode: number): boolean {
    if (((EXCEPTION_BITMAP >>> vector) & 1) === 0) return false;
    this.vmcs.exitIntrInfo = INTR_INFO_VALID | INTR_TYPE_HARD_EXCEPTION | vector;
    return p.leave(EXIT_REASON_EXCEPTION_NMI);
  }

  /** A triple fault exits. */
  tripleFault(p: Processor): void {
    p.leave(EXIT_REASON_TRIPLE_FAULT);
  }

  /** CPUID always exits. */
  cpuid(p: Processor): boolean {
    return p.leave(EXIT_REASON_CPUID);
  }

  /** HLT exits. */
  hlt(p: Processor): boolean {
    return p.leave(EXIT_REASON_HLT);
  }

  /** PAUSE does not exit: PAUSE-loop exiting is off (ple_gap=0). */
  pause(_p: Processor): boolean {
    return false;
  }

  /** MSR accesses exit as the bitmap says; those of the x2APIC may be virtualized when they do not exit. */
  writeMsr(p: Processor, msr: number): boolean {
    const { virtualApic } = this;
    if (msr === X2APIC_EOI && virtualApic.eoiPasses) return virtualApic.writeEoi(p);
    if (msr === X2APIC_ICR && virtualApic.icrPasses) return virtualApic.writeIcr(p);
    if (this.msrBitmap.exits(msr, true)) return p.leave(EXIT_REASON_MSR_WRITE);
    return (msr & X2APIC_MSR_MASK) === X2APIC_MSR_BASE && virtualApic.writeMsr(p, msr);
  }

  /** As for writes. */
  readMsr(p: Processor, msr: number): boolean {
    if (this.msrBitmap.exits(msr, false)) return p.leave(EXIT_REASON_MSR_READ);
    return (msr & X2APIC_MSR_MASK) === X2APIC_MSR_BASE && this.virtualApic.readMsr(p, msr);
  }

  /** VMCALL exits at any privilege level; VMMCALL is an invalid opcode here. */
  hypercall(p: Processor, vmmcall: boolean): boolean {
    if (!vmmcall) return p.leave(EXIT_REASON_VMCALL);
    raise(p, UD_VECTOR, 0);
    return true;
  }

  /** I/O exits unconditionally. Qualification: size - 1, direction in bit 3, port in bits 31:16. */
  io(p: Processor, port: number, bytes: number, write: boolean): boolean {
    return p.leaveWith(EXIT_REASON_IO_INSTRUCTION, port * 0x1_0000 + (write ? 0 : 8) + bytes - 1, 0);
  }

  /** MOV to CR0 and CR4 exits when it changes a bit that the host owns; CR3 does not, nor CR8 with a TPR shadow. */
  movToCr(p: Processor, cr: number): boolean {
    const value = p.regs[RAX];
    if (cr === 0 && ((value ^ p.sys[SYS_CR0]) & ~CR0_GUEST_OWNED) === 0) return false;
    if (cr === 4 && ((value ^ p.sys[SYS_CR4]) & ~CR4_GUEST_OWNED) === 0) return false;
    if (cr === 3) return false;
    if (cr === 8 && (this.vmcs.primary & CPU_BASED_TPR_SHADOW) !== 0) return false;
    return p.leaveWith(EXIT_REASON_CR_ACCESS, cr, 0); // Access type 0 (MOV to CR), register 0 (RAX).
  }

  /** MOV from CR0 and CR4 reads their shadows; CR3 and CR8 do not exit either. */
  movFromCr(_p: Processor, _cr: number): boolean {
    return false;
  }

  /** INVD always exits, WBINVD because KVM asks for it. */
  invalidate(p: Processor, writeBack: boolean): boolean {
    return p.leave(writeBack ? EXIT_REASON_WBINVD : EXIT_REASON_INVD);
  }

  /**
   * Accesses outside memory. The APIC-access page, where EPT maps it, is the virtualized APIC, or a page of memory as
   * any other. Elsewhere they are EPT violations, and misconfigurations once KVM has marked the page as MMIO.
   */
  unbacked(p: Processor, address: number, bytes: number, write: boolean): boolean {
    const offset = address - APIC_DEFAULT_BASE;
    if (offset >= 0 && offset < APIC_PAGE_SIZE && accessPageMapped(this.vcpu.vm)) {
      if ((this.vmcs.secondary & SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) !== 0) {
        return this.virtualApic.access(p, offset, bytes, write);
      }
      if (offset + bytes <= APIC_PAGE_SIZE) return accessPageMemory(this.vcpu.vm, p, offset);
    }
    if (this.vcpu.vm.mmioMarks.has(address)) return p.leaveWith(EXIT_REASON_EPT_MISCONFIG, 0, address);
    return p.leaveWith(
      EXIT_REASON_EPT_VIOLATION,
      EPT_LINEAR | (write ? EPT_VIOLATION_WRITE : EPT_VIOLATION_READ),
      address,
    );
  }

  // Translation.

  /** The VPID, and the address in the EPT pointer. */
  tlbTags(): { readonly vpid: number; readonly root: number } {
    return { vpid: this.vmcs.vpid, root: tableRoot(this.vmcs.eptPointer) };
  }

  /** EPT. */
  second(memory: PhysicalMemory): SecondDimension {
    if ((this.vmcs.secondary & SECONDARY_EXEC_ENABLE_EPT) === 0) {
      throw new NotModelled("translation without EPT: shadow page tables", "arch/x86/kvm/mmu/paging_tmpl.h");
    }
    return new Ept({
      memory,
      eptp: this.vmcs.eptPointer,
      features: this.vcpu.vm.vmxSetup!.capabilities.eptFeatures,
    });
  }

  /** EPT violations, with their qualification, and misconfigurations. */
  hostFault(p: Processor, fault: HostFault): void {
    const marked = this.vcpu.vm.mmioMarks.has(fault.physical);
    if (fault.kind !== "ept violation" || marked) p.leaveWith(EXIT_REASON_EPT_MISCONFIG, 0, fault.physical);
    else p.leaveWith(EXIT_REASON_EPT_VIOLATION, fault.qualification, fault.physical);
  }

  /** INVLPG is the guest's own with EPT. */
  invlpg(p: Processor, linear: number): boolean {
    if ((this.vmcs.primary & CPU_BASED_INVLPG_EXITING) === 0) return false;
    return p.leaveWith(EXIT_REASON_INVLPG, linear, 0);
  }

  /** INVPCID is an invalid opcode until it is enabled, and exits as INVLPG does. */
  invpcid(p: Processor, _type: number): boolean {
    if ((this.vmcs.secondary & SECONDARY_EXEC_ENABLE_INVPCID) === 0) {
      raise(p, UD_VECTOR, 0);
      return true;
    }
    return (this.vmcs.primary & CPU_BASED_INVLPG_EXITING) !== 0 && p.leave(EXIT_REASON_INVPCID);
  }

  /** CR8 is the shadow's class. */
  readCr8(_p: Processor): number {
    return (this.vcpu.lapic.get(APIC_TASKPRI) & 0xf0) >>> 4;
  }

  /** MOV to CR8 writes the shadow. */
  writeCr8(p: Processor, value: number): void {
    this.virtualApic.setTpr(p, value << 4);
  }
}
