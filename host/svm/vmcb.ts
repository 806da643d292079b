/**
 * The fields of a VMCB's control area that this host uses (APM volume 2 appendix B).
 *
 * @module
 */

import { V_INTR_MASKING_MASK } from "../../abi/mod.ts";

/** A virtual machine control block. */
export class Vmcb {
  /** Virtual interrupt control: V_TPR, V_IRQ, V_INTR_PRIO, V_INTR_MASKING. */
  intCtl: number = V_INTR_MASKING_MASK;
  /** Intercept of MOV to CR8: on until KVM first looks at an enabled APIC (init_vmcb). */
  interceptCr8Write = true;
  /** Intercept of a virtual interrupt. */
  interceptVintr = false;
  /** Intercept of IRET. */
  interceptIret = false;
  /** EVENTINJ: type, vector, valid bits. */
  eventInj = 0;
  /** EVENTINJ's error code. */
  eventInjError = 0;
  /** RFLAGS.TF: a #DB follows the next instruction. */
  singleStep = false;
}

/** EVENTINJ bit 31: valid. */
export const EVTINJ_VALID = 0x8000_0000;
/** EVENTINJ bit 11: an error code is delivered. */
export const EVTINJ_VALID_ERR = 1 << 11;
/** EVENTINJ type, bits 10:8: external interrupt. */
export const EVTINJ_TYPE_INTR = 0 << 8;
/** EVENTINJ type: NMI. */
export const EVTINJ_TYPE_NMI = 2 << 8;
/** EVENTINJ type: exception. */
export const EVTINJ_TYPE_EXEPT = 3 << 8;
/** EVENTINJ bits 10:8. */
export const EVTINJ_TYPE_MASK = 7 << 8;
