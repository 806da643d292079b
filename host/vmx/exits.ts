/**
 * KVM's handlers of VMX exits (arch/x86/kvm/vmx/vmx.c, kvm_vmx_exit_handlers): one row an exit reason.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { high, low } from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { emulateCpuid } from "../kvm/cpuid.ts";
import { emulateInvalidOpcode, emulateMemoryAccess, emulateMovToCr, emulatePio } from "../kvm/emulate.ts";
import { emulateHalt } from "../kvm/halt.ts";
import { emulateHypercall } from "../kvm/hypercall.ts";
import { emulateRdmsr } from "../kvm/msr.ts";
import { requeueVectored } from "../kvm/events.ts";
import * as requests from "../kvm/requests.ts";
import { faultedSlot, handlePageFault, violationErrorCode } from "../kvm/tdp/page_fault.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { emulatedWrite, writeNodecode } from "../lapic/mod.ts";
import * as tracing from "../trace/mod.ts";
import type { Vmcs } from "./vmcs.ts";
import type { Vmx } from "./vmx.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_ACCESS_LINEAR_WRITE,
  APIC_DEFAULT_BASE,
  APIC_EOI,
  APIC_PAGE_SIZE,
  CPU_BASED_INTR_WINDOW_EXITING,
  CPU_BASED_NMI_WINDOW_EXITING,
  EXIT_REASON_APIC_ACCESS,
  EXIT_REASON_APIC_WRITE,
  EXIT_REASON_CPUID,
  EXIT_REASON_CR_ACCESS,
  EXIT_REASON_EOI_INDUCED,
  EXIT_REASON_EPT_MISCONFIG,
  EXIT_REASON_EPT_VIOLATION,
  EXIT_REASON_EXCEPTION_NMI,
  EXIT_REASON_HLT,
  EXIT_REASON_INTERRUPT_WINDOW,
  EXIT_REASON_INVD,
  EXIT_REASON_IO_INSTRUCTION,
  EXIT_REASON_MSR_READ,
  EXIT_REASON_NMI_WINDOW,
  EXIT_REASON_PREEMPTION_TIMER,
  EXIT_REASON_TPR_BELOW_THRESHOLD,
  EXIT_REASON_TRIPLE_FAULT,
  EXIT_REASON_VMCALL,
  EXIT_REASON_WBINVD,
  UD_VECTOR,
} = abi;
const { REQ_EVENT, REQ_TRIPLE_FAULT } = requests;
const { TP } = tracing;

/** Serves an exit by the slow path; {@linkcode Vmx} itself serves WRMSR and external interrupts. */
export function handleVmxExit(vcpu: Vcpu, vmx: Vmx): void {
  const { processor } = vcpu;
  switch (processor.exitReason) {
    case EXIT_REASON_VMCALL:
      return emulateHypercall(vcpu);
    case EXIT_REASON_HLT:
      return emulateHalt(vcpu);
    case EXIT_REASON_IO_INSTRUCTION:
      return ioInstruction(vcpu, processor.exitInfo1);
    case EXIT_REASON_MSR_READ:
      return emulateRdmsr(vcpu);
    case EXIT_REASON_CPUID:
      return emulateCpuid(vcpu);
    case EXIT_REASON_APIC_WRITE:
      return writeNodecode(vcpu.lapic, processor.exitInfo1 & 0xff0);
    case EXIT_REASON_EOI_INDUCED:
      return vcpu.lapic.eoiAccelerated(processor.exitInfo1 & 0xff);
    case EXIT_REASON_APIC_ACCESS:
      return apicAccess(vcpu, processor.exitInfo1);
    case EXIT_REASON_EPT_VIOLATION:
      return eptViolation(vcpu, processor.exitInfo1, processor.exitInfo2);
    case EXIT_REASON_EPT_MISCONFIG:
      vcpu.charge(vcpu.cost.mmu);
      return emulateMemoryAccess(vcpu);
    case EXIT_REASON_INTERRUPT_WINDOW:
      vmx.setWindows(CPU_BASED_INTR_WINDOW_EXITING, false);
      vcpu.stats.irq_window_exits++;
      vcpu.request(REQ_EVENT);
      return;
    case EXIT_REASON_NMI_WINDOW:
      vmx.setWindows(CPU_BASED_NMI_WINDOW_EXITING, false);
      vcpu.stats.nmi_window_exits++;
      vcpu.request(REQ_EVENT);
      return;
    case EXIT_REASON_CR_ACCESS:
      return emulateMovToCr(vcpu, processor.exitInfo1 & 0xf);
    case EXIT_REASON_TPR_BELOW_THRESHOLD:
      vcpu.lapic.updatePpr();
      // Also where what is requested is still held back, by what is in service: the threshold is.
      if (!vcpu.vm.quirk("tpr-threshold-stale")) vcpu.request(REQ_EVENT);
      return;
    case EXIT_REASON_PREEMPTION_TIMER:
      return vcpu.lapic.timer.hvExpired();
    case EXIT_REASON_INVD:
    case EXIT_REASON_WBINVD:
      return vcpu.backend.skipInstruction();
    case EXIT_REASON_EXCEPTION_NMI:
      return exception(vcpu, vmx.vmcs);
    case EXIT_REASON_TRIPLE_FAULT:
      return vcpu.request(REQ_TRIPLE_FAULT);
    default:
      throw new NotModelled(`VM exit ${vcpu.backend.exitName(processor.exitReason)}`, "SDM 3D appendix C");
  }
}

/** handle_ept_violation. */
function eptViolation(vcpu: Vcpu, qualification: number, address: number): void {
  if (vcpu.processor.vectored !== 0) requeueVectored(vcpu);
  vcpu.trace(TP.kvm_page_fault, low(address), high(address), qualification, 0);
  const errorCode = violationErrorCode(qualification);
  const slot = faultedSlot(vcpu, address, errorCode);
  if (slot !== undefined) return handlePageFault(vcpu, slot, address, errorCode);
  vcpu.charge(vcpu.cost.mmu);
  if (!onApicAccessPage(address)) vcpu.vm.mmioMarks.add(address);
  emulateMemoryAccess(vcpu);
}

/** The APIC-access page has a memory slot, mapped or not: KVM never marks it as MMIO (__kvm_mmu_faultin_pfn). */
function onApicAccessPage(address: number): boolean {
  return address >= APIC_DEFAULT_BASE && address < APIC_DEFAULT_BASE + APIC_PAGE_SIZE;
}

function ioInstruction(vcpu: Vcpu, qualification: number): void {
  emulatePio(vcpu, qualification >>> 16, (qualification & 7) + 1, (qualification & 8) === 0);
}

/** Writes of the EOI register are served without decoding the instruction (the fasteoi parameter). */
function apicAccess(vcpu: Vcpu, qualification: number): void {
  if (qualification === (APIC_ACCESS_LINEAR_WRITE | APIC_EOI)) {
    emulatedWrite(vcpu.lapic, APIC_EOI, 0);
    vcpu.backend.skipInstruction();
  } else {
    emulateMemoryAccess(vcpu);
  }
}

function exception(vcpu: Vcpu, vmcs: Vmcs): void {
  const vector = vmcs.exitIntrInfo & 0xff;
  if (vector === UD_VECTOR) emulateInvalidOpcode(vcpu);
  else vcpu.queueException(vector, -1);
}
