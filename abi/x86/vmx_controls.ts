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
  /** The VMX feature that it is; {@linkcode VMX_FEATURES}. VM-exit and VM-entry controls are none. */
  readonly feature: string | undefined;
  /** Whether /proc/cpuinfo shows that feature among its "vmx flags". */
  readonly shown: boolean;
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

function control(constant: Readonly<Record<string, number>>, title: string, feature?: string): VmxControl {
  const [[name, mask]] = Object.entries(constant);
  return { mask, name, title, feature, shown: feature !== undefined };
}

/** A control whose feature /proc/cpuinfo does not show. */
function unshown(constant: Readonly<Record<string, number>>, title: string, feature: string): VmxControl {
  return { ...control(constant, title, feature), shown: false };
}

/** Pin-based VM-execution controls (SDM 3C 25.6.1, table 25-5). */
export const PIN_BASED_CONTROLS: readonly VmxControl[] = [
  unshown({ PIN_BASED_EXT_INTR_MASK }, "external-interrupt exiting", "intr_exiting"),
  unshown({ PIN_BASED_NMI_EXITING }, "NMI exiting", "nmi_exiting"),
  control({ PIN_BASED_VIRTUAL_NMIS }, "virtual NMIs", "vnmi"),
  control({ PIN_BASED_VMX_PREEMPTION_TIMER }, "activate VMX-preemption timer", "preemption_timer"),
  control({ PIN_BASED_POSTED_INTR }, "process posted interrupts", "posted_intr"),
];

/** Primary processor-based VM-execution controls (SDM 3C 25.6.2, table 25-6). */
export const PRIMARY_CONTROLS: readonly VmxControl[] = [
  unshown({ CPU_BASED_INTR_WINDOW_EXITING }, "interrupt-window exiting", "intr_window_exiting"),
  control({ CPU_BASED_USE_TSC_OFFSETTING }, "use TSC offsetting", "tsc_offset"),
  unshown({ CPU_BASED_HLT_EXITING }, "HLT exiting", "hlt_exiting"),
  unshown({ CPU_BASED_INVLPG_EXITING }, "INVLPG exiting", "invlpg_exiting"),
  unshown({ CPU_BASED_MWAIT_EXITING }, "MWAIT exiting", "mwait_exiting"),
  unshown({ CPU_BASED_RDPMC_EXITING }, "RDPMC exiting", "rdpmc_exiting"),
  unshown({ CPU_BASED_RDTSC_EXITING }, "RDTSC exiting", "rdtsc_exiting"),
  unshown({ CPU_BASED_CR3_LOAD_EXITING }, "CR3-load exiting", "cr3_load_exiting"),
  unshown({ CPU_BASED_CR3_STORE_EXITING }, "CR3-store exiting", "cr3_store_exiting"),
  unshown({ CPU_BASED_ACTIVATE_TERTIARY_CONTROLS }, "activate tertiary controls", "tertiary_controls"),
  unshown({ CPU_BASED_CR8_LOAD_EXITING }, "CR8-load exiting", "cr8_load_exiting"),
  unshown({ CPU_BASED_CR8_STORE_EXITING }, "CR8-store exiting", "cr8_store_exiting"),
  control({ CPU_BASED_TPR_SHADOW }, "use TPR shadow", "vtpr"),
  unshown({ CPU_BASED_NMI_WINDOW_EXITING }, "NMI-window exiting", "nmi_window_exiting"),
  unshown({ CPU_BASED_MOV_DR_EXITING }, "MOV-DR exiting", "mov_dr_exiting"),
  unshown({ CPU_BASED_UNCOND_IO_EXITING }, "unconditional I/O exiting", "uncond_io_exiting"),
  unshown({ CPU_BASED_USE_IO_BITMAPS }, "use I/O bitmaps", "use_io_bitmaps"),
  control({ CPU_BASED_MONITOR_TRAP_FLAG }, "monitor trap flag", "mtf"),
  unshown({ CPU_BASED_USE_MSR_BITMAPS }, "use MSR bitmaps", "use_msr_bitmaps"),
  unshown({ CPU_BASED_MONITOR_EXITING }, "MONITOR exiting", "monitor_exiting"),
  unshown({ CPU_BASED_PAUSE_EXITING }, "PAUSE exiting", "pause_exiting"),
  unshown({ CPU_BASED_ACTIVATE_SECONDARY_CONTROLS }, "activate secondary controls", "sec_controls"),
];

/** Secondary processor-based VM-execution controls (SDM 3C 25.6.2, table 25-7). */
export const SECONDARY_CONTROLS: readonly VmxControl[] = [
  control({ SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES }, "virtualize APIC accesses", "vapic"),
  control({ SECONDARY_EXEC_ENABLE_EPT }, "enable EPT", "ept"),
  unshown({ SECONDARY_EXEC_DESC }, "descriptor-table exiting", "desc_exiting"),
  unshown({ SECONDARY_EXEC_ENABLE_RDTSCP }, "enable RDTSCP", "rdtscp"),
  unshown({ SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE }, "virtualize x2APIC mode", "virtual_x2apic"),
  control({ SECONDARY_EXEC_ENABLE_VPID }, "enable VPID", "vpid"),
  unshown({ SECONDARY_EXEC_WBINVD_EXITING }, "WBINVD exiting", "wbinvd_exiting"),
  control({ SECONDARY_EXEC_UNRESTRICTED_GUEST }, "unrestricted guest", "unrestricted_guest"),
  control({ SECONDARY_EXEC_APIC_REGISTER_VIRT }, "APIC-register virtualization", "vapic_reg"),
  control({ SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY }, "virtual-interrupt delivery", "vid"),
  control({ SECONDARY_EXEC_PAUSE_LOOP_EXITING }, "PAUSE-loop exiting", "ple"),
  unshown({ SECONDARY_EXEC_RDRAND_EXITING }, "RDRAND exiting", "rdrand_exiting"),
  unshown({ SECONDARY_EXEC_ENABLE_INVPCID }, "enable INVPCID", "invpcid"),
  unshown({ SECONDARY_EXEC_ENABLE_VMFUNC }, "enable VM functions", "vmfunc"),
  control({ SECONDARY_EXEC_SHADOW_VMCS }, "VMCS shadowing", "shadow_vmcs"),
  unshown({ SECONDARY_EXEC_ENCLS_EXITING }, "enable ENCLS exiting", "encls_exiting"),
  unshown({ SECONDARY_EXEC_RDSEED_EXITING }, "RDSEED exiting", "rdseed_exiting"),
  control({ SECONDARY_EXEC_ENABLE_PML }, "enable PML", "pml"),
  control({ SECONDARY_EXEC_EPT_VIOLATION_VE }, "EPT-violation #VE", "ept_violation_ve"),
  unshown({ SECONDARY_EXEC_PT_CONCEAL_VMX }, "conceal VMX from PT", "pt_conceal_vmx"),
  unshown({ SECONDARY_EXEC_ENABLE_XSAVES }, "enable XSAVES/XRSTORS", "xsaves"),
  control(
    { SECONDARY_EXEC_MODE_BASED_EPT_EXEC },
    "mode-based execute control for EPT",
    "ept_mode_based_exec",
  ),
  unshown({ SECONDARY_EXEC_PT_USE_GPA }, "Intel PT uses guest physical addresses", "pt_use_gpa"),
  control({ SECONDARY_EXEC_TSC_SCALING }, "use TSC scaling", "tsc_scaling"),
  control({ SECONDARY_EXEC_ENABLE_USR_WAIT_PAUSE }, "enable user wait and pause", "usr_wait_pause"),
  unshown({ SECONDARY_EXEC_BUS_LOCK_DETECTION }, "VMM bus-lock detection", "bus_lock_detection"),
  control(
    { SECONDARY_EXEC_NOTIFY_VM_EXITING },
    "instruction timeout",
    "notify_vm_exiting",
  ),
];

/** Tertiary processor-based VM-execution controls, a 64-bit word (SDM 3C 25.6.2, table 25-8). */
export const TERTIARY_CONTROLS: readonly VmxControl[] = [
  control({ TERTIARY_EXEC_IPI_VIRT }, "IPI virtualization", "ipi_virt"),
];

/** Primary VM-exit controls (SDM 3C 25.7.1, table 25-13). */
export const EXIT_CONTROLS: readonly VmxControl[] = [
  control({ VM_EXIT_SAVE_DEBUG_CONTROLS }, "save debug controls"),
  control({ VM_EXIT_HOST_ADDR_SPACE_SIZE }, "host address-space size"),
  control({ VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL }, "load IA32_PERF_GLOBAL_CTRL"),
  control({ VM_EXIT_ACK_INTR_ON_EXIT }, "acknowledge interrupt on exit"),
  control({ VM_EXIT_SAVE_IA32_PAT }, "save IA32_PAT"),
  control({ VM_EXIT_LOAD_IA32_PAT }, "load IA32_PAT"),
  control({ VM_EXIT_SAVE_IA32_EFER }, "save IA32_EFER"),
  control({ VM_EXIT_LOAD_IA32_EFER }, "load IA32_EFER"),
  control({ VM_EXIT_SAVE_VMX_PREEMPTION_TIMER }, "save VMX-preemption timer value"),
  control({ VM_EXIT_CLEAR_BNDCFGS }, "clear IA32_BNDCFGS"),
  control({ VM_EXIT_PT_CONCEAL_PIP }, "conceal VMX from PT"),
  control({ VM_EXIT_CLEAR_IA32_RTIT_CTL }, "clear IA32_RTIT_CTL"),
  control({ VM_EXIT_LOAD_CET_STATE }, "load CET state"),
];

/** VM-entry controls (SDM 3C 25.8.1, table 25-16). */
export const ENTRY_CONTROLS: readonly VmxControl[] = [
  control({ VM_ENTRY_LOAD_DEBUG_CONTROLS }, "load debug controls"),
  control({ VM_ENTRY_IA32E_MODE }, "IA-32e mode guest"),
  control({ VM_ENTRY_SMM }, "entry to SMM"),
  control({ VM_ENTRY_DEACT_DUAL_MONITOR }, "deactivate dual-monitor treatment"),
  control({ VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL }, "load IA32_PERF_GLOBAL_CTRL"),
  control({ VM_ENTRY_LOAD_IA32_PAT }, "load IA32_PAT"),
  control({ VM_ENTRY_LOAD_IA32_EFER }, "load IA32_EFER"),
  control({ VM_ENTRY_LOAD_BNDCFGS }, "load IA32_BNDCFGS"),
  control({ VM_ENTRY_PT_CONCEAL_PIP }, "conceal VMX from PT"),
  control({ VM_ENTRY_LOAD_IA32_RTIT_CTL }, "load IA32_RTIT_CTL"),
  control({ VM_ENTRY_LOAD_CET_STATE }, "load CET state"),
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
