/**
 * KVM's handlers of SVM exits (arch/x86/kvm/svm/svm.c, svm_exit_handlers): one row an exit code.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { high, low } from "../../abi/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { setApicvInhibit } from "../kvm/apicv.ts";
import { emulateCpuid } from "../kvm/cpuid.ts";
import {
  emulateInvalidOpcode,
  emulateMemoryAccess,
  emulateMovFromCr,
  emulateMovToCr,
  emulatePio,
} from "../kvm/emulate.ts";
import { emulateHalt } from "../kvm/halt.ts";
import { emulateHypercall } from "../kvm/hypercall.ts";
import { emulateRdmsr } from "../kvm/msr.ts";
import { requeueVectored } from "../kvm/events.ts";
import * as requests from "../kvm/requests.ts";
import { faultedSlot, handlePageFault } from "../kvm/tdp/page_fault.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import * as tracing from "../trace/mod.ts";
import { handleIncompleteIpi, handleUnacceleratedAccess } from "./avic/exits.ts";
import type { Svm } from "./svm.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_DEFAULT_BASE,
  APIC_PAGE_SIZE,
  DB_VECTOR,
  SVM_EXIT_AVIC_INCOMPLETE_IPI,
  SVM_EXIT_AVIC_UNACCELERATED_ACCESS,
  SVM_EXIT_CPUID,
  SVM_EXIT_CR0_SEL_WRITE,
  SVM_EXIT_EXCP_BASE,
  SVM_EXIT_HLT,
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
  UD_VECTOR,
} = abi;
const { REQ_EVENT, REQ_TRIPLE_FAULT } = requests;
const { TP } = tracing;

/** Serves an exit by the slow path; {@linkcode Svm} itself serves WRMSR and physical interrupts. */
export function handleSvmExit(vcpu: Vcpu, svm: Svm): void {
  const { processor } = vcpu;
  switch (processor.exitReason) {
    case SVM_EXIT_MSR:
      return emulateRdmsr(vcpu);
    case SVM_EXIT_VMMCALL:
      return emulateHypercall(vcpu);
    case SVM_EXIT_HLT:
      return emulateHalt(vcpu);
    case SVM_EXIT_IOIO:
      return io(vcpu, processor.exitInfo1);
    case SVM_EXIT_NPF:
      return nestedPageFault(vcpu, svm);
    case SVM_EXIT_CPUID:
      return emulateCpuid(vcpu);
    case SVM_EXIT_VINTR:
      vcpu.request(REQ_EVENT);
      svm.clearVintr();
      setApicvInhibit(vcpu.vm, "IRQWIN", false);
      vcpu.stats.irq_window_exits++;
      return;
    case SVM_EXIT_AVIC_INCOMPLETE_IPI:
      return handleIncompleteIpi(vcpu, svm);
    case SVM_EXIT_AVIC_UNACCELERATED_ACCESS:
      return handleUnacceleratedAccess(vcpu, svm);
    case SVM_EXIT_IRET:
      return svm.iretIntercepted();
    case SVM_EXIT_WRITE_CR8:
      return emulateMovToCr(vcpu, 8);
    case SVM_EXIT_CR0_SEL_WRITE:
    case SVM_EXIT_WRITE_CR0:
      return emulateMovToCr(vcpu, 0);
    case SVM_EXIT_WRITE_CR0 + 4:
      return emulateMovToCr(vcpu, 4);
    case SVM_EXIT_READ_CR0:
      return emulateMovFromCr(vcpu, 0);
    case SVM_EXIT_READ_CR0 + 4:
      return emulateMovFromCr(vcpu, 4);
    case SVM_EXIT_INVD:
    case SVM_EXIT_WBINVD:
      return vcpu.backend.skipInstruction();
    case SVM_EXIT_INVPCID: // It exits only where the guest is to have none.
      return vcpu.queueException(UD_VECTOR, -1);
    case SVM_EXIT_EXCP_BASE + UD_VECTOR:
      return emulateInvalidOpcode(vcpu);
    case SVM_EXIT_EXCP_BASE + DB_VECTOR:
      return svm.singleStepped();
    case SVM_EXIT_SHUTDOWN:
      return vcpu.request(REQ_TRIPLE_FAULT);
    default:
      throw new NotModelled(
        `VM exit ${vcpu.backend.exitName(processor.exitReason)}`,
        "APM volume 2 appendix C",
      );
  }
}

/** EXITINFO1: IN in bit 0, one of the size bits 4 to 6, port in bits 31:16. */
function io(vcpu: Vcpu, info: number): void {
  emulatePio(vcpu, info >>> 16, (info >>> 4) & 7, (info & 1) === 0);
}

function nestedPageFault(vcpu: Vcpu, svm: Svm): void {
  const { exitInfo1, exitInfo2 } = vcpu.processor;
  if (vcpu.processor.vectored !== 0) requeueVectored(vcpu);
  vcpu.trace(TP.kvm_page_fault, low(exitInfo2), high(exitInfo2), low(exitInfo1), high(exitInfo1));
  const slot = faultedSlot(vcpu, exitInfo2, exitInfo1);
  if (slot !== undefined) return handlePageFault(vcpu, slot, exitInfo2, exitInfo1);
  vcpu.charge(vcpu.cost.mmu);
  if (!isAccessPage(svm, exitInfo2)) vcpu.vm.mmioMarks.add(exitInfo2);
  emulateMemoryAccess(vcpu);
}

/**
 * AVIC has KVM keep a page behind the APIC's, unless it had to be deleted: while it is not mapped there, KVM does not mark
 * it as MMIO either.
 */
function isAccessPage({ avic, hardware }: Svm, address: number): boolean {
  return avic !== undefined && !hardware.avic.pageDeleted && address >= APIC_DEFAULT_BASE &&
    address < APIC_DEFAULT_BASE + APIC_PAGE_SIZE;
}
