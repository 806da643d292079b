/**
 * IA32_APIC_BASE: the APIC's mode and address, and what RESET and INIT do to it.
 *
 * @module
 */

import {
  APIC_DEFAULT_BASE,
  APIC_DFR,
  APIC_DFR_FLAT,
  APIC_DM_EXTINT,
  APIC_ESR,
  APIC_ICR,
  APIC_ICR2,
  APIC_ID,
  APIC_IRR,
  APIC_ISR,
  APIC_LDR,
  APIC_LVR,
  APIC_LVR_DIRECTED_EOI,
  APIC_LVT0,
  APIC_LVT_MASKED,
  APIC_TASKPRI,
  APIC_TDCR,
  APIC_TMICT,
  APIC_TMR,
  APIC_VERSION,
  APICBASE_BSP,
  APICBASE_ENABLE,
  APICBASE_X2APIC_ENABLE,
  HIGH,
  x2apicLdr,
} from "../../abi/mod.ts";
import { setApicvInhibit, updateHints } from "../kvm/apicv.ts";
import { REQ_APICV_UPDATE } from "../kvm/requests.ts";
import { type Lapic, LVT_ENTRIES } from "./lapic.ts";
import { lvtOffset } from "./registers.ts";

const MODE = APICBASE_ENABLE | APICBASE_X2APIC_ENABLE;
/** Bits 7:0 and 9. */
const RESERVED = 0x2ff;

/**
 * The guest writes IA32_APIC_BASE. false where that raises #GP: reserved bits, the invalid mode, and the transitions
 * from x2APIC to xAPIC mode and from disabled to x2APIC mode (SDM 3A 11.12.5).
 */
export function writeApicBase(lapic: Lapic, low: number, high: number): boolean {
  if (low === lapic.base && high === lapic.baseHigh) return true;
  const { cpuid } = lapic.vcpu;
  const reserved = RESERVED | (cpuid.x2apic ? 0 : APICBASE_X2APIC_ENABLE);
  if ((low & reserved) !== 0 || high >= 2 ** (cpuid.physicalAddressBits - 32)) return false;
  const from = lapic.base & MODE;
  const to = low & MODE;
  if (to === APICBASE_X2APIC_ENABLE) return false;
  if (from === MODE && to === APICBASE_ENABLE) return false;
  if (from === 0 && to === MODE) return false;
  setApicBase(lapic, low, high);
  return true;
}

/** Sets IA32_APIC_BASE without checks. */
export function setApicBase(lapic: Lapic, low: number, high: number): void {
  const { vcpu } = lapic;
  const changed = lapic.base ^ low;
  lapic.base = low >>> 0;
  lapic.baseHigh = high >>> 0;
  if ((changed & APICBASE_ENABLE) !== 0) {
    if ((low & APICBASE_ENABLE) !== 0) setXapicId(lapic);
    else vcpu.vm.apicMapDirty(vcpu);
  }
  if ((changed & APICBASE_X2APIC_ENABLE) !== 0) {
    if ((low & APICBASE_X2APIC_ENABLE) !== 0) setX2apicId(lapic);
    else if ((low & APICBASE_ENABLE) !== 0) setXapicId(lapic);
  }
  if ((changed & MODE) !== 0) {
    if (vcpu.vm.enableApicv) vcpu.request(REQ_APICV_UPDATE);
    vcpu.backend.apicModeChanged();
  }
  if (lapic.hardwareEnabled && apicPageAddress(lapic) !== APIC_DEFAULT_BASE) {
    setApicvInhibit(vcpu.vm, "APIC_BASE_MODIFIED", true); // For good.
  }
}

/** The physical address of the APIC's page. */
export function apicPageAddress(lapic: Lapic): number {
  return lapic.baseHigh * HIGH + ((lapic.base & 0xffff_f000) >>> 0);
}

function setXapicId(lapic: Lapic): void {
  lapic.set(APIC_ID, lapic.vcpu.vcpuId << 24);
  lapic.vcpu.vm.apicMapDirty(lapic.vcpu);
}

function setX2apicId(lapic: Lapic): void {
  const id = lapic.vcpu.vcpuId;
  lapic.set(APIC_ID, id);
  lapic.set(APIC_LDR, x2apicLdr(id));
  lapic.vcpu.vm.apicMapDirty(lapic.vcpu);
}

/** RESET, or (`init`) INIT, which keeps mode and ID. */
export function resetLapic(lapic: Lapic, init: boolean): void {
  const { vcpu } = lapic;
  vcpu.backend.discardPosted(); // First: a priority that falls makes KVM look for what was posted.
  if (!init) {
    setApicBase(lapic, APIC_DEFAULT_BASE | APICBASE_ENABLE | (vcpu.bootstrap ? APICBASE_BSP : 0), 0);
    setXapicId(lapic);
  }
  lapic.set(APIC_LVR, versionOf(lapic));
  for (let entry = 0; entry < LVT_ENTRIES; entry++) lapic.set(lvtOffset(entry), APIC_LVT_MASKED);
  lapic.timer.modeChanged();
  // KVM_X86_QUIRK_LINT0_REENABLED: the bootstrap processor's LINT0 takes the PIC's interrupts.
  if (vcpu.bootstrap && vcpu.vm.kvmQuirk("LINT0_REENABLED")) lapic.set(APIC_LVT0, APIC_DM_EXTINT);
  lapic.set(APIC_DFR, APIC_DFR_FLAT);
  vcpu.vm.apicMapDirty(vcpu);
  lapic.spivChanged(0xff);
  lapic.set(APIC_TASKPRI, 0);
  if (!lapic.x2apicMode) lapic.set(APIC_LDR, 0);
  lapic.set(APIC_ESR, 0);
  lapic.set(APIC_ICR, 0);
  if (lapic.x2apicMode) lapic.page[(APIC_ICR >>> 2) + 1] = 0;
  else lapic.set(APIC_ICR2, 0);
  lapic.set(APIC_TDCR, 0);
  lapic.set(APIC_TMICT, 0);
  for (let bank = 0; bank < 8; bank++) {
    lapic.set(APIC_IRR + 16 * bank, 0);
    lapic.set(APIC_ISR + 16 * bank, 0);
    lapic.set(APIC_TMR + 16 * bank, 0);
  }
  lapic.levels = false;
  updateHints(lapic);
  lapic.timer.reset();
  vcpu.pvEoi.reset();
  lapic.updatePpr();
  if (lapic.apicvActive) vcpu.backend.serviceChanged(-1);
  lapic.arbitrationPriority = 0;
}

/**
 * Suppressing EOI broadcasts is offered only without an in-kernel I/O APIC, whose model has no EOI register
 * (lapic.c, kvm_apic_set_version).
 */
function versionOf(lapic: Lapic): number {
  const { vcpu } = lapic;
  const directed = vcpu.cpuid.x2apic && !vcpu.vm.ioapicInKernel ? APIC_LVR_DIRECTED_EOI : 0;
  return APIC_VERSION | ((LVT_ENTRIES - 1) << 16) | directed;
}
