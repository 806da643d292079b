/**
 * The fields of a VMCB's control area that this host uses (APM volume 2 appendix B).
 *
 * @module
 */

import { V_INTR_MASKING_MASK } from "../../abi/mod.ts";
import { NO_X2APIC_MSRS } from "./msr_permissions.ts";

/** A virtual machine control block. */
export class Vmcb {
  /** Virtual interrupt control (0x60): V_TPR, V_IRQ, V_INTR_PRIO, V_INTR_MASKING. AVIC's bits are below, by themselves. */
  intCtl: number = V_INTR_MASKING_MASK;
  /** Guest ASID (0x58). */
  asid = 0;
  /** TLB_CONTROL (0x5c): what VMRUN flushes first. */
  tlbControl = 0;
  /** N_CR3 (0xb0): where the nested tables begin. */
  nestedCr3 = 0;
  /** Virtual interrupt control bit 31: AVIC. */
  avic = false;
  /** Virtual interrupt control bit 30: AVIC in x2APIC mode. */
  x2avic = false;
  /** AVIC APIC_BAR (0x98): the guest-physical address of the APIC's page. Not used in x2APIC mode. */
  avicApicBar = 0;
  /** AVIC APIC_BACKING_PAGE (0xe0): where the APIC's registers are. */
  avicBackingPage = 0;
  /** AVIC LOGICAL_TABLE (0xf0). Not used in x2APIC mode. */
  avicLogicalTable = 0;
  /** AVIC PHYSICAL_TABLE (0xf8), bits 51:12. */
  avicPhysicalTable = 0;
  /** AVIC PHYSICAL_TABLE (0xf8), bits 11:0: AVIC_PHYSICAL_MAX_INDEX. */
  avicMaxIndex = 0;
  /** What VMRUN has to look at, as bits: {@linkcode WRITTEN_AVIC} and {@linkcode WRITTEN_TLB_CONTROL}. Mostly nothing. */
  written = 0;
  /** MSR permission map, of the x2APIC's MSRs: those that do not exit. The others' part is always the same. */
  x2apicPermissions: Uint8Array = NO_X2APIC_MSRS;
  /** Intercept of MOV to CR8: on until KVM first looks at an enabled APIC (init_vmcb). */
  interceptCr8Write = true;
  /** Intercept of a virtual interrupt. */
  interceptVintr = false;
  /** Intercept of IRET. */
  interceptIret = false;
  /** EXITINFO1 bits 63:32 of an incomplete IPI: a number would not hold all 64. */
  incompleteIcrHigh = 0;
  /** EVENTINJ: type, vector, valid bits. */
  eventInj = 0;
  /** EVENTINJ's error code. */
  eventInjError = 0;
  /** RFLAGS.TF: a #DB follows the next instruction. */
  singleStep = false;

  /** AVIC's fields were written since the last VMRUN. */
  get avicDirty(): boolean {
    return (this.written & WRITTEN_AVIC) !== 0;
  }
  set avicDirty(dirty: boolean) {
    this.written = dirty ? this.written | WRITTEN_AVIC : this.written & ~WRITTEN_AVIC;
  }
}

/** AVIC's fields were written since the last VMRUN: VMCB clean bit 11, the other way round. */
export const WRITTEN_AVIC = 1 << 0;
/** TLB_CONTROL was, which has no clean bit. */
export const WRITTEN_TLB_CONTROL = 1 << 1;

/** TLB_CONTROL: flush nothing. */
export const TLB_CONTROL_DO_NOTHING = 0;
/** TLB_CONTROL: flush all ASIDs. */
export const TLB_CONTROL_FLUSH_ALL_ASID = 1;
/** TLB_CONTROL: flush this ASID. */
export const TLB_CONTROL_FLUSH_ASID = 3;

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
