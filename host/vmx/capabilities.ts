/**
 * What VMX a processor has, as its capability MSRs say it (SDM 3D appendix A), from the list of its features. VM-exit
 * and VM-entry controls for MPX, Intel PT and CET, which are no features of Linux's lists, it does not have.
 *
 * @module
 */

import {
  CPU_BASED_ALWAYSON_WITHOUT_TRUE_MSR,
  CPU_BASED_CR3_LOAD_EXITING,
  CPU_BASED_CR3_STORE_EXITING,
  type EptFeatures,
  HIGH,
  IA32_VMX_BASIC,
  IA32_VMX_CR0_FIXED0,
  IA32_VMX_CR0_FIXED1,
  IA32_VMX_CR4_FIXED0,
  IA32_VMX_CR4_FIXED1,
  IA32_VMX_ENTRY_CTLS,
  IA32_VMX_EPT_VPID_CAP,
  IA32_VMX_EXIT_CTLS,
  IA32_VMX_MISC,
  IA32_VMX_PINBASED_CTLS,
  IA32_VMX_PROCBASED_CTLS,
  IA32_VMX_PROCBASED_CTLS2,
  IA32_VMX_PROCBASED_CTLS3,
  IA32_VMX_TRUE_ENTRY_CTLS,
  IA32_VMX_TRUE_EXIT_CTLS,
  IA32_VMX_TRUE_PINBASED_CTLS,
  IA32_VMX_TRUE_PROCBASED_CTLS,
  IA32_VMX_VMCS_ENUM,
  IA32_VMX_VMFUNC,
  MEMORY_TYPE_WB,
  PIN_BASED_ALWAYSON_WITHOUT_TRUE_MSR,
  u64,
  VM_ENTRY_ALWAYSON_WITHOUT_TRUE_MSR,
  VM_ENTRY_DEACT_DUAL_MONITOR,
  VM_ENTRY_IA32E_MODE,
  VM_ENTRY_LOAD_DEBUG_CONTROLS,
  VM_ENTRY_LOAD_IA32_EFER,
  VM_ENTRY_LOAD_IA32_PAT,
  VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL,
  VM_ENTRY_SMM,
  VM_EXIT_ACK_INTR_ON_EXIT,
  VM_EXIT_ALWAYSON_WITHOUT_TRUE_MSR,
  VM_EXIT_HOST_ADDR_SPACE_SIZE,
  VM_EXIT_LOAD_IA32_EFER,
  VM_EXIT_LOAD_IA32_PAT,
  VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL,
  VM_EXIT_SAVE_DEBUG_CONTROLS,
  VM_EXIT_SAVE_IA32_EFER,
  VM_EXIT_SAVE_IA32_PAT,
  VM_EXIT_SAVE_VMX_PREEMPTION_TIMER,
  VMCS_FIELDS,
  VMX_BASIC_INOUT,
  VMX_BASIC_MEM_TYPE_SHIFT,
  VMX_BASIC_TRUE_CTLS,
  VMX_CONTROLS,
  VMX_EPT_1GB_PAGE_BIT,
  VMX_EPT_2MB_PAGE_BIT,
  VMX_EPT_AD_BIT,
  VMX_EPT_EXECUTE_ONLY_BIT,
  VMX_EPT_EXTENT_CONTEXT_BIT,
  VMX_EPT_EXTENT_GLOBAL_BIT,
  VMX_EPT_INVEPT_BIT,
  VMX_EPT_PAGE_WALK_4_BIT,
  VMX_EPT_PAGE_WALK_5_BIT,
  VMX_EPTP_UC_BIT,
  VMX_EPTP_WB_BIT,
  VMX_FEATURES,
  VMX_VPID_EXTENT_GLOBAL_CONTEXT_BIT,
  VMX_VPID_EXTENT_INDIVIDUAL_ADDR_BIT,
  VMX_VPID_EXTENT_SINGLE_CONTEXT_BIT,
  VMX_VPID_EXTENT_SINGLE_NON_GLOBAL_BIT,
  VMX_VPID_INVVPID_BIT,
  type VmxControlWord,
} from "../../abi/mod.ts";
import { completeFeatures, type VmxProcessor } from "./processors.ts";

/** Which settings of a 32-bit control word VM entry takes. */
export interface AllowedSettings {
  /** Bits that must be 1. */
  readonly mustBe1: number;
  /** Bits that may be 1. */
  readonly mayBe1: number;
}

/** How a processor is made. */
export interface VmxCapabilitiesOptions {
  /** MAXPHYADDR; 46 by default. */
  readonly physicalAddressBits?: number;
  /** Whether MSRs 0x48d to 0x490 say which default1 bits may be 0; true by default. */
  readonly trueControls?: boolean;
}

type HalfWord = "pin" | "primary" | "exit" | "entry";
const DEFAULT1: Readonly<Record<HalfWord, number>> = {
  pin: PIN_BASED_ALWAYSON_WITHOUT_TRUE_MSR,
  primary: CPU_BASED_ALWAYSON_WITHOUT_TRUE_MSR,
  exit: VM_EXIT_ALWAYSON_WITHOUT_TRUE_MSR,
  entry: VM_ENTRY_ALWAYSON_WITHOUT_TRUE_MSR,
};
/** Default1 bits that processors let be 0: those whose meaning is known (SDM 3D A.2). */
const MAY_BE_0: Readonly<Record<HalfWord, number>> = {
  pin: 0,
  primary: CPU_BASED_CR3_LOAD_EXITING | CPU_BASED_CR3_STORE_EXITING,
  exit: VM_EXIT_SAVE_DEBUG_CONTROLS,
  entry: VM_ENTRY_LOAD_DEBUG_CONTROLS,
};

const EXIT_CONTROLS_ALWAYS = VM_EXIT_SAVE_DEBUG_CONTROLS | VM_EXIT_HOST_ADDR_SPACE_SIZE |
  VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL | VM_EXIT_ACK_INTR_ON_EXIT | VM_EXIT_SAVE_IA32_PAT |
  VM_EXIT_LOAD_IA32_PAT |
  VM_EXIT_SAVE_IA32_EFER | VM_EXIT_LOAD_IA32_EFER;
const ENTRY_CONTROLS_ALWAYS = VM_ENTRY_LOAD_DEBUG_CONTROLS | VM_ENTRY_IA32E_MODE | VM_ENTRY_SMM |
  VM_ENTRY_DEACT_DUAL_MONITOR | VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL | VM_ENTRY_LOAD_IA32_PAT |
  VM_ENTRY_LOAD_IA32_EFER;

/** The VMCS revision of this processor, its region's size in bytes, and its memory type, write-back. */
const REVISION = 1;
const VMCS_SIZE = 4096;
const WRITE_BACK = BigInt(MEMORY_TYPE_WB);
/**
 * IA32_VMX_MISC (SDM 3D A.6): the preemption timer counts each 2^5 cycles; a VM exit stores EFER.LMA (bit 5); activity states HLT,
 * shutdown and wait-for-SIPI (bits 8:6); four CR3 targets (bits 24:16).
 */
const MISC = 5n | (1n << 5n) | (7n << 6n) | (4n << 16n);
/** PE, NE and PG (SDM 3C 24.8). */
const CR0_FIXED0 = 0x8000_0021n;
const CR0_FIXED1 = 0xffff_ffffn;
/** VMXE (SDM 3C 24.8). */
const CR4_FIXED0 = 0x2000n;
/** All flags up to SMEP and SMAP (SDM 3A 2.5), but for UMIP, LA57 and KL, which such a processor has not, and bit 15. */
const CR4_FIXED1 = 0x3767ffn;

/** A processor's VMX capabilities: immutable. */
export class VmxCapabilities {
  /** The features, in the order of {@linkcode VMX_FEATURES}. */
  readonly features: readonly string[];
  /** MAXPHYADDR: a physical address has this many bits. */
  readonly physicalAddressBits: number;
  /** EPT's half of IA32_VMX_EPT_VPID_CAP. */
  readonly ept: number;
  /** The VPIDs' half. */
  readonly vpid: number;
  readonly #features: ReadonlySet<string>;
  readonly #trueControls: boolean;
  /** The first address that is too big: a power, which hardware that follows pointers would have to raise again and again. */
  readonly #addressEnd: number;
  /** Its upper half. */
  readonly #highEnd: number;

  /**
   * A processor with these features: a list of names, as a "vmx flags" line of /proc/cpuinfo has it, with those that
   * it does not show; or the name of a list. Throws `RangeError` for a name that is no feature, and for a feature
   * without what it needs.
   */
  constructor(features: readonly string[] | VmxProcessor, options: VmxCapabilitiesOptions = {}) {
    this.#features = completeFeatures(features);
    this.features = VMX_FEATURES.filter(({ name }) => this.#features.has(name)).map(({ name }) => name);
    this.physicalAddressBits = addressBits(options.physicalAddressBits ?? 46);
    this.#addressEnd = 2 ** this.physicalAddressBits;
    this.#highEnd = this.#addressEnd / HIGH | 0;
    this.#trueControls = options.trueControls ?? true;
    this.ept = this.#eptCapabilities();
    this.vpid = this.#vpidCapabilities();
  }

  /** Whether the processor has a feature. */
  has(feature: string): boolean {
    return this.#features.has(feature);
  }

  /** What VM entry takes in a 32-bit control word: as the TRUE MSRs say, where there are such (SDM 3D A.2). */
  allowed(word: Exclude<VmxControlWord, "tertiary">): AllowedSettings {
    const mayBe1 = this.#known(word);
    if (word === "secondary") return { mustBe1: 0, mayBe1 };
    const free = this.#trueControls ? MAY_BE_0[word] : 0;
    return { mustBe1: DEFAULT1[word] & ~free, mayBe1: mayBe1 | DEFAULT1[word] };
  }

  /** The tertiary controls that may be 1; 0 where the processor has none. */
  get tertiary(): bigint {
    return BigInt(this.#known("tertiary"));
  }

  /** RDMSR of a capability MSR; undefined where it raises #GP, as the processor does not have it. */
  read(msr: number): bigint | undefined {
    switch (msr) {
      case IA32_VMX_BASIC:
        return BigInt(REVISION) | (BigInt(VMCS_SIZE) << 32n) |
          (WRITE_BACK << BigInt(VMX_BASIC_MEM_TYPE_SHIFT)) |
          VMX_BASIC_INOUT | (this.#trueControls ? VMX_BASIC_TRUE_CTLS : 0n);
      case IA32_VMX_PINBASED_CTLS:
        return this.#halves("pin", 0);
      case IA32_VMX_PROCBASED_CTLS:
        return this.#halves("primary", 0);
      case IA32_VMX_EXIT_CTLS:
        return this.#halves("exit", 0);
      case IA32_VMX_ENTRY_CTLS:
        return this.#halves("entry", 0);
      case IA32_VMX_MISC:
        return MISC;
      case IA32_VMX_CR0_FIXED0:
        return CR0_FIXED0;
      case IA32_VMX_CR0_FIXED1:
        return CR0_FIXED1;
      case IA32_VMX_CR4_FIXED0:
        return CR4_FIXED0;
      case IA32_VMX_CR4_FIXED1:
        return CR4_FIXED1;
      case IA32_VMX_VMCS_ENUM:
        return BigInt(Math.max(...VMCS_FIELDS.map(({ encoding }) => encoding & 0x3fe)));
      case IA32_VMX_PROCBASED_CTLS2:
        return this.has("sec_controls") ? u64(0, this.#known("secondary")) : undefined;
      case IA32_VMX_EPT_VPID_CAP:
        return this.has("ept") || this.has("vpid") ? u64(this.ept, this.vpid) : undefined;
      case IA32_VMX_TRUE_PINBASED_CTLS:
        return this.#trueHalves("pin");
      case IA32_VMX_TRUE_PROCBASED_CTLS:
        return this.#trueHalves("primary");
      case IA32_VMX_TRUE_EXIT_CTLS:
        return this.#trueHalves("exit");
      case IA32_VMX_TRUE_ENTRY_CTLS:
        return this.#trueHalves("entry");
      case IA32_VMX_VMFUNC:
        return this.has("vmfunc") ? (this.has("eptp_switching") ? 1n : 0n) : undefined;
      case IA32_VMX_PROCBASED_CTLS3:
        return this.has("tertiary_controls") ? this.tertiary : undefined;
      default:
        return undefined;
    }
  }

  /** Whether an address has bits that this processor's physical addresses have not. */
  beyond(address: number): boolean {
    return address >= this.#addressEnd;
  }

  /** The same of an address's upper half. */
  beyondHigh(high: number): boolean {
    return high >= this.#highEnd;
  }

  #trueHalves(word: HalfWord): bigint | undefined {
    return this.#trueControls ? this.#halves(word, MAY_BE_0[word]) : undefined;
  }

  #halves(word: HalfWord, free: number): bigint {
    return u64(DEFAULT1[word] & ~free, this.#known(word) | DEFAULT1[word]);
  }

  /** The controls of a word that the processor knows. */
  #known(word: VmxControlWord): number {
    if (word === "exit") {
      return EXIT_CONTROLS_ALWAYS | (this.has("preemption_timer") ? VM_EXIT_SAVE_VMX_PREEMPTION_TIMER : 0);
    }
    if (word === "entry") return ENTRY_CONTROLS_ALWAYS;
    let known = 0;
    for (const { mask, feature } of VMX_CONTROLS[word]) if (this.has(feature!)) known |= mask;
    return known;
  }

  #eptCapabilities(): number {
    if (!this.has("ept")) return 0;
    return VMX_EPT_PAGE_WALK_4_BIT | VMX_EPTP_UC_BIT | VMX_EPTP_WB_BIT | VMX_EPT_2MB_PAGE_BIT |
      VMX_EPT_INVEPT_BIT |
      VMX_EPT_EXTENT_CONTEXT_BIT | VMX_EPT_EXTENT_GLOBAL_BIT |
      (this.has("ept_x_only") ? VMX_EPT_EXECUTE_ONLY_BIT : 0) |
      (this.has("ept_5level") ? VMX_EPT_PAGE_WALK_5_BIT : 0) |
      (this.has("ept_1gb") ? VMX_EPT_1GB_PAGE_BIT : 0) |
      (this.has("ept_ad") ? VMX_EPT_AD_BIT : 0);
  }

  /** What walks of EPT depend on. Bit 22, advanced exit information, came with mode-based execution control. */
  get eptFeatures(): EptFeatures {
    return {
      maxPhysicalBits: this.physicalAddressBits,
      executeOnly: (this.ept & VMX_EPT_EXECUTE_ONLY_BIT) !== 0,
      pages2M: (this.ept & VMX_EPT_2MB_PAGE_BIT) !== 0,
      pages1G: (this.ept & VMX_EPT_1GB_PAGE_BIT) !== 0,
      accessedDirty: (this.ept & VMX_EPT_AD_BIT) !== 0,
      advancedExits: (this.ept & (1 << 22)) !== 0,
    };
  }

  #vpidCapabilities(): number {
    if (!this.has("vpid") || !this.has("invvpid")) return 0;
    return VMX_VPID_INVVPID_BIT | VMX_VPID_EXTENT_INDIVIDUAL_ADDR_BIT | VMX_VPID_EXTENT_SINGLE_CONTEXT_BIT |
      VMX_VPID_EXTENT_GLOBAL_CONTEXT_BIT | VMX_VPID_EXTENT_SINGLE_NON_GLOBAL_BIT;
  }
}

function addressBits(bits: number): number {
  if (Number.isInteger(bits) && bits >= 32 && bits <= 52) return bits;
  throw new RangeError(`Cannot build a processor with ${bits} physical-address bits: allowed are 32 to 52`);
}
