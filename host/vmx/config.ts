/**
 * Which controls KVM uses on a processor: setup_vmcs_config (arch/x86/kvm/vmx/vmx.c). The sets are v6.19's; a host of an
 * earlier year has them without the controls that it did not know yet, as far as they are about interrupts.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { highOf, lowOf, VMX_CONTROLS, type VmxControlWord } from "../../abi/mod.ts";
import type { HostBehaviour } from "../semantics.ts";
import type { VmxCapabilities } from "./capabilities.ts";

/** The controls that KVM uses on a processor: immutable. Control words are signed 32-bit words. */
export interface VmcsConfig {
  /** Pin-based. */
  readonly pin: number;
  /** Primary processor-based. */
  readonly primary: number;
  /** Secondary processor-based. */
  readonly secondary: number;
  /** Tertiary processor-based, 64 bits. */
  readonly tertiary: bigint;
  /** VM-exit. */
  readonly exit: number;
  /** VM-entry. */
  readonly entry: number;
  /** Controls that the processor has and KVM would use, and why it does not. */
  readonly dropped: readonly DroppedControl[];
}

/** A control that KVM would use if it could. */
export interface DroppedControl {
  /** Its word. */
  readonly word: VmxControlWord;
  /** Its mask in that word. */
  readonly mask: number;
  /** Why it is not used. */
  readonly why: string;
}

/** KVM cannot run on this processor: setup_vmcs_config returns -EIO. */
export class VmxUnusable extends Error {
  /** The error's name. */
  override readonly name = "VmxUnusable";

  /** `why` KVM cannot use it. */
  constructor(why: string) {
    super(`Cannot set up VMX: ${why}`);
  }
}

/** What KVM cannot do without (KVM_REQUIRED_VMX_*), and what it uses where it is there (KVM_OPTIONAL_VMX_*). */
interface Wanted {
  readonly required: number;
  readonly optional: number;
}

const PIN: Wanted = {
  required: abi.PIN_BASED_EXT_INTR_MASK | abi.PIN_BASED_NMI_EXITING,
  optional: abi.PIN_BASED_VIRTUAL_NMIS | abi.PIN_BASED_POSTED_INTR | abi.PIN_BASED_VMX_PREEMPTION_TIMER,
};
const PRIMARY: Wanted = {
  required: abi.CPU_BASED_HLT_EXITING | abi.CPU_BASED_CR3_LOAD_EXITING | abi.CPU_BASED_CR3_STORE_EXITING |
    abi.CPU_BASED_UNCOND_IO_EXITING | abi.CPU_BASED_MOV_DR_EXITING | abi.CPU_BASED_USE_TSC_OFFSETTING |
    abi.CPU_BASED_MWAIT_EXITING | abi.CPU_BASED_MONITOR_EXITING | abi.CPU_BASED_INVLPG_EXITING |
    abi.CPU_BASED_RDPMC_EXITING | abi.CPU_BASED_INTR_WINDOW_EXITING | abi.CPU_BASED_CR8_LOAD_EXITING |
    abi.CPU_BASED_CR8_STORE_EXITING,
  optional: abi.CPU_BASED_RDTSC_EXITING | abi.CPU_BASED_TPR_SHADOW | abi.CPU_BASED_USE_IO_BITMAPS |
    abi.CPU_BASED_MONITOR_TRAP_FLAG | abi.CPU_BASED_USE_MSR_BITMAPS | abi.CPU_BASED_NMI_WINDOW_EXITING |
    abi.CPU_BASED_PAUSE_EXITING | abi.CPU_BASED_ACTIVATE_SECONDARY_CONTROLS |
    abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS,
};
/** EPT-violation #VE is among them, and dropped unless CONFIG_KVM_INTEL_PROVE_VE is set: left out here. */
const SECONDARY: Wanted = {
  required: 0,
  optional: abi.SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES | abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE |
    abi.SECONDARY_EXEC_WBINVD_EXITING | abi.SECONDARY_EXEC_ENABLE_VPID | abi.SECONDARY_EXEC_ENABLE_EPT |
    abi.SECONDARY_EXEC_UNRESTRICTED_GUEST | abi.SECONDARY_EXEC_PAUSE_LOOP_EXITING | abi.SECONDARY_EXEC_DESC |
    abi.SECONDARY_EXEC_ENABLE_RDTSCP | abi.SECONDARY_EXEC_ENABLE_INVPCID |
    abi.SECONDARY_EXEC_APIC_REGISTER_VIRT | abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY |
    abi.SECONDARY_EXEC_SHADOW_VMCS | abi.SECONDARY_EXEC_ENABLE_XSAVES | abi.SECONDARY_EXEC_RDSEED_EXITING |
    abi.SECONDARY_EXEC_RDRAND_EXITING | abi.SECONDARY_EXEC_ENABLE_PML | abi.SECONDARY_EXEC_TSC_SCALING |
    abi.SECONDARY_EXEC_ENABLE_USR_WAIT_PAUSE | abi.SECONDARY_EXEC_PT_USE_GPA |
    abi.SECONDARY_EXEC_PT_CONCEAL_VMX | abi.SECONDARY_EXEC_ENABLE_VMFUNC |
    abi.SECONDARY_EXEC_BUS_LOCK_DETECTION | abi.SECONDARY_EXEC_NOTIFY_VM_EXITING |
    abi.SECONDARY_EXEC_ENCLS_EXITING,
};
const TERTIARY = BigInt(abi.TERTIARY_EXEC_IPI_VIRT);
const EXIT: Wanted = {
  required: abi.VM_EXIT_SAVE_DEBUG_CONTROLS | abi.VM_EXIT_ACK_INTR_ON_EXIT | abi.VM_EXIT_HOST_ADDR_SPACE_SIZE,
  optional: abi.VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL | abi.VM_EXIT_SAVE_IA32_PAT | abi.VM_EXIT_LOAD_IA32_PAT |
    abi.VM_EXIT_SAVE_IA32_EFER | abi.VM_EXIT_SAVE_VMX_PREEMPTION_TIMER | abi.VM_EXIT_LOAD_IA32_EFER |
    abi.VM_EXIT_CLEAR_BNDCFGS | abi.VM_EXIT_PT_CONCEAL_PIP | abi.VM_EXIT_CLEAR_IA32_RTIT_CTL |
    abi.VM_EXIT_LOAD_CET_STATE,
};
const ENTRY: Wanted = {
  required: abi.VM_ENTRY_LOAD_DEBUG_CONTROLS | abi.VM_ENTRY_IA32E_MODE,
  optional: abi.VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL | abi.VM_ENTRY_LOAD_IA32_PAT |
    abi.VM_ENTRY_LOAD_IA32_EFER |
    abi.VM_ENTRY_LOAD_BNDCFGS | abi.VM_ENTRY_PT_CONCEAL_PIP | abi.VM_ENTRY_LOAD_IA32_RTIT_CTL |
    abi.VM_ENTRY_LOAD_CET_STATE,
};
/** What an entry loads, the exit has to restore or clear. */
const ENTRY_EXIT_PAIRS: readonly (readonly [entry: number, exit: number])[] = [
  [abi.VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL, abi.VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL],
  [abi.VM_ENTRY_LOAD_IA32_PAT, abi.VM_EXIT_LOAD_IA32_PAT],
  [abi.VM_ENTRY_LOAD_IA32_EFER, abi.VM_EXIT_LOAD_IA32_EFER],
  [abi.VM_ENTRY_LOAD_BNDCFGS, abi.VM_EXIT_CLEAR_BNDCFGS],
  [abi.VM_ENTRY_LOAD_IA32_RTIT_CTL, abi.VM_EXIT_CLEAR_IA32_RTIT_CTL],
  [abi.VM_ENTRY_LOAD_CET_STATE, abi.VM_EXIT_LOAD_CET_STATE],
];
const NEED_TPR_SHADOW = abi.SECONDARY_EXEC_APIC_REGISTER_VIRT | abi.SECONDARY_EXEC_VIRTUALIZE_X2APIC_MODE |
  abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY;

/** What KVM reads of a processor: RDMSR of its capability MSRs; undefined where that raises #GP. */
export type ReadsCapabilities = Pick<VmxCapabilities, "read">;

/** How controls are chosen. */
export interface VmcsConfigOptions {
  /** What KVM of a year knows; all by default. */
  readonly behaviour?: Pick<HostBehaviour, "apicv" | "tertiaryControls">;
  /** error_on_inconsistent_vmcs_config: an entry control without its exit control is an error; true by default. */
  readonly errorOnInconsistentVmcsConfig?: boolean;
}

/** A configuration in the making. */
class Draft {
  readonly words: Record<Exclude<VmxControlWord, "tertiary">, number> = {
    pin: 0,
    primary: 0,
    secondary: 0,
    exit: 0,
    entry: 0,
  };
  tertiary = 0n;
  readonly dropped: DroppedControl[] = [];

  /** Takes controls out, those that are in. */
  drop(word: Exclude<VmxControlWord, "tertiary">, mask: number, why: string): void {
    const present = this.words[word] & mask;
    if (present === 0) return;
    this.words[word] &= ~mask;
    this.dropped.push({ word, mask: present, why });
  }
}

/**
 * The controls that KVM uses on a processor (setup_vmcs_config). Throws {@linkcode VmxUnusable} where it lacks one that
 * KVM cannot do without, or contradicts itself.
 */
export function setupVmcsConfig(processor: ReadsCapabilities, options: VmcsConfigOptions = {}): VmcsConfig {
  const draft = new Draft();
  const { words } = draft;
  words.primary = adjustVmxControls(processor, "primary", PRIMARY, abi.IA32_VMX_PROCBASED_CTLS);
  if ((words.primary & abi.CPU_BASED_ACTIVATE_SECONDARY_CONTROLS) !== 0) {
    words.secondary = adjustVmxControls(processor, "secondary", SECONDARY, abi.IA32_VMX_PROCBASED_CTLS2);
  }
  forgetUnknown(draft, options);
  if ((words.primary & abi.CPU_BASED_TPR_SHADOW) === 0) {
    draft.drop("secondary", NEED_TPR_SHADOW, "the processor has no TPR shadow (vtpr)");
  }
  draft.drop("secondary", abi.SECONDARY_EXEC_ENCLS_EXITING, "the processor has no SGX");
  checkEptVpid(processor, words.secondary, options.errorOnInconsistentVmcsConfig ?? true);
  if ((words.primary & abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS) !== 0) {
    draft.tertiary = adjustVmxControls64(processor, TERTIARY, abi.IA32_VMX_PROCBASED_CTLS3);
  }
  words.exit = adjustVmxControls(processor, "exit", EXIT, abi.IA32_VMX_EXIT_CTLS);
  words.pin = adjustVmxControls(processor, "pin", PIN, abi.IA32_VMX_PINBASED_CTLS);
  if ((words.secondary & abi.SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY) === 0) {
    draft.drop("pin", abi.PIN_BASED_POSTED_INTR, "they need virtual-interrupt delivery (vid)");
  }
  words.entry = adjustVmxControls(processor, "entry", ENTRY, abi.IA32_VMX_ENTRY_CTLS);
  checkPairs(draft, options.errorOnInconsistentVmcsConfig ?? true);
  checkBasic(processor);
  return { ...words, tertiary: draft.tertiary, dropped: draft.dropped };
}

/** Takes out what KVM of the year did not know. */
function forgetUnknown(draft: Draft, { behaviour }: VmcsConfigOptions): void {
  if (behaviour?.apicv === false) {
    draft.drop("secondary", NEED_TPR_SHADOW, "KVM of that year does not know it (it came in v3.9)");
  }
  if (behaviour?.tertiaryControls === false) {
    draft.drop(
      "primary",
      abi.CPU_BASED_ACTIVATE_TERTIARY_CONTROLS,
      "KVM of that year knows no tertiary controls (they came in v6.0)",
    );
  }
}

/** The wanted controls, between the allowed-0 and allowed-1 settings of an MSR (adjust_vmx_controls). */
function adjustVmxControls(
  processor: ReadsCapabilities,
  word: Exclude<VmxControlWord, "tertiary">,
  wanted: Wanted,
  msr: number,
): number {
  const value = rdmsr(processor, msr);
  const controls = ((wanted.required | wanted.optional) & highOf(value)) | lowOf(value);
  const missing = wanted.required & ~controls;
  if (missing !== 0) {
    const names = VMX_CONTROLS[word].filter(({ mask }) => (mask & missing) !== 0).map(({ title }) =>
      `"${title}"`
    );
    throw new VmxUnusable(`the processor lacks ${names.join(", ")}`);
  }
  return controls;
}

/** The tertiary controls' MSR is one 64-bit mask of what may be 1 (adjust_vmx_controls64). */
function adjustVmxControls64(processor: ReadsCapabilities, optional: bigint, msr: number): bigint {
  return optional & rdmsr(processor, msr);
}

function rdmsr(processor: ReadsCapabilities, msr: number): bigint {
  const value = processor.read(msr);
  if (value === undefined) throw new VmxUnusable(`the processor has no MSR ${abi.hex(msr)}`);
  return value;
}

/** Capabilities of EPT or VPIDs without the control are a contradiction. */
function checkEptVpid(processor: ReadsCapabilities, secondary: number, strict: boolean): void {
  if (!strict) return;
  const value = processor.read(abi.IA32_VMX_EPT_VPID_CAP) ?? 0n;
  if ((secondary & abi.SECONDARY_EXEC_ENABLE_EPT) === 0 && lowOf(value) !== 0) {
    throw new VmxUnusable("the processor has capabilities of EPT without EPT");
  }
  if ((secondary & abi.SECONDARY_EXEC_ENABLE_VPID) === 0 && highOf(value) !== 0) {
    throw new VmxUnusable("the processor has capabilities of VPIDs without VPIDs");
  }
}

/** An entry control and its exit control are used together, or not at all. */
function checkPairs(draft: Draft, strict: boolean): void {
  const { words } = draft;
  for (const [entry, exit] of ENTRY_EXIT_PAIRS) {
    if (((words.entry & entry) === 0) === ((words.exit & exit) === 0)) continue;
    if (strict) {
      throw new VmxUnusable(
        `VM-entry control ${abi.hex(entry)} and VM-exit control ${abi.hex(exit)} are not both there`,
      );
    }
    draft.drop("entry", entry, "its VM-exit control is not there");
    draft.drop("exit", exit, "its VM-entry control is not there");
  }
}

/** KVM keeps a VMCS in one page of write-back memory, at any address. */
function checkBasic(processor: ReadsCapabilities): void {
  const basic = rdmsr(processor, abi.IA32_VMX_BASIC);
  if (Number((basic >> 32n) & 0x1fffn) > 4096) throw new VmxUnusable("a VMCS does not fit into a page");
  if (((basic >> 48n) & 1n) !== 0n) throw new VmxUnusable("addresses in a VMCS have 32 bits");
  if (((basic >> BigInt(abi.VMX_BASIC_MEM_TYPE_SHIFT)) & 0xfn) !== BigInt(abi.MEMORY_TYPE_WB)) {
    throw new VmxUnusable("a VMCS cannot be in write-back memory");
  }
}
