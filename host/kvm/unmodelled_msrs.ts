/**
 * Registers that KVM gives every guest, whatever its CPUID says, and that this host does not model: an access is an
 * error that names them, where a register that nobody knows raises #GP.
 *
 * @module
 */

/** Their names (SDM volume 4, table 2-2, and APM volume 2, appendix A), by index, as kvm_get_msr_common has them. */
export const UNMODELLED_MSRS: ReadonlyMap<number, string> = new Map([
  [0x000, "IA32_P5_MC_ADDR"],
  [0x001, "IA32_P5_MC_TYPE"],
  [0x017, "IA32_PLATFORM_ID"],
  [0x02a, "MSR_EBL_CR_POWERON"],
  [0x02c, "MSR_EBC_FREQUENCY_ID"],
  [0x034, "MSR_SMI_COUNT"],
  [0x08b, "IA32_BIOS_SIGN_ID"],
  ...numbered(0x0c1, 2, "MSR_P6_PERFCTR"),
  [0x0cd, "MSR_FSB_FREQ"],
  [0x0ce, "MSR_PLATFORM_INFO"],
  [0x0fe, "IA32_MTRRCAP"],
  [0x11e, "MSR_BBL_CR_CTL3"],
  [0x140, "MSR_MISC_FEATURES_ENABLES"],
  [0x174, "IA32_SYSENTER_CS"],
  [0x175, "IA32_SYSENTER_ESP"],
  [0x176, "IA32_SYSENTER_EIP"],
  [0x179, "IA32_MCG_CAP"],
  [0x17a, "IA32_MCG_STATUS"],
  ...numbered(0x186, 2, "MSR_P6_EVNTSEL"),
  [0x198, "IA32_PERF_STATUS"],
  [0x199, "IA32_PERF_CTL"],
  [0x1a0, "IA32_MISC_ENABLE"],
  [0x1d9, "IA32_DEBUGCTL"],
  [0x1db, "MSR_LASTBRANCHFROMIP"],
  [0x1dc, "MSR_LASTBRANCHTOIP"],
  [0x1dd, "MSR_LASTINTFROMIP"],
  [0x1de, "MSR_LASTINTTOIP"],
  [0x1fc, "MSR_POWER_CTL"],
  ...variableRanges(),
  [0x250, "IA32_MTRR_FIX64K_00000"],
  [0x258, "IA32_MTRR_FIX16K_80000"],
  [0x259, "IA32_MTRR_FIX16K_A0000"],
  [0x268, "IA32_MTRR_FIX4K_C0000"],
  [0x269, "IA32_MTRR_FIX4K_C8000"],
  [0x26a, "IA32_MTRR_FIX4K_D0000"],
  [0x26b, "IA32_MTRR_FIX4K_D8000"],
  [0x26c, "IA32_MTRR_FIX4K_E0000"],
  [0x26d, "IA32_MTRR_FIX4K_E8000"],
  [0x26e, "IA32_MTRR_FIX4K_F0000"],
  [0x26f, "IA32_MTRR_FIX4K_F8000"],
  [0x277, "IA32_PAT"],
  [0x2ff, "IA32_MTRR_DEF_TYPE"],
  ...machineCheckBanks(),
  [0x606, "MSR_RAPL_POWER_UNIT"],
  [0x611, "MSR_PKG_ENERGY_STATUS"],
  [0x619, "MSR_DRAM_ENERGY_STATUS"],
  [0x639, "MSR_PP0_ENERGY_STATUS"],
  [0x641, "MSR_PP1_ENERGY_STATUS"],
  ...numbered(0xc001_0000, 4, "MSR_K7_EVNTSEL"),
  ...numbered(0xc001_0004, 4, "MSR_K7_PERFCTR"),
  [0xc001_0010, "SYSCFG"],
  [0xc001_0015, "HWCR"],
  [0xc001_001b, "MSR_K7_CLK_CTL"],
  [0xc001_001f, "NB_CFG"],
  [0xc001_0055, "MSR_K8_INT_PENDING_MSG"],
  [0xc001_0058, "MMIO_CFG_BASE_ADDR"],
  [0xc001_0112, "SMM_ADDR"],
  [0xc001_0113, "SMM_MASK"],
  [0xc001_0117, "VM_HSAVE_PA"],
  [0xc001_1022, "DC_CFG"],
  [0xc001_1023, "TW_CFG"],
  [0xc001_102a, "BU_CFG2"],
  [0xc001_102c, "EX_CFG"],
]);

function numbered(first: number, count: number, name: string): [index: number, name: string][] {
  return Array.from({ length: count }, (_, n) => [first + n, `${name}${n}`]);
}

/** A vCPU has 32 banks (KVM_MAX_MCE_BANKS), of four registers each. */
function machineCheckBanks(): [index: number, name: string][] {
  const registers = ["CTL", "STATUS", "ADDR", "MISC"];
  return Array.from({ length: 4 * 32 }, (_, n) => [0x400 + n, `IA32_MC${n >> 2}_${registers[n & 3]}`]);
}

/** KVM has eight variable memory-type ranges (KVM_NR_VAR_MTRR). */
function variableRanges(): [index: number, name: string][] {
  return Array.from({ length: 16 }, (_, n) => {
    const name = (n & 1) === 0 ? "IA32_MTRR_PHYSBASE" : "IA32_MTRR_PHYSMASK";
    return [0x200 + n, `${name}${n >> 1}`];
  });
}
