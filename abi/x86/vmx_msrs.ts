/**
 * The MSRs that say what VMX a processor has (SDM 3D appendix A), and the one that firmware turns it on with
 * (SDM 3C 24.7).
 *
 *     63                              32 31                               0
 *     +---------------------------------+----------------------------------+
 *     | allowed-1: 0 means must be 0    | allowed-0: 1 means must be 1     |  a 32-bit control word
 *     +---------------------------------+----------------------------------+
 *     | allowed-1: 0 means must be 0                                       |  IA32_VMX_PROCBASED_CTLS3
 *     +--------------------------------------------------------------------+
 *
 * @module
 */

/** IA32_FEATURE_CONTROL. */
export const IA32_FEAT_CTL = 0x3a;
/** IA32_FEATURE_CONTROL bit 0: locked until the next reset. VMXON raises #GP while it is clear. */
export const FEAT_CTL_LOCKED = 1 << 0;
/** IA32_FEATURE_CONTROL bit 1: VMXON in SMX operation, where a measured launch (TXT) has been. */
export const FEAT_CTL_VMX_ENABLED_INSIDE_SMX = 1 << 1;
/** IA32_FEATURE_CONTROL bit 2: VMXON outside SMX operation. */
export const FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX = 1 << 2;

/** Basic VMX information (A.1). */
export const IA32_VMX_BASIC = 0x480;
/** Pin-based VM-execution controls (A.3.1). */
export const IA32_VMX_PINBASED_CTLS = 0x481;
/** Primary processor-based VM-execution controls (A.3.2). */
export const IA32_VMX_PROCBASED_CTLS = 0x482;
/** Primary VM-exit controls (A.4.1). */
export const IA32_VMX_EXIT_CTLS = 0x483;
/** VM-entry controls (A.5). */
export const IA32_VMX_ENTRY_CTLS = 0x484;
/** Miscellaneous data (A.6). */
export const IA32_VMX_MISC = 0x485;
/** Bits of CR0 that must be 1 (A.7). */
export const IA32_VMX_CR0_FIXED0 = 0x486;
/** Bits of CR0 that may be 1. */
export const IA32_VMX_CR0_FIXED1 = 0x487;
/** Bits of CR4 that must be 1 (A.8). */
export const IA32_VMX_CR4_FIXED0 = 0x488;
/** Bits of CR4 that may be 1. */
export const IA32_VMX_CR4_FIXED1 = 0x489;
/** The highest index of a VMCS field, in bits 9:1 (A.9). */
export const IA32_VMX_VMCS_ENUM = 0x48a;
/** Secondary processor-based VM-execution controls (A.3.3). */
export const IA32_VMX_PROCBASED_CTLS2 = 0x48b;
/** EPT in the low half, VPIDs in the high half (A.10). */
export const IA32_VMX_EPT_VPID_CAP = 0x48c;
/** Pin-based controls, where bits of the default1 class may be 0. */
export const IA32_VMX_TRUE_PINBASED_CTLS = 0x48d;
/** Primary processor-based controls, likewise. */
export const IA32_VMX_TRUE_PROCBASED_CTLS = 0x48e;
/** VM-exit controls, likewise. */
export const IA32_VMX_TRUE_EXIT_CTLS = 0x48f;
/** VM-entry controls, likewise. */
export const IA32_VMX_TRUE_ENTRY_CTLS = 0x490;
/** VM functions (A.11). */
export const IA32_VMX_VMFUNC = 0x491;
/** Tertiary processor-based VM-execution controls (A.3.4). */
export const IA32_VMX_PROCBASED_CTLS3 = 0x492;

/** IA32_VMX_BASIC bits 53:50: the memory type of a VMCS, 6 for write-back. */
export const VMX_BASIC_MEM_TYPE_SHIFT = 50;
/** IA32_VMX_BASIC bit 54: VM exits for INS and OUTS say which. */
export const VMX_BASIC_INOUT: bigint = 1n << 54n;
/** IA32_VMX_BASIC bit 55: default1 bits may be 0, and MSRs 0x48d to 0x490 say which. */
export const VMX_BASIC_TRUE_CTLS: bigint = 1n << 55n;

/** The default1 class of the pin-based controls (A.2): bits that are 1 where nobody knows them. */
export const PIN_BASED_ALWAYSON_WITHOUT_TRUE_MSR = 0x0000_0016;
/** The default1 class of the primary processor-based controls. */
export const CPU_BASED_ALWAYSON_WITHOUT_TRUE_MSR = 0x0401_e172;
/** The default1 class of the VM-exit controls. */
export const VM_EXIT_ALWAYSON_WITHOUT_TRUE_MSR = 0x0003_6dff;
/** The default1 class of the VM-entry controls. */
export const VM_ENTRY_ALWAYSON_WITHOUT_TRUE_MSR = 0x0000_11ff;

/** IA32_VMX_EPT_VPID_CAP bit 0: execute-only translations. */
export const VMX_EPT_EXECUTE_ONLY_BIT = 1 << 0;
/** IA32_VMX_EPT_VPID_CAP bit 6: page walks of four levels. */
export const VMX_EPT_PAGE_WALK_4_BIT = 1 << 6;
/** IA32_VMX_EPT_VPID_CAP bit 7: page walks of five levels. */
export const VMX_EPT_PAGE_WALK_5_BIT = 1 << 7;
/** IA32_VMX_EPT_VPID_CAP bit 8: EPT structures may be uncacheable. */
export const VMX_EPTP_UC_BIT = 1 << 8;
/** IA32_VMX_EPT_VPID_CAP bit 14: EPT structures may be write-back. */
export const VMX_EPTP_WB_BIT = 1 << 14;
/** IA32_VMX_EPT_VPID_CAP bit 16: pages of 2 MiB. */
export const VMX_EPT_2MB_PAGE_BIT = 1 << 16;
/** IA32_VMX_EPT_VPID_CAP bit 17: pages of 1 GiB. */
export const VMX_EPT_1GB_PAGE_BIT = 1 << 17;
/** IA32_VMX_EPT_VPID_CAP bit 20: INVEPT. */
export const VMX_EPT_INVEPT_BIT = 1 << 20;
/** IA32_VMX_EPT_VPID_CAP bit 21: accessed and dirty flags. */
export const VMX_EPT_AD_BIT = 1 << 21;
/** IA32_VMX_EPT_VPID_CAP bit 25: single-context INVEPT. */
export const VMX_EPT_EXTENT_CONTEXT_BIT = 1 << 25;
/** IA32_VMX_EPT_VPID_CAP bit 26: all-context INVEPT. */
export const VMX_EPT_EXTENT_GLOBAL_BIT = 1 << 26;
/** IA32_VMX_EPT_VPID_CAP bit 32, here of the high half: INVVPID. */
export const VMX_VPID_INVVPID_BIT = 1 << 0;
/** IA32_VMX_EPT_VPID_CAP bit 40, here of the high half: individual-address INVVPID. */
export const VMX_VPID_EXTENT_INDIVIDUAL_ADDR_BIT = 1 << 8;
/** IA32_VMX_EPT_VPID_CAP bit 41, here of the high half: single-context INVVPID. */
export const VMX_VPID_EXTENT_SINGLE_CONTEXT_BIT = 1 << 9;
/** IA32_VMX_EPT_VPID_CAP bit 42, here of the high half: all-context INVVPID. */
export const VMX_VPID_EXTENT_GLOBAL_CONTEXT_BIT = 1 << 10;
/** IA32_VMX_EPT_VPID_CAP bit 43, here of the high half: single-context INVVPID that keeps globals. */
export const VMX_VPID_EXTENT_SINGLE_NON_GLOBAL_BIT = 1 << 11;
