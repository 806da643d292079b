/**
 * Registers that KVM gives every guest, whatever its CPUID says, and that this host does not model: an access is an
 * error that names them, where a register that nobody knows raises #GP.
 *
 * @module
 */

/** Their names (SDM volume 4, table 2-2), by index. */
export const UNMODELLED_MSRS: ReadonlyMap<number, string> = new Map([
  [0x017, "IA32_PLATFORM_ID"],
  [0x08b, "IA32_BIOS_SIGN_ID"],
  [0x0ce, "MSR_PLATFORM_INFO"],
  [0x0fe, "IA32_MTRRCAP"],
  [0x174, "IA32_SYSENTER_CS"],
  [0x175, "IA32_SYSENTER_ESP"],
  [0x176, "IA32_SYSENTER_EIP"],
  [0x179, "IA32_MCG_CAP"],
  [0x17a, "IA32_MCG_STATUS"],
  [0x1a0, "IA32_MISC_ENABLE"],
  [0x1d9, "IA32_DEBUGCTL"],
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
]);

/** KVM has eight variable memory-type ranges (KVM_NR_VAR_MTRR). */
function variableRanges(): [index: number, name: string][] {
  return Array.from({ length: 16 }, (_, n) => {
    const name = (n & 1) === 0 ? "IA32_MTRR_PHYSBASE" : "IA32_MTRR_PHYSMASK";
    return [0x200 + n, `${name}${n >> 1}`];
  });
}
