/**
 * The controls of one vCPU, out of those that KVM uses (vmx_pin_based_exec_ctrl, vmx_exec_control and their kind in
 * arch/x86/kvm/vmx/vmx.c), and the VMCS that they are first written into (init_vmcs).
 *
 * Guests here have RDTSCP, and no RDRAND, RDSEED, XSAVES or WAITPKG; dirty pages are logged by write protection, not
 * by PML; nothing traces, or has asked for bus-lock or notify exits, and PAUSE-loop exiting is off (ple_gap=0).
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { highOf, lowOf } from "../../abi/mod.ts";
import type { VmxSetup } from "./setup.ts";
import type { Vmcs } from "./vmcs.ts";

/** What is a vCPU's own in its controls. */
export interface VcpuControls {
  /** Whether APICv is in use. */
  readonly apicvActive: boolean;
  /** Its VPID; 0 where it has none. */
  readonly vpid: number;
  /** Whether CPUID offers it INVPCID. */
  readonly invpcid: boolean;
}

/** Pin-based: posted interrupts go with APICv. */
export function pinControls({ config, vnmi, preemptionTimer }: VmxSetup, apicvActive: boolean): number {
  return config.pin & ~(
    (apicvActive ? 0 : abi.PIN_BASED_POSTED_INTR) |
    (vnmi.on ? 0 : abi.PIN_BASED_VIRTUAL_NMIS) |
    (preemptionTimer.on ? 0 : abi.PIN_BASED_VMX_PREEMPTION_TIMER)
  );
}

const CR8_EXITING = abi.CPU_BASED_CR8_LOAD_EXITING | abi.CPU_BASED_CR8_STORE_EXITING;

/** Primary: windows are opened when they are waited for; with EPT, CR3 and INVLPG are the guest's own. */
function primaryControls({ config, ept }: VmxSetup): number {
  let controls = config.primary & ~(
    abi.CPU_BASED_RDTSC_EXITING | abi.CPU_BASED_USE_IO_BITMAPS | abi.CPU_BASED_MONITOR_TRAP_FLAG |
    abi.CPU_BASED_PAUSE_EXITING | abi.CPU_BASED_INTR_WINDOW_EXITING | abi.CPU_BASED_NMI_WINDOW_EXITING
  );
  if ((controls & abi.CPU_BASED_TPR_SHADOW) !== 0) controls &= ~CR8_EXITING;
  if (ept.on) {
    controls &= ~(
      abi.CPU_BASED_CR3_LOAD_EXITING | abi.CPU_BASED_CR3_STORE_EXITING | abi.CPU_BASED_INVLPG_EXITING
    );
  }
  return controls;
}

const UNUSED_SECONDARY = abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE | abi.SECONDARY_EXEC_ENABLE_VMFUNC |
  abi.SECONDARY_EXEC_DESC | abi.SECONDARY_EXEC_SHADOW_VMCS | abi.SECONDARY_EXEC_ENABLE_PML |
  abi.SECONDARY_EXEC_PT_USE_GPA | abi.SECONDARY_EXEC_PT_CONCEAL_VMX | abi.SECONDARY_EXEC_PAUSE_LOOP_EXITING |
  abi.SECONDARY_EXEC_ENABLE_XSAVES |
  abi.SECONDARY_EXEC_ENABLE_USR_WAIT_PAUSE | abi.SECONDARY_EXEC_BUS_LOCK_DETECTION |
  abi.SECONDARY_EXEC_NOTIFY_VM_EXITING;

/** Secondary: of the virtualized APIC modes, the xAPIC's; the present mode decides later. */
function secondaryControls(setup: VmxSetup, { apicvActive, vpid, invpcid }: VcpuControls): number {
  return setup.config.secondary & ~(
    UNUSED_SECONDARY |
    (invpcid ? 0 : abi.SECONDARY_EXEC_ENABLE_INVPCID) |
    (setup.flexpriority.on ? 0 : abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES) |
    (setup.vpid.on && vpid !== 0 ? 0 : abi.SECONDARY_EXEC_ENABLE_VPID) |
    (setup.ept.on ? 0 : abi.SECONDARY_EXEC_ENABLE_EPT | abi.SECONDARY_EXEC_UNRESTRICTED_GUEST) |
    (apicvActive ? 0 : abi.SECONDARY_EXEC_APIC_REGISTER_VIRT | abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY)
  );
}

/** Tertiary: IPI virtualization goes with APICv. */
export function tertiaryControls({ config, ipiv }: VmxSetup, apicvActive: boolean): bigint {
  return ipiv.on && apicvActive ? config.tertiary : config.tertiary & ~BigInt(abi.TERTIARY_EXEC_IPI_VIRT);
}

/** VM-exit: PAT and EFER are intercepted, so never saved; the others are set when they are needed. */
export function exitControls({ config }: VmxSetup): number {
  return config.exit & ~(
    abi.VM_EXIT_SAVE_IA32_PAT | abi.VM_EXIT_SAVE_IA32_EFER | abi.VM_EXIT_SAVE_VMX_PREEMPTION_TIMER |
    abi.VM_EXIT_PT_CONCEAL_PIP | abi.VM_EXIT_CLEAR_IA32_RTIT_CTL | abi.VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL |
    abi.VM_EXIT_LOAD_IA32_EFER
  );
}

/** VM-entry: IA-32e mode and EFER follow the guest's EFER. */
export function entryControls({ config }: VmxSetup): number {
  return config.entry & ~(
    abi.VM_ENTRY_PT_CONCEAL_PIP | abi.VM_ENTRY_LOAD_IA32_RTIT_CTL | abi.VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL |
    abi.VM_ENTRY_LOAD_IA32_EFER | abi.VM_ENTRY_IA32E_MODE
  );
}

/** An EPT pointer (SDM 3C table 25-9): memory type write-back, 4 levels, accessed and dirty flags where there are such. */
export function eptPointer({ ept, capabilities }: VmxSetup): number {
  if (!ept.on) return 0;
  const flags = (capabilities.ept & abi.VMX_EPT_AD_BIT) !== 0 ? abi.EPTP_AD : 0;
  return abi.MEMORY_TYPE_WB | abi.EPTP_WALK_4 | flags;
}

/** Writes a vCPU's first controls into its VMCS. The EPT pointer's address is 0 until a root is loaded. */
export function initControls(vmcs: Vmcs, setup: VmxSetup, vcpu: VcpuControls): void {
  vmcs.pin = pinControls(setup, vcpu.apicvActive);
  vmcs.primary = primaryControls(setup);
  vmcs.secondary = secondaryControls(setup, vcpu);
  const tertiary = tertiaryControls(setup, vcpu.apicvActive);
  vmcs.tertiary = lowOf(tertiary);
  vmcs.tertiaryHigh = highOf(tertiary);
  vmcs.exitControls = exitControls(setup);
  vmcs.entryControls = entryControls(setup);
  vmcs.eptPointer = eptPointer(setup);
  vmcs.vpid = setup.vpid.on ? vcpu.vpid : 0;
}
