/**
 * What a virtual machine is as its options have it, and stays: whose KVM on which processor, parameters of the modules,
 * capabilities, quirks.
 *
 * @module
 */

import type { KvmFeature } from "../../abi/mod.ts";
import type { Engine } from "../core/mod.ts";
import { type Costs, costTable, freeTable, GENERIC_SVM, SKYLAKE_VMX } from "../cost/mod.ts";
import type { Machine } from "../machine.ts";
import { HostFailure, type KvmQuirk, type Quirk } from "../quirks.ts";
import type { HostScheduler } from "../sched/mod.ts";
import { HOST_SEMANTICS, type HostBehaviour, type HostSemantics, hostSemantics } from "../semantics.ts";
import type { VmxProcessor } from "../vmx/processors.ts";
import { setupVmx, type VmxSetup } from "../vmx/setup.ts";
import { type Acceleration, acceleration, type AvicKick, avicKick } from "./acceleration.ts";
import { SVM_INHIBITS, VMX_INHIBITS } from "./apicv.ts";
import { type BackendName, backendName } from "./backends.ts";
import { HALT_POLL_NS_MAX } from "./halt.ts";
import type { Vcpu } from "./vcpu.ts";
import { checkHaltPoll, checkKvmQuirks, maxVcpuIds, type VmOptions } from "./vm_options.ts";

/** VMX as KVM of that year sets it up, with the parameters among the options. */
function vmxSetup(name: Acceleration, behaviour: HostBehaviour, { apicv, ipiv, vpid }: VmOptions): VmxSetup {
  const parameters = { enableApicv: apicv ?? true, enableIpiv: ipiv ?? true, vpid: vpid ?? true };
  return setupVmx(name as VmxProcessor, { behaviour, parameters });
}

/** What does not change about a virtual machine by itself: user space may change one thing. */
export class VmConfiguration {
  /** The machine that it runs on. */
  declare readonly machine: Machine;
  /** The stepping core. */
  declare readonly engine: Engine;
  /** The host's scheduler. */
  declare readonly scheduler: HostScheduler;
  /** Which vendor's virtualization. */
  declare readonly backend: BackendName;
  /** Whose KVM this is. */
  declare readonly semantics: HostSemantics;
  /** What that host does. */
  declare readonly behaviour: HostBehaviour;
  /** Prices. */
  declare readonly cost: Costs;
  /** What the processor does for interrupts by itself. */
  declare readonly acceleration: Acceleration;
  /** On VMX, what KVM uses of the processor, and why not the rest. */
  declare readonly vmxSetup: VmxSetup | undefined;
  /** Whether KVM lets hardware deliver interrupts where nothing is against it: APICv or AVIC (enable_apicv). */
  declare readonly enableApicv: boolean;
  /** Whether hardware may deliver IPIs without an exit (enable_ipiv). */
  declare readonly enableIpiv: boolean;
  /** How the vCPUs that an incomplete IPI of AVIC's means are found. */
  declare readonly avicKick: AvicKick;
  /** The reasons that count for this vendor (required_apicv_inhibits). */
  declare readonly requiredInhibits: number;
  /** One past the highest vCPU number that there may be (max_vcpu_ids). */
  declare readonly maxVcpuIds: number;
  /** The TSC's frequency in kHz. */
  declare readonly tscKhz: number;

  /** Whether features that CPUID does not offer are refused. Looked up at each use, as user space may change it. */
  declare enforcePvFeatureCpuid: boolean;
  /** The ignore_msrs parameter. */
  declare readonly ignoreMsrs: boolean;
  /** The vector_hashing parameter. */
  declare readonly vectorHashing: boolean;
  /** The halt_poll_ns parameter. */
  declare readonly haltPollNs: number;
  /** KVM_X2APIC_API_USE_32BIT_IDS. */
  declare readonly x2apicFormat: boolean;
  /** KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK. */
  declare readonly x2apicBroadcastQuirkDisabled: boolean;
  /** Whether the I/O APIC is in the kernel. */
  declare readonly ioapicInKernel: boolean;

  readonly #disabledKvmQuirks: ReadonlySet<KvmQuirk>;

  /** Reads options. Throws `RangeError` for those that cannot be. */
  constructor(machine: Machine, options: VmOptions) {
    this.machine = machine;
    this.engine = machine.engine;
    this.scheduler = machine.scheduler;
    this.backend = backendName(options.backend ?? "vmx");
    this.semantics = hostSemantics(options.hostSemantics ?? "v6.19");
    this.behaviour = HOST_SEMANTICS[this.semantics];
    this.acceleration = acceleration(options.acceleration ?? "none", this.backend);
    this.vmxSetup = this.backend === "vmx" ? vmxSetup(this.acceleration, this.behaviour, options) : undefined;
    this.enableApicv = this.vmxSetup?.apicv.on ?? this.#usesAvic(options.apicv ?? true);
    this.enableIpiv = this.vmxSetup?.ipiv.on ?? (this.enableApicv && (options.ipiv ?? true));
    this.avicKick = avicKick(options.avicKick ?? this.behaviour.avicKick);
    this.requiredInhibits = this.backend === "vmx" ? VMX_INHIBITS : SVM_INHIBITS;
    const profile = options.costs ?? (this.backend === "vmx" ? SKYLAKE_VMX : GENERIC_SVM);
    this.cost = this.engine.explores ? freeTable() : costTable(profile);
    this.tscKhz = profile.tscKhz;
    this.maxVcpuIds = maxVcpuIds(options);
    this.enforcePvFeatureCpuid = options.enforcePvFeatureCpuid ?? false;
    this.ignoreMsrs = options.ignoreMsrs ?? false;
    this.vectorHashing = options.vectorHashing ?? true;
    this.haltPollNs = checkHaltPoll(options.haltPollNs ?? HALT_POLL_NS_MAX);
    this.x2apicFormat = options.x2apicApi32BitIds ?? false;
    this.x2apicBroadcastQuirkDisabled = options.x2apicApiDisableBroadcastQuirk ?? false;
    this.ioapicInKernel = options.ioapicInKernel ?? true;
    this.#disabledKvmQuirks = checkKvmQuirks(options.disabledKvmQuirks ?? []);
  }

  /** Whether there is AVIC, and KVM knows and wants it (avic_hardware_setup). */
  #usesAvic(wanted: boolean): boolean {
    return wanted && this.acceleration !== "none" && this.behaviour.avic !== "none";
  }

  /** Whether hardware knows x2APIC mode, and KVM knows that it does (x2avic_enabled). */
  get x2avicEnabled(): boolean {
    return this.acceleration === "x2avic" && this.behaviour.avic === "x2avic";
  }

  /** Whether this host, of its year, has a feature. */
  knows(feature: KvmFeature): boolean {
    return this.behaviour.features.includes(feature);
  }

  /** Whether a vCPU may use a feature that the host has: unless enforcement is on and CPUID does not offer it. */
  pvHas(vcpu: Vcpu, feature: KvmFeature): boolean {
    return this.knows(feature) && (!this.enforcePvFeatureCpuid || vcpu.cpuid.pvHas(feature));
  }

  /** Whether a deviation is on. */
  quirk(name: Quirk): boolean {
    return this.machine.quirks.has(name);
  }

  /** Whether a KVM quirk is on. */
  kvmQuirk(name: KvmQuirk): boolean {
    return !this.#disabledKvmQuirks.has(name);
  }

  /** KVM hit something that stops it. */
  hostFailure(what: string): never {
    throw new HostFailure(what);
  }
}
