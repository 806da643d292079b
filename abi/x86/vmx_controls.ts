/**
 * VMX controls: one table a control word, with the bits that KVM knows, by the names of arch/x86/include/asm/vmx.h and
 * of the SDM.
 *
 * Controls are 32-bit words, except the tertiary ones: a 64-bit word, of which only the low half has bits that are
 * defined. So each constant here is a number, bit 31 included.
 *
 * @module
 */

/** A bit of a control word. */
export interface VmxControl {
  /** Its mask: a 32-bit word. Of the tertiary controls, the low half. */
  readonly mask: number;
  /** Its name in the kernel. */
  readonly name: string;
  /** Its name in the SDM. */
  readonly title: string;
}

/** The six control words. */
export type VmxControlWord = "pin" | "primary" | "secondary" | "tertiary" | "exit" | "entry";

/** Pin-based VM-execution control bit 0: external-interrupt exiting. */
export const PIN_BASED_EXT_INTR_MASK = 1 << 0;
/** Pin-based VM-execution control bit 3: NMI exiting. */
export const PIN_BASED_NMI_EXITING = 1 << 3;
/** Pin-based VM-execution control bit 5: virtual NMIs. */
export const PIN_BASED_VIRTUAL_NMIS = 1 << 5;
/** Pin-based VM-execution control bit 6: activate VMX-preemption timer. */
export const PIN_BASED_VMX_PREEMPTION_TIMER = 1 << 6;
/** Pin-based VM-execution control bit 7: process posted interrupts. */
export const PIN_BASED_POSTED_INTR = 1 << 7;

/** Primary processor-based VM-execution control bit 2: interrupt-window exiting. */
export const CPU_BASED_INTR_WINDOW_EXITING = 1 << 2;
/** Primary processor-based VM-execution control bit 3: use TSC offsetting. */
export const CPU_BASED_USE_TSC_OFFSETTING = 1 << 3;
/** Primary processor-based VM-execution control bit 7: HLT exiting. */
export const CPU_BASED_HLT_EXITING = 1 << 7;
/** Primary processor-based VM-execution control bit 9: INVLPG exiting. */
export const CPU_BASED_INVLPG_EXITING = 1 << 9;
/** Primary processor-based VM-execution control bit 10: MWAIT exiting. */
export const CPU_BASED_MWAIT_EXITING = 1 << 10;
/** Primary processor-based VM-execution control bit 11: RDPMC exiting. */
export const CPU_BASED_RDPMC_EXITING = 1 << 11;
/** Primary processor-based VM-execution control bit 12: RDTSC exiting. */
export const CPU_BASED_RDTSC_EXITING = 1 << 12;
/** Primary processor-based VM-execution control bit 15: CR3-load exiting. */
export const CPU_BASED_CR3_LOAD_EXITING = 1 << 15;
/** Primary processor-based VM-execution control bit 16: CR3-store exiting. */
export const CPU_BASED_CR3_STORE_EXITING = 1 << 16;
/** Primary processor-based VM-execution control bit 17: activate tertiary controls. */
export const CPU_BASED_ACTIVATE_TERTIARY_CONTROLS = 1 << 17;
/** Primary processor-based VM-execution control bit 19: CR8-load exiting. */
export const CPU_BASED_CR8_LOAD_EXITING = 1 << 19;
/** Primary processor-based VM-execution control bit 20: CR8-store exiting. */
export const CPU_BASED_CR8_STORE_EXITING = 1 << 20;
/** Primary processor-based VM-execution control bit 21: use TPR shadow. */
export const CPU_BASED_TPR_SHADOW = 1 << 21;
/** Primary processor-based VM-execution control bit 22: NMI-window exiting. */
export const CPU_BASED_NMI_WINDOW_EXITING = 1 << 22;
/** Primary processor-based VM-execution control bit 23: MOV-DR exiting. */
export const CPU_BASED_MOV_DR_EXITING = 1 << 23;
/** Primary processor-based VM-execution control bit 24: unconditional I/O exiting. */
export const CPU_BASED_UNCOND_IO_EXITING = 1 << 24;
/** Primary processor-based VM-execution control bit 25: use I/O bitmaps. */
export const CPU_BASED_USE_IO_BITMAPS = 1 << 25;
/** Primary processor-based VM-execution control bit 27: monitor trap flag. */
export const CPU_BASED_MONITOR_TRAP_FLAG = 1 << 27;
/** Primary processor-based VM-execution control bit 28: use MSR bitmaps. */
export const CPU_BASED_USE_MSR_BITMAPS = 1 << 28;
/** Primary processor-based VM-execution control bit 29: MONITOR exiting. */
export const CPU_BASED_MONITOR_EXITING = 1 << 29;
/** Primary processor-based VM-execution control bit 30: PAUSE exiting. */
export const CPU_BASED_PAUSE_EXITING = 1 << 30;
/** Primary processor-based VM-execution control bit 31: activate secondary controls. */
export const CPU_BASED_ACTIVATE_SECONDARY_CONTROLS = 0x8000_0000;

/** Secondary processor-based VM-execution control bit 0: virtualize APIC accesses. */
export const SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES = 1 << 0;
/** Secondary processor-based VM-execution control bit 1: enable EPT. */
export const SECONDARY_EXEC_ENABLE_EPT = 1 << 1;
/** Secondary processor-based VM-execution control bit 2: descriptor-table exiting. */
export const SECONDARY_EXEC_DESC = 1 << 2;
/** Secondary processor-based VM-execution control bit 3: enable RDTSCP. */
export const SECONDARY_EXEC_ENABLE_RDTSCP = 1 << 3;
/** Secondary processor-based VM-execution control bit 4: virtualize x2APIC mode. */
export const SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE = 1 << 4;
/** Secondary processor-based VM-execution control bit 5: enable VPID. */
export const SECONDARY_EXEC_ENABLE_VPID = 1 << 5;
/** Secondary processor-based VM-execution control bit 6: WBINVD exiting. */
export const SECONDARY_EXEC_WBINVD_EXITING = 1 << 6;
/** Secondary processor-based VM-execution control bit 7: unrestricted guest. */
export const SECONDARY_EXEC_UNRESTRICTED_GUEST = 1 << 7;
/** Secondary processor-based VM-execution control bit 8: APIC-register virtualization. */
export const SECONDARY_EXEC_APIC_REGISTER_VIRT = 1 << 8;
/** Secondary processor-based VM-execution control bit 9: virtual-interrupt delivery. */
export const SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY = 1 << 9;
/** Secondary processor-based VM-execution control bit 10: PAUSE-loop exiting. */
export const SECONDARY_EXEC_PAUSE_LOOP_EXITING = 1 << 10;
/** Secondary processor-based VM-execution control bit 11: RDRAND exiting. */
export const SECONDARY_EXEC_RDRAND_EXITING = 1 << 11;
/** Secondary processor-based VM-execution control bit 12: enable INVPCID. */
export const SECONDARY_EXEC_ENABLE_INVPCID = 1 << 12;
/** Secondary processor-based VM-execution control bit 13: enable VM functions. */
export const SECONDARY_EXEC_ENABLE_VMFUNC = 1 << 13;
/** Secondary processor-based VM-execution control bit 14: VMCS shadowing. */
export const SECONDARY_EXEC_SHADOW_VMCS = 1 << 14;
/** Secondary processor-based VM-execution control bit 15: enable ENCLS exiting. */
export const SECONDARY_EXEC_ENCLS_EXITING = 1 << 15;
/** Secondary processor-based VM-execution control bit 16: RDSEED exiting. */
export const SECONDARY_EXEC_RDSEED_EXITING = 1 << 16;
/** Secondary processor-based VM-execution control bit 17: enable PML. */
export const SECONDARY_EXEC_ENABLE_PML = 1 << 17;
/** Secondary processor-based VM-execution control bit 18: EPT-violation #VE. */
export const SECONDARY_EXEC_EPT_VIOLATION_VE = 1 << 18;
/** Secondary processor-based VM-execution control bit 19: conceal VMX from PT. */
export const SECONDARY_EXEC_PT_CONCEAL_VMX = 1 << 19;
/** Secondary processor-based VM-execution control bit 20: enable XSAVES/XRSTORS. */
export const SECONDARY_EXEC_ENABLE_XSAVES = 1 << 20;
/** Secondary processor-based VM-execution control bit 22: mode-based execute control for EPT. */
export const SECONDARY_EXEC_MODE_BASED_EPT_EXEC = 1 << 22;
/** Secondary processor-based VM-execution control bit 24: Intel PT uses guest physical addresses. */
export const SECONDARY_EXEC_PT_USE_GPA = 1 << 24;
/** Secondary processor-based VM-execution control bit 25: use TSC scaling. */
export const SECONDARY_EXEC_TSC_SCALING = 1 << 25;
/** Secondary processor-based VM-execution control bit 26: enable user wait and pause. */
export const SECONDARY_EXEC_ENABLE_USR_WAIT_PAUSE = 1 << 26;
/** Secondary processor-based VM-execution control bit 30: VMM bus-lock detection. */
export const SECONDARY_EXEC_BUS_LOCK_DETECTION = 1 << 30;
/** Secondary processor-based VM-execution control bit 31: instruction timeout (notify VM exiting). */
export const SECONDARY_EXEC_NOTIFY_VM_EXITING = 0x8000_0000;

/** Tertiary processor-based VM-execution control bit 4: IPI virtualization. */
export const TERTIARY_EXEC_IPI_VIRT = 1 << 4;

/** Primary VM-exit control bit 2: save debug controls. */
export const VM_EXIT_SAVE_DEBUG_CONTROLS = 1 << 2;
/** Primary VM-exit control bit 9: host address-space size. */
export const VM_EXIT_HOST_ADDR_SPACE_SIZE = 1 << 9;
/** Primary VM-exit control bit 12: load IA32_PERF_GLOBAL_CTRL. */
export const VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL = 1 << 12;
/** Primary VM-exit control bit 15: acknowledge interrupt on exit. */
export const VM_EXIT_ACK_INTR_ON_EXIT = 1 << 15;
/** Primary VM-exit control bit 18: save IA32_PAT. */
export const VM_EXIT_SAVE_IA32_PAT = 1 << 18;
/** Primary VM-exit control bit 19: load IA32_PAT. */
export const VM_EXIT_LOAD_IA32_PAT = 1 << 19;
/** Primary VM-exit control bit 20: save IA32_EFER. */
export const VM_EXIT_SAVE_IA32_EFER = 1 << 20;
/** Primary VM-exit control bit 21: load IA32_EFER. */
export const VM_EXIT_LOAD_IA32_EFER = 1 << 21;
/** Primary VM-exit control bit 22: save VMX-preemption timer value. */
export const VM_EXIT_SAVE_VMX_PREEMPTION_TIMER = 1 << 22;
/** Primary VM-exit control bit 23: clear IA32_BNDCFGS. */
export const VM_EXIT_CLEAR_BNDCFGS = 1 << 23;
/** Primary VM-exit control bit 24: conceal VMX from PT. */
export const VM_EXIT_PT_CONCEAL_PIP = 1 << 24;
/** Primary VM-exit control bit 25: clear IA32_RTIT_CTL. */
export const VM_EXIT_CLEAR_IA32_RTIT_CTL = 1 << 25;
/** Primary VM-exit control bit 28: load CET state. */
export const VM_EXIT_LOAD_CET_STATE = 1 << 28;

/** VM-entry control bit 2: load debug controls. */
export const VM_ENTRY_LOAD_DEBUG_CONTROLS = 1 << 2;
/** VM-entry control bit 9: IA-32e mode guest. */
export const VM_ENTRY_IA32E_MODE = 1 << 9;
/** VM-entry control bit 10: entry to SMM. */
export const VM_ENTRY_SMM = 1 << 10;
/** VM-entry control bit 11: deactivate dual-monitor treatment. */
export const VM_ENTRY_DEACT_DUAL_MONITOR = 1 << 11;
/** VM-entry control bit 13: load IA32_PERF_GLOBAL_CTRL. */
export const VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL = 1 << 13;
/** VM-entry control bit 14: load IA32_PAT. */
export const VM_ENTRY_LOAD_IA32_PAT = 1 << 14;
/** VM-entry control bit 15: load IA32_EFER. */
export const VM_ENTRY_LOAD_IA32_EFER = 1 << 15;
/** VM-entry control bit 16: load IA32_BNDCFGS. */
export const VM_ENTRY_LOAD_BNDCFGS = 1 << 16;
/** VM-entry control bit 17: conceal VMX from PT. */
export const VM_ENTRY_PT_CONCEAL_PIP = 1 << 17;
/** VM-entry control bit 18: load IA32_RTIT_CTL. */
export const VM_ENTRY_LOAD_IA32_RTIT_CTL = 1 << 18;
/** VM-entry control bit 20: load CET state. */
export const VM_ENTRY_LOAD_CET_STATE = 1 << 20;

/** Pin-based VM-execution controls (SDM 3C 25.6.1, table 25-5). */
export const PIN_BASED_CONTROLS: readonly VmxControl[] = [
  { mask: PIN_BASED_EXT_INTR_MASK, name: "PIN_BASED_EXT_INTR_MASK", title: "external-interrupt exiting" },
  { mask: PIN_BASED_NMI_EXITING, name: "PIN_BASED_NMI_EXITING", title: "NMI exiting" },
  { mask: PIN_BASED_VIRTUAL_NMIS, name: "PIN_BASED_VIRTUAL_NMIS", title: "virtual NMIs" },
  {
    mask: PIN_BASED_VMX_PREEMPTION_TIMER,
    name: "PIN_BASED_VMX_PREEMPTION_TIMER",
    title: "activate VMX-preemption timer",
  },
  { mask: PIN_BASED_POSTED_INTR, name: "PIN_BASED_POSTED_INTR", title: "process posted interrupts" },
];

/** Primary processor-based VM-execution controls (SDM 3C 25.6.2, table 25-6). */
export const PRIMARY_CONTROLS: readonly VmxControl[] = [
  {
    mask: CPU_BASED_INTR_WINDOW_EXITING,
    name: "CPU_BASED_INTR_WINDOW_EXITING",
    title: "interrupt-window exiting",
  },
  { mask: CPU_BASED_USE_TSC_OFFSETTING, name: "CPU_BASED_USE_TSC_OFFSETTING", title: "use TSC offsetting" },
  { mask: CPU_BASED_HLT_EXITING, name: "CPU_BASED_HLT_EXITING", title: "HLT exiting" },
  { mask: CPU_BASED_INVLPG_EXITING, name: "CPU_BASED_INVLPG_EXITING", title: "INVLPG exiting" },
  { mask: CPU_BASED_MWAIT_EXITING, name: "CPU_BASED_MWAIT_EXITING", title: "MWAIT exiting" },
  { mask: CPU_BASED_RDPMC_EXITING, name: "CPU_BASED_RDPMC_EXITING", title: "RDPMC exiting" },
  { mask: CPU_BASED_RDTSC_EXITING, name: "CPU_BASED_RDTSC_EXITING", title: "RDTSC exiting" },
  { mask: CPU_BASED_CR3_LOAD_EXITING, name: "CPU_BASED_CR3_LOAD_EXITING", title: "CR3-load exiting" },
  { mask: CPU_BASED_CR3_STORE_EXITING, name: "CPU_BASED_CR3_STORE_EXITING", title: "CR3-store exiting" },
  {
    mask: CPU_BASED_ACTIVATE_TERTIARY_CONTROLS,
    name: "CPU_BASED_ACTIVATE_TERTIARY_CONTROLS",
    title: "activate tertiary controls",
  },
  { mask: CPU_BASED_CR8_LOAD_EXITING, name: "CPU_BASED_CR8_LOAD_EXITING", title: "CR8-load exiting" },
  { mask: CPU_BASED_CR8_STORE_EXITING, name: "CPU_BASED_CR8_STORE_EXITING", title: "CR8-store exiting" },
  { mask: CPU_BASED_TPR_SHADOW, name: "CPU_BASED_TPR_SHADOW", title: "use TPR shadow" },
  { mask: CPU_BASED_NMI_WINDOW_EXITING, name: "CPU_BASED_NMI_WINDOW_EXITING", title: "NMI-window exiting" },
  { mask: CPU_BASED_MOV_DR_EXITING, name: "CPU_BASED_MOV_DR_EXITING", title: "MOV-DR exiting" },
  {
    mask: CPU_BASED_UNCOND_IO_EXITING,
    name: "CPU_BASED_UNCOND_IO_EXITING",
    title: "unconditional I/O exiting",
  },
  { mask: CPU_BASED_USE_IO_BITMAPS, name: "CPU_BASED_USE_IO_BITMAPS", title: "use I/O bitmaps" },
  { mask: CPU_BASED_MONITOR_TRAP_FLAG, name: "CPU_BASED_MONITOR_TRAP_FLAG", title: "monitor trap flag" },
  { mask: CPU_BASED_USE_MSR_BITMAPS, name: "CPU_BASED_USE_MSR_BITMAPS", title: "use MSR bitmaps" },
  { mask: CPU_BASED_MONITOR_EXITING, name: "CPU_BASED_MONITOR_EXITING", title: "MONITOR exiting" },
  { mask: CPU_BASED_PAUSE_EXITING, name: "CPU_BASED_PAUSE_EXITING", title: "PAUSE exiting" },
  {
    mask: CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
    name: "CPU_BASED_ACTIVATE_SECONDARY_CONTROLS",
    title: "activate secondary controls",
  },
];

/** Secondary processor-based VM-execution controls (SDM 3C 25.6.2, table 25-7). */
export const SECONDARY_CONTROLS: readonly VmxControl[] = [
  {
    mask: SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES,
    name: "SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES",
    title: "virtualize APIC accesses",
  },
  { mask: SECONDARY_EXEC_ENABLE_EPT, name: "SECONDARY_EXEC_ENABLE_EPT", title: "enable EPT" },
  { mask: SECONDARY_EXEC_DESC, name: "SECONDARY_EXEC_DESC", title: "descriptor-table exiting" },
  { mask: SECONDARY_EXEC_ENABLE_RDTSCP, name: "SECONDARY_EXEC_ENABLE_RDTSCP", title: "enable RDTSCP" },
  {
    mask: SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE,
    name: "SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE",
    title: "virtualize x2APIC mode",
  },
  { mask: SECONDARY_EXEC_ENABLE_VPID, name: "SECONDARY_EXEC_ENABLE_VPID", title: "enable VPID" },
  { mask: SECONDARY_EXEC_WBINVD_EXITING, name: "SECONDARY_EXEC_WBINVD_EXITING", title: "WBINVD exiting" },
  {
    mask: SECONDARY_EXEC_UNRESTRICTED_GUEST,
    name: "SECONDARY_EXEC_UNRESTRICTED_GUEST",
    title: "unrestricted guest",
  },
  {
    mask: SECONDARY_EXEC_APIC_REGISTER_VIRT,
    name: "SECONDARY_EXEC_APIC_REGISTER_VIRT",
    title: "APIC-register virtualization",
  },
  {
    mask: SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY,
    name: "SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY",
    title: "virtual-interrupt delivery",
  },
  {
    mask: SECONDARY_EXEC_PAUSE_LOOP_EXITING,
    name: "SECONDARY_EXEC_PAUSE_LOOP_EXITING",
    title: "PAUSE-loop exiting",
  },
  { mask: SECONDARY_EXEC_RDRAND_EXITING, name: "SECONDARY_EXEC_RDRAND_EXITING", title: "RDRAND exiting" },
  { mask: SECONDARY_EXEC_ENABLE_INVPCID, name: "SECONDARY_EXEC_ENABLE_INVPCID", title: "enable INVPCID" },
  { mask: SECONDARY_EXEC_ENABLE_VMFUNC, name: "SECONDARY_EXEC_ENABLE_VMFUNC", title: "enable VM functions" },
  { mask: SECONDARY_EXEC_SHADOW_VMCS, name: "SECONDARY_EXEC_SHADOW_VMCS", title: "VMCS shadowing" },
  { mask: SECONDARY_EXEC_ENCLS_EXITING, name: "SECONDARY_EXEC_ENCLS_EXITING", title: "enable ENCLS exiting" },
  { mask: SECONDARY_EXEC_RDSEED_EXITING, name: "SECONDARY_EXEC_RDSEED_EXITING", title: "RDSEED exiting" },
  { mask: SECONDARY_EXEC_ENABLE_PML, name: "SECONDARY_EXEC_ENABLE_PML", title: "enable PML" },
  {
    mask: SECONDARY_EXEC_EPT_VIOLATION_VE,
    name: "SECONDARY_EXEC_EPT_VIOLATION_VE",
    title: "EPT-violation #VE",
  },
  {
    mask: SECONDARY_EXEC_PT_CONCEAL_VMX,
    name: "SECONDARY_EXEC_PT_CONCEAL_VMX",
    title: "conceal VMX from PT",
  },
  {
    mask: SECONDARY_EXEC_ENABLE_XSAVES,
    name: "SECONDARY_EXEC_ENABLE_XSAVES",
    title: "enable XSAVES/XRSTORS",
  },
  {
    mask: SECONDARY_EXEC_MODE_BASED_EPT_EXEC,
    name: "SECONDARY_EXEC_MODE_BASED_EPT_EXEC",
    title: "mode-based execute control for EPT",
  },
  {
    mask: SECONDARY_EXEC_PT_USE_GPA,
    name: "SECONDARY_EXEC_PT_USE_GPA",
    title: "Intel PT uses guest physical addresses",
  },
  { mask: SECONDARY_EXEC_TSC_SCALING, name: "SECONDARY_EXEC_TSC_SCALING", title: "use TSC scaling" },
  {
    mask: SECONDARY_EXEC_ENABLE_USR_WAIT_PAUSE,
    name: "SECONDARY_EXEC_ENABLE_USR_WAIT_PAUSE",
    title: "enable user wait and pause",
  },
  {
    mask: SECONDARY_EXEC_BUS_LOCK_DETECTION,
    name: "SECONDARY_EXEC_BUS_LOCK_DETECTION",
    title: "VMM bus-lock detection",
  },
  {
    mask: SECONDARY_EXEC_NOTIFY_VM_EXITING,
    name: "SECONDARY_EXEC_NOTIFY_VM_EXITING",
    title: "instruction timeout (notify VM exiting)",
  },
];

/** Tertiary processor-based VM-execution controls, a 64-bit word (SDM 3C 25.6.2, table 25-8). */
export const TERTIARY_CONTROLS: readonly VmxControl[] = [
  { mask: TERTIARY_EXEC_IPI_VIRT, name: "TERTIARY_EXEC_IPI_VIRT", title: "IPI virtualization" },
];

/** Primary VM-exit controls (SDM 3C 25.7.1, table 25-13). */
export const EXIT_CONTROLS: readonly VmxControl[] = [
  { mask: VM_EXIT_SAVE_DEBUG_CONTROLS, name: "VM_EXIT_SAVE_DEBUG_CONTROLS", title: "save debug controls" },
  {
    mask: VM_EXIT_HOST_ADDR_SPACE_SIZE,
    name: "VM_EXIT_HOST_ADDR_SPACE_SIZE",
    title: "host address-space size",
  },
  {
    mask: VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL,
    name: "VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL",
    title: "load IA32_PERF_GLOBAL_CTRL",
  },
  {
    mask: VM_EXIT_ACK_INTR_ON_EXIT,
    name: "VM_EXIT_ACK_INTR_ON_EXIT",
    title: "acknowledge interrupt on exit",
  },
  { mask: VM_EXIT_SAVE_IA32_PAT, name: "VM_EXIT_SAVE_IA32_PAT", title: "save IA32_PAT" },
  { mask: VM_EXIT_LOAD_IA32_PAT, name: "VM_EXIT_LOAD_IA32_PAT", title: "load IA32_PAT" },
  { mask: VM_EXIT_SAVE_IA32_EFER, name: "VM_EXIT_SAVE_IA32_EFER", title: "save IA32_EFER" },
  { mask: VM_EXIT_LOAD_IA32_EFER, name: "VM_EXIT_LOAD_IA32_EFER", title: "load IA32_EFER" },
  {
    mask: VM_EXIT_SAVE_VMX_PREEMPTION_TIMER,
    name: "VM_EXIT_SAVE_VMX_PREEMPTION_TIMER",
    title: "save VMX-preemption timer value",
  },
  { mask: VM_EXIT_CLEAR_BNDCFGS, name: "VM_EXIT_CLEAR_BNDCFGS", title: "clear IA32_BNDCFGS" },
  { mask: VM_EXIT_PT_CONCEAL_PIP, name: "VM_EXIT_PT_CONCEAL_PIP", title: "conceal VMX from PT" },
  { mask: VM_EXIT_CLEAR_IA32_RTIT_CTL, name: "VM_EXIT_CLEAR_IA32_RTIT_CTL", title: "clear IA32_RTIT_CTL" },
  { mask: VM_EXIT_LOAD_CET_STATE, name: "VM_EXIT_LOAD_CET_STATE", title: "load CET state" },
];

/** VM-entry controls (SDM 3C 25.8.1, table 25-16). */
export const ENTRY_CONTROLS: readonly VmxControl[] = [
  { mask: VM_ENTRY_LOAD_DEBUG_CONTROLS, name: "VM_ENTRY_LOAD_DEBUG_CONTROLS", title: "load debug controls" },
  { mask: VM_ENTRY_IA32E_MODE, name: "VM_ENTRY_IA32E_MODE", title: "IA-32e mode guest" },
  { mask: VM_ENTRY_SMM, name: "VM_ENTRY_SMM", title: "entry to SMM" },
  {
    mask: VM_ENTRY_DEACT_DUAL_MONITOR,
    name: "VM_ENTRY_DEACT_DUAL_MONITOR",
    title: "deactivate dual-monitor treatment",
  },
  {
    mask: VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL,
    name: "VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL",
    title: "load IA32_PERF_GLOBAL_CTRL",
  },
  { mask: VM_ENTRY_LOAD_IA32_PAT, name: "VM_ENTRY_LOAD_IA32_PAT", title: "load IA32_PAT" },
  { mask: VM_ENTRY_LOAD_IA32_EFER, name: "VM_ENTRY_LOAD_IA32_EFER", title: "load IA32_EFER" },
  { mask: VM_ENTRY_LOAD_BNDCFGS, name: "VM_ENTRY_LOAD_BNDCFGS", title: "load IA32_BNDCFGS" },
  { mask: VM_ENTRY_PT_CONCEAL_PIP, name: "VM_ENTRY_PT_CONCEAL_PIP", title: "conceal VMX from PT" },
  { mask: VM_ENTRY_LOAD_IA32_RTIT_CTL, name: "VM_ENTRY_LOAD_IA32_RTIT_CTL", title: "load IA32_RTIT_CTL" },
  { mask: VM_ENTRY_LOAD_CET_STATE, name: "VM_ENTRY_LOAD_CET_STATE", title: "load CET state" },
];

/** The control words' tables. */
export const VMX_CONTROLS: Readonly<Record<VmxControlWord, readonly VmxControl[]>> = {
  pin: PIN_BASED_CONTROLS,
  primary: PRIMARY_CONTROLS,
  secondary: SECONDARY_CONTROLS,
  tertiary: TERTIARY_CONTROLS,
  exit: EXIT_CONTROLS,
  entry: ENTRY_CONTROLS,
};

/** The names of the controls that are set in a word (of the tertiary controls, its low half); others as `bit 5`. */
export function vmxControlNames(word: VmxControlWord, value: number): string[] {
  const names: string[] = [];
  for (let bit = 0; bit < 32; bit++) {
    if (((value >>> bit) & 1) === 0) continue;
    names.push(VMX_CONTROLS[word].find(({ mask }) => mask >>> 0 === (1 << bit) >>> 0)?.name ?? `bit ${bit}`);
  }
  return names;
}
