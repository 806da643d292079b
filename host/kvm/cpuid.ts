/**
 * The CPUID table of a vCPU, as user space gives it with KVM_SET_CPUID2, and its emulation
 * (arch/x86/kvm/cpuid.c).
 *
 * @module
 */

import {
  CPUID_1_ECX_HYPERVISOR,
  CPUID_1_ECX_PCID,
  CPUID_1_ECX_TSC_DEADLINE,
  CPUID_1_ECX_X2APIC,
  CPUID_1_EDX_APIC,
  CPUID_1_EDX_PGE,
  CPUID_7_EBX_INVPCID,
  CPUID_7_EBX_SMAP,
  CPUID_7_EBX_SMEP,
  CPUID_7_EBX_TSC_ADJUST,
  CPUID_7_ECX_RDPID,
  CPUID_EXT1_EDX_GBPAGES,
  CPUID_EXT1_EDX_NX,
  CPUID_EXT1_EDX_RDTSCP,
  CR4_PCIDE,
  CR4_SMAP,
  CR4_SMEP,
  hex,
  HYPERVISOR_CPUID_BASE,
  HYPERVISOR_CPUID_END,
  HYPERVISOR_CPUID_STEP,
  KVM_CPUID_FEATURES,
  KVM_FEATURES,
  KVM_SIGNATURE_EBX,
  KVM_SIGNATURE_ECX,
  KVM_SIGNATURE_EDX,
  type KvmFeature,
  type PagingFeatures,
  RAX,
  RBX,
  RCX,
  RDX,
} from "../../abi/mod.ts";
import { TP } from "../trace/mod.ts";
import type { Vcpu } from "./vcpu.ts";

/** One leaf: EAX, EBX, ECX, EDX. */
export type CpuidLeaf = readonly [eax: number, ebx: number, ecx: number, edx: number];

/** An entry of the table. */
export interface CpuidEntry {
  /** The leaf's number, EAX. */
  readonly leaf: number;
  /** The subleaf, ECX; undefined where the leaf has none. */
  readonly subleaf?: number;
  /** What it answers. */
  readonly registers: CpuidLeaf;
}

/** What a CPU model is made of. */
export interface CpuModel {
  /** Whose CPU. */
  readonly vendor: "intel" | "amd";
  /** The vCPU's APIC ID. */
  readonly apicId: number;
  /** How many vCPUs there are. */
  readonly cpus: number;
  /** Whether it has x2APIC mode. */
  readonly x2apic: boolean;
  /** Whether the APIC timer has TSC-deadline mode. */
  readonly tscDeadline: boolean;
  /** Whether it has INVPCID. */
  readonly invpcid: boolean;
  /** Whether CPUID tells of a hypervisor, and KVM's leaves are there. */
  readonly hypervisor: boolean;
  /** Where KVM's leaves are: 0x40000000, or 0x100 steps above. */
  readonly kvmBase: number;
  /** EAX of KVM's feature leaf. */
  readonly features: number;
  /** EDX of KVM's feature leaf. */
  readonly hints: number;
  /** The TSC's frequency in kHz. */
  readonly tscKhz: number;
}

/** CR4 bits that every processor here has: VME to OSXMMEXCPT. */
const CR4_ALWAYS = 0x7ff;
/** The physical address width that models have. */
const PHYSICAL_BITS = 46;
const MAX_BASIC_LEAF = 0x16;
const MAX_EXTENDED_LEAF = 0x8000_0008;

/** Leaf 7, EBX. */
const CPUID_7_EBX_ALWAYS = CPUID_7_EBX_TSC_ADJUST | CPUID_7_EBX_SMEP | CPUID_7_EBX_SMAP;
/** Leaf 0x80000001, EDX: SYSCALL, NX, pages of 1 GiB, RDTSCP, LM. */
const CPUID_EXT1_EDX_ALWAYS = (1 << 11) | CPUID_EXT1_EDX_NX | CPUID_EXT1_EDX_GBPAGES | CPUID_EXT1_EDX_RDTSCP |
  (1 << 29);

/** "GenuineIntel" and "AuthenticAMD" in the order of EBX, EDX, ECX. */
const VENDOR: Readonly<Record<CpuModel["vendor"], readonly [number, number, number]>> = {
  intel: [0x756e_6547, 0x4965_6e69, 0x6c65_746e],
  amd: [0x6874_7541, 0x6974_6e65, 0x444d_4163],
};

/** The entries of a model: as much of one as guests of this machine look at. */
export function cpuModel(model: CpuModel): CpuidEntry[] {
  const [ebx, edx, ecx] = VENDOR[model.vendor];
  // Family 6 model 85 (Skylake server); family 25 (Zen 3).
  const signature = model.vendor === "intel" ? 0x0005_0654 : 0x00a2_0f12;
  const features1 = (1 << 13) | CPUID_1_ECX_PCID | // CMPXCHG16B
    (model.x2apic ? CPUID_1_ECX_X2APIC : 0) | (model.tscDeadline ? CPUID_1_ECX_TSC_DEADLINE : 0) |
    (model.hypervisor ? CPUID_1_ECX_HYPERVISOR : 0);
  // FPU, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, PAT, MMX, FXSR, SSE, SSE2.
  const features1d = (1 << 0) | (1 << 4) | (1 << 5) | (1 << 6) | (1 << 8) | CPUID_1_EDX_APIC |
    CPUID_1_EDX_PGE |
    (1 << 15) | (1 << 16) | (1 << 23) | (1 << 24) | (1 << 25) | (1 << 26);
  const logical = Math.min(model.cpus, 255);
  const shift = Math.max(1, Math.ceil(Math.log2(Math.max(2, model.cpus))));
  const entries: CpuidEntry[] = [
    { leaf: 0, registers: [MAX_BASIC_LEAF, ebx, ecx, edx] },
    {
      leaf: 1,
      registers: [signature, ((model.apicId & 0xff) << 24) | (logical << 16), features1, features1d],
    },
    {
      leaf: 7,
      subleaf: 0,
      registers: [0, CPUID_7_EBX_ALWAYS | (model.invpcid ? CPUID_7_EBX_INVPCID : 0), 0, 0],
    },
    // Extended topology: one thread a core, all cores in one package.
    { leaf: 0xb, subleaf: 0, registers: [0, 1, 0x100, model.apicId] },
    { leaf: 0xb, subleaf: 1, registers: [shift, model.cpus & 0xffff, 0x201, model.apicId] },
    {
      leaf: MAX_BASIC_LEAF,
      registers: [Math.round(model.tscKhz / 1000), Math.round(model.tscKhz / 1000), 100, 0],
    },
    { leaf: 0x8000_0000, registers: [MAX_EXTENDED_LEAF, 0, 0, 0] },
    { leaf: 0x8000_0001, registers: [signature, 0, 0, CPUID_EXT1_EDX_ALWAYS] },
    { leaf: 0x8000_0007, registers: [0, 0, 0, 1 << 8] }, // Invariant TSC
    { leaf: 0x8000_0008, registers: [PHYSICAL_BITS | (48 << 8), 0, 0, 0] },
  ];
  if (model.hypervisor) {
    entries.push(
      {
        leaf: model.kvmBase,
        registers: [
          model.kvmBase + KVM_CPUID_FEATURES,
          KVM_SIGNATURE_EBX,
          KVM_SIGNATURE_ECX,
          KVM_SIGNATURE_EDX,
        ],
      },
      { leaf: model.kvmBase + KVM_CPUID_FEATURES, registers: [model.features, 0, 0, model.hints] },
    );
  }
  return entries;
}

/** A vCPU's CPUID table, and what KVM reads from it once. */
export class CpuidTable {
  /** Whether the CPU counts as Intel's to KVM. */
  readonly intelCompatible: boolean;
  /** Whether x2APIC mode exists. */
  readonly x2apic: boolean;
  /** Whether the APIC timer has TSC-deadline mode. */
  readonly tscDeadlineTimer: boolean;
  /** MAXPHYADDR. */
  readonly physicalAddressBits: number;
  /** What walks of the guest's tables depend on. */
  readonly paging: PagingFeatures;
  /** The bits that CR4 may hold. */
  readonly cr4: number;
  /** Whether IA32_EFER.NXE may be set. */
  readonly nx: boolean;
  /** Whether there is INVPCID. */
  readonly invpcid: boolean;
  /** EAX of the feature leaf, found as guests find it; 0 without KVM's signature. */
  readonly pvFeatures: number;

  readonly #entries: readonly CpuidEntry[];
  readonly #maxBasic: number;

  /** A table. Throws `RangeError` where two entries are for the same leaf. */
  constructor(entries: readonly CpuidEntry[]) {
    const seen = new Set<string>();
    for (const { leaf, subleaf } of entries) {
      const key = `${hex(leaf)}.${subleaf ?? "any"}`;
      if (seen.has(key)) throw new RangeError(`Cannot set CPUID: leaf ${key} is there twice`);
      seen.add(key);
    }
    this.#entries = entries;
    this.#maxBasic = this.find(0, 0)?.[0] ?? 0;
    const vendor = this.find(0, 0)?.[1] ?? 0;
    this.intelCompatible = vendor === VENDOR.intel[0];
    const leaf1 = this.find(1, 0);
    this.x2apic = leaf1 !== undefined && (leaf1[2] & CPUID_1_ECX_X2APIC) !== 0;
    this.tscDeadlineTimer = leaf1 !== undefined && (leaf1[2] & CPUID_1_ECX_TSC_DEADLINE) !== 0;
    this.physicalAddressBits = (this.find(0x8000_0008, 0)?.[0] ?? 36) & 0xff;
    const extended = this.find(0x8000_0001, 0)?.[3] ?? 0;
    this.nx = (extended & CPUID_EXT1_EDX_NX) !== 0;
    this.paging = {
      maxPhysicalBits: this.physicalAddressBits,
      pages1G: (extended & CPUID_EXT1_EDX_GBPAGES) !== 0,
      amd: !this.intelCompatible,
    };
    const leaf7 = this.find(7, 0)?.[1] ?? 0;
    this.invpcid = (leaf7 & CPUID_7_EBX_INVPCID) !== 0;
    this.cr4 = CR4_ALWAYS | (((leaf1?.[2] ?? 0) & CPUID_1_ECX_PCID) !== 0 ? CR4_PCIDE : 0) |
      ((leaf7 & CPUID_7_EBX_SMEP) !== 0 ? CR4_SMEP : 0) | ((leaf7 & CPUID_7_EBX_SMAP) !== 0 ? CR4_SMAP : 0);
    this.pvFeatures = this.#findPvFeatures();
  }

  /** Whether IA32_TSC_ADJUST can be written. */
  get tscAdjust(): boolean {
    return ((this.find(7, 0)?.[1] ?? 0) & CPUID_7_EBX_TSC_ADJUST) !== 0;
  }

  /** Whether there is IA32_TSC_AUX, as something reads it: RDTSCP or RDPID. */
  get tscAux(): boolean {
    const rdpid = (this.find(7, 0)?.[2] ?? 0) & CPUID_7_ECX_RDPID;
    return rdpid !== 0 || ((this.find(0x8000_0001, 0)?.[3] ?? 0) & CPUID_EXT1_EDX_RDTSCP) !== 0;
  }

  #findPvFeatures(): number {
    for (let base = HYPERVISOR_CPUID_BASE; base < HYPERVISOR_CPUID_END; base += HYPERVISOR_CPUID_STEP) {
      const leaf = this.find(base, 0);
      if (
        leaf !== undefined && leaf[1] === KVM_SIGNATURE_EBX && leaf[2] === KVM_SIGNATURE_ECX &&
        leaf[3] === KVM_SIGNATURE_EDX
      ) {
        return this.find(base | KVM_CPUID_FEATURES, 0)?.[0] ?? 0;
      }
    }
    return 0;
  }

  /** Whether the table offers a paravirtual feature. */
  pvHas(feature: KvmFeature): boolean {
    return (this.pvFeatures & (1 << KVM_FEATURES[feature].bit)) !== 0;
  }

  /** The entry of a leaf and subleaf; undefined where there is none. */
  find(leaf: number, subleaf: number): CpuidLeaf | undefined {
    for (const entry of this.#entries) {
      if (entry.leaf === leaf && (entry.subleaf === undefined || entry.subleaf === subleaf)) {
        return entry.registers;
      }
    }
    return undefined;
  }

  /**
   * The entry that answers for a leaf that is out of range: Intel's CPUs answer with the highest basic leaf, others
   * with zeros (get_out_of_range_cpuid_entry).
   */
  outOfRange(leaf: number, subleaf: number): CpuidLeaf | undefined {
    if (!this.intelCompatible) return undefined;
    const base = rangeBase(leaf);
    const limit = this.find(base, 0)?.[0];
    // A class that is absent counts as out of range as well; one that covers the leaf answers with zeros.
    if (limit !== undefined && leaf <= limit) return undefined;
    return this.find(this.#maxBasic, subleaf);
  }
}

/** The leaf that tells how far a leaf's range goes. */
function rangeBase(leaf: number): number {
  if (leaf >= 0x4000_0000 && leaf <= 0x4fff_ffff) return (leaf & 0xffff_ff00) >>> 0;
  return leaf >= 0xc000_0000 ? 0xc000_0000 : (leaf & 0x8000_0000) >>> 0;
}

/** CPUID was executed. */
export function emulateCpuid(vcpu: Vcpu): void {
  const { regs } = vcpu.processor;
  const leaf = regs[RAX];
  const subleaf = regs[RCX];
  vcpu.charge(vcpu.cost.cpuid);
  const entry = vcpu.cpuid.find(leaf, subleaf);
  const answer = entry ?? vcpu.cpuid.outOfRange(leaf, subleaf) ?? topologyTail(vcpu, leaf, subleaf);
  setRegister(vcpu, RAX, answer[0]);
  setRegister(vcpu, RBX, answer[1]);
  setRegister(vcpu, RCX, answer[2]);
  setRegister(vcpu, RDX, answer[3]);
  // CPUID.1:EDX.APIC follows IA32_APIC_BASE.EN.
  if (leaf === 1 && !vcpu.lapic.hardwareEnabled) regs[RDX] &= ~CPUID_1_EDX_APIC;
  vcpu.trace(TP.kvm_cpuid, leaf, subleaf, answer[0], entry === undefined ? 0 : 1);
  vcpu.backend.skipInstruction();
}

/** Leaf 0xB beyond its last level: ECX keeps the level's number, EDX the x2APIC ID (SDM 2A, CPUID). */
function topologyTail(vcpu: Vcpu, leaf: number, subleaf: number): CpuidLeaf {
  const first = leaf === 0xb || leaf === 0x1f ? vcpu.cpuid.find(leaf, 1) : undefined;
  return first === undefined ? [0, 0, 0, 0] : [0, 0, subleaf & 0xff, first[3]];
}

function setRegister(vcpu: Vcpu, word: number, value: number): void {
  vcpu.processor.regs[word] = value;
  vcpu.processor.regs[word + 1] = 0;
}
