/**
 * KVM's handlers of AVIC's two exits (avic_incomplete_ipi_interception, avic_unaccelerated_access_interception).
 *
 * @module
 */

import * as abi from "../../../abi/mod.ts";
import { hex } from "../../../abi/mod.ts";
import { NotModelled } from "../../cpu/errors.ts";
import { emulateInstruction } from "../../kvm/emulate_instruction.ts";
import type { Vcpu } from "../../kvm/vcpu.ts";
import * as lapics from "../../lapic/mod.ts";
import * as tracing from "../../trace/mod.ts";
import type { Svm } from "../svm.ts";
import { kickTargets } from "./kick.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  APIC_DFR,
  APIC_EOI,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR_BUSY,
  APIC_ID,
  APIC_LDR,
  APIC_LVT0,
  APIC_LVT1,
  APIC_LVTERR,
  APIC_LVTPC,
  APIC_LVTT,
  APIC_LVTTHMR,
  APIC_RRD,
  APIC_SPIV,
  APIC_TDCR,
  APIC_TMICT,
  AVIC_IPI_INDEX_MASK,
  AVIC_IPI_INVALID_INT_TYPE,
  AVIC_IPI_INVALID_TARGET,
  AVIC_IPI_TARGET_NOT_RUNNING,
  AVIC_UNACCELERATED_OFFSET,
  high,
  low,
} = abi;
const { writeNodecode, sendIpi } = lapics;
const { TP } = tracing;

/** An IPI is incomplete: the ICR holds it, and RIP is behind the instruction. */
export function handleIncompleteIpi(vcpu: Vcpu, { vmcb }: Svm): void {
  const { vm, processor, lapic } = vcpu;
  const icrLow = processor.exitInfo1;
  const icrHigh = vmcb.incompleteIcrHigh;
  const id = high(processor.exitInfo2);
  const index = low(processor.exitInfo2) & AVIC_IPI_INDEX_MASK;
  vcpu.charge(vcpu.cost.avicIpi);
  vcpu.trace(TP.kvm_avic_incomplete_ipi, vcpu.vcpuId, icrHigh, icrLow, id, index);
  switch (id) {
    case AVIC_IPI_INVALID_TARGET:
      if (!vm.behaviour.avicInvalidTargets) return;
      break;
    case AVIC_IPI_INVALID_INT_TYPE:
      break;
    case AVIC_IPI_TARGET_NOT_RUNNING:
      // The vector is requested everywhere already: nobody may request it again, a second one would be delivered.
      vm.perform(kickTargets({ source: vcpu, low: icrLow, high: icrHigh, index }));
      return;
    default:
      return; // A page that is not there KVM warns of, once; vectors below 16 it drops.
  }
  // A busy bit that stayed set is cleared by writing the register again.
  if ((icrLow & APIC_ICR_BUSY) !== 0) writeNodecode(lapic, APIC_ICR);
  else sendIpi(lapic, icrLow, lapic.x2apicMode ? icrHigh : icrHigh >>> 24);
}

/** Registers whose writes KVM takes for traps: the value is in the page. */
const TRAPS: ReadonlySet<number> = new Set<number>([
  APIC_ID,
  APIC_EOI,
  APIC_RRD,
  APIC_LDR,
  APIC_DFR,
  APIC_SPIV,
  APIC_ESR,
  APIC_ICR,
  APIC_LVTT,
  APIC_LVTTHMR,
  APIC_LVTPC,
  APIC_LVT0,
  APIC_LVT1,
  APIC_LVTERR,
  APIC_TMICT,
  APIC_TDCR,
]);

/** An access was not accelerated: behind the instruction KVM does what the register does, before it the instruction. */
export function handleUnacceleratedAccess(vcpu: Vcpu, { avic }: Svm): void {
  const { processor, lapic } = vcpu;
  const offset = low(processor.exitInfo1) & AVIC_UNACCELERATED_OFFSET;
  const write = (high(processor.exitInfo1) & 1) !== 0;
  const trap = TRAPS.has(offset);
  const vector = low(processor.exitInfo2);
  vcpu.trace(
    TP.kvm_avic_unaccelerated_access,
    vcpu.vcpuId,
    offset,
    trap ? 1 : 0,
    write ? 1 : 0,
    vector,
  );
  if (!trap) return emulateInstruction(vcpu);
  // KVM goes by the register alone: it would never get behind an instruction that hardware has not carried out.
  if (processor.context.pending !== 0) {
    const what = `an access at ${hex(offset)} of AVIC's page that is no aligned word`;
    throw new NotModelled(`${what}: KVM takes its exit for a trap, for ever`, "APM volume 2, 15.29.3");
  }
  if (offset === APIC_RRD) return; // What is written there is ignored.
  // The table follows the value as it was written; the register keeps its writable bits.
  if (offset === APIC_LDR) avic!.logicalIds.ldrWritten();
  if (offset === APIC_DFR) avic!.logicalIds.dfrWritten();
  writeNodecode(lapic, offset);
}
