/**
 * What a virtual machine can be made of: the options, their checks, and what memory and CPUID they come to.
 *
 * @module
 */

import {
  featureMask,
  HYPERVISOR_CPUID_BASE,
  HYPERVISOR_CPUID_END,
  HYPERVISOR_CPUID_STEP,
  KVM_FEATURES,
  KVM_HINTS,
  type KvmFeature,
  type KvmHint,
  type VcpuId,
} from "../../abi/mod.ts";
import type { CostProfile } from "../cost/mod.ts";
import type { DiskOptions } from "../devices/disk.ts";
import type { DirtyLogOptions, SlotOptions } from "../memory/mod.ts";
import { KVM_QUIRKS, type KvmQuirk } from "../quirks.ts";
import { HOST_SEMANTICS, type HostSemantics } from "../semantics.ts";
import type { Acceleration, AvicKick } from "./acceleration.ts";
import type { BackendName } from "./backends.ts";
import { type CpuidEntry, CpuidTable, cpuModel } from "./cpuid.ts";
import type { VmxSetup } from "../vmx/setup.ts";

/** The most vCPUs of one virtual machine (KVM_MAX_VCPUS' default). */
export const VCPU_LIMIT = 1024;
/** One past the highest vCPU number (KVM_MAX_VCPU_IDS). */
export const VCPU_ID_LIMIT: number = 4 * VCPU_LIMIT;

/** How a virtual machine is made. Everything has a default. */
export interface VmOptions {
  /** Which vendor's virtualization; "vmx" by default. */
  readonly backend?: BackendName;
  /** How many vCPUs; 1 by default. They are numbered from 0. */
  readonly vcpus?: number;
  /** The vCPUs' numbers, where they are not 0, 1, 2 ...; 0 is the bootstrap processor and must be there. */
  readonly vcpuIds?: readonly number[];
  /**
   * KVM_CAP_MAX_VCPU_ID: one past the highest vCPU number that there may ever be; 4096 (KVM_MAX_VCPU_IDS) by default.
   */
  readonly maxVcpuIds?: number;
  /** Bytes of memory at address 0; 64 MiB by default. */
  readonly memory?: number;
  /** More memory slots. */
  readonly slots?: readonly SlotOptions[];
  /** Whose KVM this is; "v6.19" by default. */
  readonly hostSemantics?: HostSemantics;
  /** Prices; the backend's default profile otherwise. */
  readonly costs?: CostProfile;

  /** What the host's processor does for interrupts by itself; "none" by default. */
  readonly acceleration?: Acceleration;
  /** kvm_intel's enable_apicv, kvm_amd's avic: whether KVM uses APICv or AVIC where it can; true by default. */
  readonly apicv?: boolean;
  /** enable_ipiv: whether hardware may deliver IPIs without an exit where it can; true by default. */
  readonly ipiv?: boolean;

  /** kvm_intel's vpid: whether translations are tagged by vCPU, so that entries and exits need not flush; true by default. */
  readonly vpid?: boolean;

  /** The host backs memory with pages of 2 MiB where it can; false by default: 4 KiB. */
  readonly hostHugePages?: boolean;
  /** Where pages go that the host takes out of its memory ({@linkcode Vm.evict}); by default none can go. */
  readonly disk?: DiskOptions;
  /** KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; by default asking for the dirty log clears it. */
  readonly dirtyLog?: Pick<DirtyLogOptions, "manualProtect" | "initiallySet">;
  /** Whether an oracle watches that the host writes only what the guest lends it; false by default. */
  readonly ownership?: boolean;

  /** How AVIC's sleeping targets are found; as the host of that year finds them by default. */
  readonly avicKick?: AvicKick;

  /** Whether CPUID offers x2APIC mode; true by default. */
  readonly x2apic?: boolean;
  /** Whether CPUID offers the TSC-deadline timer; true by default. */
  readonly tscDeadline?: boolean;
  /** Whether CPUID tells of a hypervisor; true by default. */
  readonly hypervisor?: boolean;
  /** The base of KVM's CPUID leaves; 0x40000000 by default. */
  readonly kvmCpuidBase?: number;
  /** Features to offer; by default all that this host models and its semantics know. */
  readonly features?: readonly KvmFeature[];
  /** Hints to give; none by default. */
  readonly hints?: readonly KvmHint[];
  /** CPUID entries that replace the model's, for every vCPU. */
  readonly cpuid?: readonly CpuidEntry[];

  /** KVM_CAP_ENFORCE_PV_FEATURE_CPUID: features that CPUID does not offer are refused; false by default. */
  readonly enforcePvFeatureCpuid?: boolean;
  /** The ignore_msrs parameter: unknown MSRs read 0 and ignore writes; false by default. */
  readonly ignoreMsrs?: boolean;
  /** The vector_hashing parameter; true by default. */
  readonly vectorHashing?: boolean;
  /** The halt_poll_ns parameter; 200000 by default, 0 switches polling off. */
  readonly haltPollNs?: number;
  /** KVM_X2APIC_API_USE_32BIT_IDS; false by default. */
  readonly x2apicApi32BitIds?: boolean;
  /** KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK; false by default. */
  readonly x2apicApiDisableBroadcastQuirk?: boolean;
  /** KVM_CAP_DISABLE_QUIRKS2: quirks to disable; none by default. */
  readonly disabledKvmQuirks?: readonly KvmQuirk[];
  /** Whether the I/O APIC is in the kernel; true by default. */
  readonly ioapicInKernel?: boolean;
  /** How many trace records to keep; 0, counting only, by default. */
  readonly trace?: number;
  /** PAUSE loops are charged in bulk; true by default. */
  readonly bulkSpin?: boolean;
}

/** The memory slots that the options ask for. Throws `RangeError` for those that cannot be. */
export function memorySlots(options: VmOptions): SlotOptions[] {
  const size = options.memory ?? 64 * 2 ** 20;
  if (size > 0xfec0_0000) {
    throw new RangeError(
      `Cannot give a virtual machine ${size} bytes at address 0: the I/O APIC is at 0xfec00000; add a slot above 4 GiB`,
    );
  }
  for (const slot of options.slots ?? []) {
    if (slot.base < 0xfef0_0000 && slot.base + slot.size > 0xfec0_0000) {
      throw new RangeError(
        `Cannot give a virtual machine a memory slot at 0x${slot.base.toString(16)}: ` +
          "0xfec00000 to 0xfeefffff is the APICs'",
      );
    }
  }
  return [...size > 0 ? [{ base: 0, size }] : [], ...options.slots ?? []];
}

/** Which host a virtual machine is on, as far as its CPUID tells. */
export interface CpuidHost {
  /** Which vendor's virtualization. */
  readonly backend: BackendName;
  /** Whose KVM it is. */
  readonly semantics: HostSemantics;
  /** The TSC's frequency in kHz. */
  readonly tscKhz: number;
  /** On VMX, the processor. */
  readonly vmxSetup: Pick<VmxSetup, "capabilities"> | undefined;
}

/** What CPUID says to vCPU `id` of `cpus`. Throws `RangeError` for options that cannot be. */
export function cpuidTable(options: VmOptions, host: CpuidHost, id: number, cpus: number): CpuidTable {
  const base = options.kvmCpuidBase ?? HYPERVISOR_CPUID_BASE;
  if (base < HYPERVISOR_CPUID_BASE || base >= HYPERVISOR_CPUID_END || base % HYPERVISOR_CPUID_STEP !== 0) {
    throw new RangeError(
      `Cannot put KVM's CPUID leaves at ${base}: allowed are 0x40000000 to 0x4000ff00 in steps of 0x100`,
    );
  }
  const entries = cpuModel({
    vendor: host.backend === "vmx" ? "intel" : "amd",
    apicId: id,
    cpus,
    x2apic: options.x2apic ?? true,
    tscDeadline: options.tscDeadline ?? true,
    invpcid: host.vmxSetup?.capabilities.has("invpcid") ?? true,
    hypervisor: options.hypervisor ?? true,
    kvmBase: base,
    features: featureMask(offeredFeatures(options, host.semantics)),
    hints: hintMask(options.hints ?? []),
    tscKhz: host.tscKhz,
  });
  const own = options.cpuid ?? [];
  const kept = entries.filter((e) => !own.some((o) => o.leaf === e.leaf && o.subleaf === e.subleaf));
  return new CpuidTable([...own, ...kept]);
}

/** What user space offers: what this host models, and the bits that are user space's own to give. */
function offeredFeatures({ features }: VmOptions, semantics: HostSemantics): readonly KvmFeature[] {
  const modelled = HOST_SEMANTICS[semantics].features;
  if (features === undefined) return modelled;
  for (const name of features) {
    const spec = Object.hasOwn(KVM_FEATURES, name) ? KVM_FEATURES[name] : undefined;
    if (spec?.offered !== "user-space" && !modelled.includes(name)) {
      throw new RangeError(`Cannot offer feature ${name}: a host of ${semantics} has ${modelled.join(", ")}`);
    }
  }
  return features;
}

/** One past the highest vCPU number. Throws `RangeError` where KVM_CAP_MAX_VCPU_ID gives EINVAL. */
export function maxVcpuIds(options: VmOptions): number {
  const limit = options.maxVcpuIds ?? VCPU_ID_LIMIT;
  if (!Number.isInteger(limit) || limit < 1 || limit > VCPU_ID_LIMIT) {
    throw new RangeError(`Cannot limit vCPU IDs to ${limit}: allowed are 1 to ${VCPU_ID_LIMIT}`);
  }
  return limit;
}

/** The vCPUs' numbers. Throws `RangeError` for those that cannot be. */
export function vcpuIds(options: VmOptions): VcpuId[] {
  const limit = maxVcpuIds(options);
  const count = options.vcpus ?? options.vcpuIds?.length ?? 1;
  if (!Number.isInteger(count) || count < 1 || count > VCPU_LIMIT) {
    throw new RangeError(`Cannot build a virtual machine of ${count} vCPUs: allowed are 1 to ${VCPU_LIMIT}`);
  }
  const ids = options.vcpuIds ?? Array.from({ length: count }, (_, id) => id);
  if (ids.length !== count) {
    throw new RangeError(
      `Cannot build a virtual machine of ${count} vCPUs: ${ids.length} vCPU IDs are given`,
    );
  }
  for (const id of ids) {
    if (!Number.isInteger(id) || id < 0 || id >= limit) {
      throw new RangeError(`Cannot create vCPU ${id}: allowed are 0 to ${limit - 1}`);
    }
  }
  if (new Set(ids).size !== ids.length) throw new RangeError("Cannot create a vCPU twice: vCPU IDs repeat");
  if (!ids.includes(0)) throw new RangeError("Cannot boot without vCPU 0: it is the bootstrap processor");
  return ids as VcpuId[];
}

function hintMask(names: readonly KvmHint[]): number {
  let mask = 0;
  for (const name of names) {
    if (!Object.hasOwn(KVM_HINTS, name)) {
      throw new RangeError(`Cannot give hint ${name}: allowed are ${Object.keys(KVM_HINTS).join(", ")}`);
    }
    mask |= 1 << KVM_HINTS[name].bit;
  }
  return mask >>> 0;
}

/** Vouches for the names of KVM's quirks. Throws `RangeError` naming those allowed. */
export function checkKvmQuirks(names: readonly string[]): ReadonlySet<KvmQuirk> {
  for (const name of names) {
    if (!Object.hasOwn(KVM_QUIRKS, name)) {
      throw new RangeError(
        `Cannot disable KVM quirk ${name}: allowed are ${Object.keys(KVM_QUIRKS).join(", ")}`,
      );
    }
  }
  return new Set(names as readonly KvmQuirk[]);
}

/** Vouches for a polling time, in nanoseconds. Throws `RangeError` for fractions and negative ones. */
export function checkHaltPoll(ns: number): number {
  if (!Number.isSafeInteger(ns) || ns < 0) {
    throw new RangeError(`Cannot poll for ${ns} ns: allowed are whole numbers from 0`);
  }
  return ns;
}
