/**
 * KVM on Hyper-V: an enlightened VMCS, version 1, is a structure in memory with a field for some of a VMCS' fields.
 * Controls whose fields it lacks KVM cannot use there (arch/x86/kvm/vmx/hyperv_evmcs.h, vmx_onhyperv.c): among them all
 * of APICv, whose vectors, bitmaps and descriptor have no place, and every tertiary control.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { VMX_CONTROLS, type VmxControlWord } from "../../abi/mod.ts";
import type { DroppedControl, VmcsConfig } from "./config.ts";

/** The controls for which an enlightened VMCS of version 1 has what they need (EVMCS1_SUPPORTED_*). */
const EVMCS1_SUPPORTED: Readonly<Record<Exclude<VmxControlWord, "tertiary">, number>> = {
  pin: abi.PIN_BASED_ALWAYSON_WITHOUT_TRUE_MSR | abi.PIN_BASED_EXT_INTR_MASK | abi.PIN_BASED_NMI_EXITING |
    abi.PIN_BASED_VIRTUAL_NMIS,
  primary: abi.CPU_BASED_ALWAYSON_WITHOUT_TRUE_MSR | abi.CPU_BASED_HLT_EXITING |
    abi.CPU_BASED_CR3_LOAD_EXITING |
    abi.CPU_BASED_CR3_STORE_EXITING | abi.CPU_BASED_UNCOND_IO_EXITING | abi.CPU_BASED_MOV_DR_EXITING |
    abi.CPU_BASED_USE_TSC_OFFSETTING | abi.CPU_BASED_MWAIT_EXITING | abi.CPU_BASED_MONITOR_EXITING |
    abi.CPU_BASED_INVLPG_EXITING | abi.CPU_BASED_RDPMC_EXITING | abi.CPU_BASED_INTR_WINDOW_EXITING |
    abi.CPU_BASED_CR8_LOAD_EXITING | abi.CPU_BASED_CR8_STORE_EXITING | abi.CPU_BASED_RDTSC_EXITING |
    abi.CPU_BASED_TPR_SHADOW | abi.CPU_BASED_USE_IO_BITMAPS | abi.CPU_BASED_MONITOR_TRAP_FLAG |
    abi.CPU_BASED_USE_MSR_BITMAPS | abi.CPU_BASED_NMI_WINDOW_EXITING | abi.CPU_BASED_PAUSE_EXITING |
    abi.CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
  secondary: abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE | abi.SECONDARY_EXEC_WBINVD_EXITING |
    abi.SECONDARY_EXEC_ENABLE_VPID | abi.SECONDARY_EXEC_ENABLE_EPT | abi.SECONDARY_EXEC_UNRESTRICTED_GUEST |
    abi.SECONDARY_EXEC_DESC | abi.SECONDARY_EXEC_ENABLE_RDTSCP | abi.SECONDARY_EXEC_ENABLE_INVPCID |
    abi.SECONDARY_EXEC_ENABLE_XSAVES | abi.SECONDARY_EXEC_RDSEED_EXITING | abi.SECONDARY_EXEC_RDRAND_EXITING |
    abi.SECONDARY_EXEC_TSC_SCALING | abi.SECONDARY_EXEC_ENABLE_USR_WAIT_PAUSE |
    abi.SECONDARY_EXEC_PT_USE_GPA |
    abi.SECONDARY_EXEC_PT_CONCEAL_VMX | abi.SECONDARY_EXEC_BUS_LOCK_DETECTION |
    abi.SECONDARY_EXEC_NOTIFY_VM_EXITING | abi.SECONDARY_EXEC_ENCLS_EXITING,
  exit: abi.VM_EXIT_ALWAYSON_WITHOUT_TRUE_MSR | abi.VM_EXIT_SAVE_DEBUG_CONTROLS |
    abi.VM_EXIT_ACK_INTR_ON_EXIT |
    abi.VM_EXIT_HOST_ADDR_SPACE_SIZE | abi.VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL | abi.VM_EXIT_SAVE_IA32_PAT |
    abi.VM_EXIT_LOAD_IA32_PAT | abi.VM_EXIT_SAVE_IA32_EFER | abi.VM_EXIT_LOAD_IA32_EFER |
    abi.VM_EXIT_CLEAR_BNDCFGS | abi.VM_EXIT_PT_CONCEAL_PIP | abi.VM_EXIT_CLEAR_IA32_RTIT_CTL,
  entry: abi.VM_ENTRY_ALWAYSON_WITHOUT_TRUE_MSR | abi.VM_ENTRY_LOAD_DEBUG_CONTROLS | abi.VM_ENTRY_IA32E_MODE |
    abi.VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL | abi.VM_ENTRY_LOAD_IA32_PAT | abi.VM_ENTRY_LOAD_IA32_EFER |
    abi.VM_ENTRY_LOAD_BNDCFGS | abi.VM_ENTRY_PT_CONCEAL_PIP | abi.VM_ENTRY_LOAD_IA32_RTIT_CTL,
};
/** The tertiary controls that it supports: none (EVMCS1_SUPPORTED_3RDEXEC). */
const EVMCS1_SUPPORTED_3RDEXEC = 0n;

const WHY = "an enlightened VMCS has no field for it";

/** The configuration without what an enlightened VMCS cannot hold (evmcs_sanitize_exec_ctrls). */
export function sanitizeForEvmcs(config: VmcsConfig): VmcsConfig {
  const dropped: DroppedControl[] = [...config.dropped];
  const keep = (word: Exclude<VmxControlWord, "tertiary">): number => {
    const unsupported = config[word] & ~EVMCS1_SUPPORTED[word];
    if (unsupported !== 0) dropped.push({ word, mask: unsupported, why: WHY });
    return config[word] & EVMCS1_SUPPORTED[word];
  };
  const words = {
    primary: keep("primary"),
    pin: keep("pin"),
    secondary: keep("secondary"),
    entry: keep("entry"),
    exit: keep("exit"),
  };
  for (const { mask } of VMX_CONTROLS.tertiary) {
    if ((config.tertiary & ~EVMCS1_SUPPORTED_3RDEXEC & BigInt(mask)) !== 0n) {
      dropped.push({ word: "tertiary", mask, why: WHY });
    }
  }
  return { ...words, tertiary: config.tertiary & EVMCS1_SUPPORTED_3RDEXEC, dropped };
}
