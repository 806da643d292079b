/**
 * Interruptions on their way to s390 guests: a CPU's own, and floating ones that any CPU may take (arch/s390/kvm/interrupt.c).
 *
 * @module
 */

import {
  CR0_SERVICE_SIGNAL_SUBMASK,
  EXT_IRQ_CP_SERVICE,
  isValidPsw,
  KVM_S390_INTERRUPTS,
  LOWCORE,
  MachineFault,
  PFAULT_DONE_SUBCODE,
  PFAULT_INIT_SUBCODE,
  programInterruptionName,
  type Psw,
  PSW_MASK_EXT,
  PSW_MASK_WAIT,
  S390_SYS_CR0,
} from "../../abi/mod.ts";
import { S390_TP } from "./tracepoints.ts";
import type { S390Vcpu } from "./vcpu.ts";

const { KVM_S390_PROGRAM_INT, KVM_S390_INT_PFAULT_INIT, KVM_S390_INT_PFAULT_DONE } = KVM_S390_INTERRUPTS;

/** A program interruption. */
export interface ProgramInterruption {
  /** Its code. */
  readonly code: number;
  /** The instruction's length, in bytes; 0: no instruction's. */
  readonly length: number;
}

/** A CPU's own interruptions. */
export class LocalInterrupts {
  /** The program interruption that waits. */
  program: ProgramInterruption | undefined = undefined;
  /** The token of a pfault initial that waits. */
  pfaultInit: bigint | undefined = undefined;
}

/** Whether external interruptions of CP services are taken. */
function takesServices(vcpu: S390Vcpu): boolean {
  return (vcpu.pswMask & PSW_MASK_EXT) !== 0n &&
    (vcpu.context.system(S390_SYS_CR0) & CR0_SERVICE_SIGNAL_SUBMASK) !== 0n;
}

/** Whether an interruption waits that this CPU can take now (kvm_s390_vcpu_has_irq). */
export function deliverable(vcpu: S390Vcpu): boolean {
  const { interrupts, vm } = vcpu;
  if (interrupts.program !== undefined) return true;
  return (interrupts.pfaultInit !== undefined || vm.floating.length > 0) && takesServices(vcpu);
}

/** Gives a CPU all that it can take, the most important first (kvm_s390_deliver_pending_interrupts). */
export function deliverPending(vcpu: S390Vcpu): void {
  const { interrupts, vm } = vcpu;
  while (!vm.dead && deliverable(vcpu)) {
    if (interrupts.program !== undefined) {
      const { program } = interrupts;
      interrupts.program = undefined;
      vcpu.traceInterruption(S390_TP.kvm_s390_deliver_interrupt, KVM_S390_PROGRAM_INT, program.code);
      interruptProgram(vcpu, program);
    } else if (interrupts.pfaultInit !== undefined) {
      const token = interrupts.pfaultInit;
      interrupts.pfaultInit = undefined;
      deliverService(vcpu, KVM_S390_INT_PFAULT_INIT, token);
    } else {
      deliverService(vcpu, KVM_S390_INT_PFAULT_DONE, vm.floating.shift()!);
    }
  }
}

/** Hardware, or KVM in its place, interrupts the program: code and length to the lowcore, and on at the new PSW. */
export function interruptProgram(vcpu: S390Vcpu, { code, length }: ProgramInterruption): void {
  const { fields } = LOWCORE;
  vcpu.storage.write(fields.pgm_ilc.offset, 2, BigInt(length));
  vcpu.storage.write(fields.pgm_code.offset, 2, BigInt(code));
  const { layout, pending } = vcpu.context;
  const fault = new MachineFault(programInterruptionName(code), code, layout.instructionText(pending));
  swapPsw(vcpu, fields.program_old_psw.offset, fields.program_new_psw.offset, fault);
}

/** A pfault interruption: external, with the token beside it. */
function deliverService(vcpu: S390Vcpu, type: number, token: bigint): void {
  const { fields } = LOWCORE;
  vcpu.traceInterruption(S390_TP.kvm_s390_deliver_interrupt, type, 0, token);
  const subcode = type === KVM_S390_INT_PFAULT_INIT ? PFAULT_INIT_SUBCODE : PFAULT_DONE_SUBCODE;
  vcpu.storage.write(fields.ext_int_code.offset, 2, BigInt(EXT_IRQ_CP_SERVICE));
  vcpu.storage.write(fields.ext_cpu_addr.offset, 2, BigInt(subcode));
  vcpu.storage.write(fields.ext_params2.offset, 8, token);
  swapPsw(vcpu, fields.external_old_psw.offset, fields.external_new_psw.offset);
}

/** The present PSW goes to the lowcore, and the new one comes from there. */
export function swapPsw(vcpu: S390Vcpu, oldAt: number, newAt: number, fault?: MachineFault): void {
  const { storage } = vcpu;
  storage.write(oldAt, 8, vcpu.pswMask);
  storage.write(oldAt + 8, 8, BigInt(vcpu.context.pc));
  const psw: Psw = { mask: storage.read(newAt, 8), address: storage.read(newAt + 8, 8) };
  // All zeros would be valid, in 24-bit mode, and are what nobody has set.
  if (!isValidPsw(psw) || psw.mask === 0n) {
    vcpu.vm.panic(`interruption loop: the new PSW at 0x${newAt.toString(16)} cannot be loaded`);
    return;
  }
  vcpu.setPsw(psw);
  if ((psw.mask & PSW_MASK_WAIT) === 0n) vcpu.enterHandler(fault);
}
