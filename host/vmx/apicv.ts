/**
 * KVM's side of APICv on VMX: which controls a vCPU has while APICv is in use and while it is not, and which x2APIC MSRs
 * exit (arch/x86/kvm/vmx/vmx.c).
 *
 * While APICv is inhibited the TPR shadow and the virtualization of the APIC's mode stay on.
 *
 * @module
 */

import {
  APIC_EOI,
  APIC_ICR,
  APIC_LVTCMCI,
  APIC_PAGE_SIZE,
  APIC_REGISTERS,
  APIC_SELF_IPI,
  APIC_TASKPRI,
  APIC_TMCCT,
  highOf,
  lowOf,
  SECONDARY_EXEC_APIC_REGISTER_VIRT,
  SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
  SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES,
  SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE,
  X2APIC_MSR_BASE,
} from "../../abi/mod.ts";
import { accessPageAddress } from "../kvm/access_page.ts";
import { REQ_TLB_FLUSH_CURRENT } from "../kvm/requests.ts";
import { pinControls, tertiaryControls } from "./exec_controls.ts";
import type { Vmx } from "./vmx.ts";

const APICV = SECONDARY_EXEC_APIC_REGISTER_VIRT | SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY;
const APIC_MODES = SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES | SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE;

/** RESET: the pages, and a virtual APIC in which nothing is requested or in service (init_vmcs). */
export function resetVirtualApic({ vcpu, vmcs }: Vmx): void {
  if (vmcs.virtualApicPage === 0) {
    vmcs.virtualApicPage = vcpu.machine.hostMemory.adopt(vcpu.lapic.page, APIC_PAGE_SIZE).address;
    vmcs.apicAccessPage = accessPageAddress(vcpu.vm);
    vmcs.unchecked = 1;
  }
  vmcs.rvi = 0;
  vmcs.svi = 0;
  vmcs.eoiExitBitmap.fill(0);
}

/** APICv is to be used from the next entry on, or not any more (vmx_refresh_apicv_exec_ctrl). */
export function refreshApicv(vmx: Vmx): void {
  const { vcpu, vmcs, setup } = vmx;
  const active = vcpu.lapic.apicvActive;
  vmcs.pin = pinControls(setup, active);
  vmcs.secondary = active ? vmcs.secondary | APICV : vmcs.secondary & ~APICV;
  const tertiary = tertiaryControls(setup, active);
  vmcs.tertiary = lowOf(tertiary);
  vmcs.tertiaryHigh = highOf(tertiary);
  vmx.hardware.virtualInterrupts.recognized = false;
  updateX2apicMsrBitmap(vmx);
  // Scans since APICv was last in use have left the exits alone.
  if (active && !vcpu.vm.quirk("apicv-activation-keeps-eoi-exitmap")) loadEoiExitmap(vmx);
}

/**
 * xAPIC mode uses the APIC-access page, x2APIC mode the virtualized MSRs, a disabled APIC nothing
 * (vmx_set_virtual_apic_mode).
 */
export function setVirtualApicMode(vmx: Vmx): void {
  const { vcpu, vmcs, setup } = vmx;
  const { lapic } = vcpu;
  let mode = 0;
  if (lapic.hardwareEnabled) {
    if (lapic.x2apicMode) mode = SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE & setup.config.secondary;
    else if (setup.flexpriority.on) mode = SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES;
  }
  // What the guest had at that address while the page was not in use goes.
  if (mode === SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) vcpu.request(REQ_TLB_FLUSH_CURRENT);
  vmcs.secondary = (vmcs.secondary & ~APIC_MODES) | mode;
  updateX2apicMsrBitmap(vmx);
}

/** What KVM lets guests read (kvm_lapic_readable_reg_mask), but for the timer's count, which nobody keeps in the page. */
const READABLE: ReadonlySet<number> = new Set(
  APIC_REGISTERS
    .filter(({ x2apic, offset }) =>
      x2apic.startsWith("r") && offset !== APIC_LVTCMCI && offset !== APIC_TMCCT
    )
    .flatMap(({ offset, count }) => Array.from({ length: count }, (_, i) => offset + 16 * i)),
);
/** What hardware carries out when it is written. */
const WRITABLE: ReadonlySet<number> = new Set([APIC_TASKPRI, APIC_EOI, APIC_SELF_IPI]);

/** vmx_update_msr_bitmap_x2apic: an MSR passes through where hardware does with it what KVM would. */
function updateX2apicMsrBitmap({ vcpu, vmcs, setup }: Vmx): void {
  const mode = (vmcs.secondary & SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE) !== 0;
  const active = mode && vcpu.lapic.apicvActive;
  for (let offset = 0; offset <= APIC_SELF_IPI; offset += 16) {
    const msr = X2APIC_MSR_BASE + (offset >>> 4);
    const shadowed = mode && offset === APIC_TASKPRI;
    const ipi = active && setup.ipiv.on && offset === APIC_ICR;
    vmcs.msrBitmap.intercept(msr, false, !(shadowed || (active && READABLE.has(offset))));
    vmcs.msrBitmap.intercept(msr, true, !(shadowed || ipi || (active && WRITABLE.has(offset))));
  }
}

/** The highest vector in service has changed, -1 for none: SVI follows (vmx_hwapic_isr_update). */
export function serviceChanged({ vmcs }: Vmx, highestIsr: number): void {
  vmcs.svi = Math.max(0, highestIsr);
}

/** The EOIs that the I/O APIC must see are to exit (vmx_load_eoi_exitmap). */
export function loadEoiExitmap({ vcpu, vmcs }: Vmx): void {
  if (vcpu.lapic.apicvActive) vmcs.eoiExitBitmap.set(vcpu.ioapicHandledVectors);
}
