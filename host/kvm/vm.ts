/**
 * A virtual machine: memory, vCPUs, interrupt controllers, capabilities.
 *
 * @module
 */

import type { KvmFeature, MsiMessage, Text } from "../../abi/mod.ts";
import { type Engine, Mutex, type Steps, straight } from "../core/mod.ts";
import { startLongMode, startProtectedMode } from "../cpu/mod.ts";
import { type Costs, costTable, freeTable, GENERIC_SVM, SKYLAKE_VMX } from "../cost/mod.ts";
import { DeviceBus } from "../devices/bus.ts";
import { Ioapic, IrqRouting, swizzleExtendedDestination } from "../irqchip/mod.ts";
import { type ApicMap, InterruptMessage, MapState, recalculateApicMap } from "../lapic/mod.ts";
import type { Machine } from "../machine.ts";
import { Disk } from "../devices/disk.ts";
import {
  type ClearDirtyLog,
  DirtyLog,
  GuestMemory,
  MemoryOwnership,
  MmioMarks,
  Residency,
  type Slot,
  type SlotOptions,
} from "../memory/mod.ts";
import { HostFailure, type KvmQuirk, type Quirk } from "../quirks.ts";
import type { HostScheduler } from "../sched/mod.ts";
import { HOST_SEMANTICS, type HostBehaviour, type HostSemantics, hostSemantics } from "../semantics.ts";
import { NOBODY, TRACEPOINTS, Tracer } from "../trace/mod.ts";
import { type Acceleration, acceleration, type AvicKick, avicKick } from "./acceleration.ts";
import { inhibitMask, SVM_INHIBITS, updateApicv, VMX_INHIBITS } from "./apicv.ts";
import type { VmxProcessor } from "../vmx/processors.ts";
import { setupVmx, type VmxSetup } from "../vmx/setup.ts";
import { type BackendName, backendName, createBackendInVain } from "./backends.ts";
import { explain, type Explanation } from "./explain.ts";
import { HALT_POLL_NS_MAX } from "./halt.ts";
import { evictPages, logDirtyPages, loggedBy, removeMemoryRegion } from "./memory_region.ts";
import { ATTENTION_APIC_MAP, REQ_SCAN_IOAPIC } from "./requests.ts";
import { locked } from "./tdp/locks.ts";
import { VmMmu } from "./tdp/vm_mmu.ts";
import type { UserspaceDevice } from "./userspace.ts";
import { Vcpu } from "./vcpu.ts";
import {
  checkHaltPoll,
  checkKvmQuirks,
  cpuidTable,
  maxVcpuIds,
  memorySlots,
  vcpuIds,
  type VmOptions,
} from "./vm_options.ts";

/** What KVM_CREATE_VCPU gives. */
const EEXIST = 17;
const EINVAL = 22;
const EMFILE = 24;

/** VMX as KVM of that year sets it up, with the parameters among the options. */
function vmxSetup(name: Acceleration, behaviour: HostBehaviour, { apicv, ipiv, vpid }: VmOptions): VmxSetup {
  const parameters = { enableApicv: apicv ?? true, enableIpiv: ipiv ?? true, vpid: vpid ?? true };
  return setupVmx(name as VmxProcessor, { behaviour, parameters });
}

/** An oracle with the engine's clock. */
function watchOwnership(engine: Engine): MemoryOwnership {
  return new MemoryOwnership({ now: () => engine.now });
}

/** A virtual machine. */
export class Vm {
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
  /** Why APICv is not in use, as bits; 0 where it is (apicv_inhibit_reasons). */
  apicvInhibits = 0;
  /** One past the highest vCPU number that there may be (max_vcpu_ids). */
  declare readonly maxVcpuIds: number;
  /** The TSC's frequency in kHz. */
  declare readonly tscKhz: number;
  /** Guest memory. */
  declare readonly memory: GuestMemory;
  /** Pages that KVM has marked as MMIO. */
  declare readonly mmioMarks: MmioMarks;
  /** Page tables of the second dimension. */
  declare readonly mmu: VmMmu;
  /** Which pages were written. */
  declare readonly dirtyLog: DirtyLog;
  /** Which pages are in the host's memory; undefined where all are, always. */
  declare readonly residency: Residency | undefined;
  /** What the host may write; undefined where nobody watches. */
  declare readonly ownership: MemoryOwnership | undefined;
  /** The vCPUs, by index. */
  declare readonly vcpus: readonly Vcpu[];
  /** Events, counted and recorded. */
  declare readonly tracer: Tracer;
  /** The I/O APIC. */
  declare readonly ioapic: Ioapic;
  /** Interrupt routing. */
  declare readonly routing: IrqRouting;
  /** In-kernel devices at addresses. */
  readonly mmioBus: DeviceBus = new DeviceBus("MMIO");
  /** In-kernel devices at ports. */
  readonly pioBus: DeviceBus = new DeviceBus("PIO");
  /** User space's devices at addresses. */
  userspaceMmioDevice: UserspaceDevice | undefined = undefined;
  /** User space's devices at ports. */
  userspacePioDevice: UserspaceDevice | undefined = undefined;

  /** Whether features that CPUID does not offer are refused. Looked up at each use. */
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

  /** The optimized APIC map; undefined where IDs are ambiguous. */
  apicMap: ApicMap | undefined = undefined;
  /** Whether the map is current. */
  apicMapState: MapState = MapState.Clean;
  /** Held by whoever rebuilds the map (apic_map_lock). */
  declare readonly apicMapLock: Mutex;
  /** The message that ICR writes are sent with. */
  readonly ipi: InterruptMessage = new InterruptMessage();
  /** The message that kicks are sent with. */
  readonly kick: InterruptMessage = new InterruptMessage();

  /** It has been shut down. */
  dead = false;

  readonly #disabledKvmQuirks: ReadonlySet<KvmQuirk>;
  /** By thread number: the vCPU's index, {@linkcode NOBODY} for other threads. */
  #vcpuIndex = new Int32Array(64).fill(NOBODY);

  /** Builds a virtual machine, its vCPUs reset and not started. Throws `RangeError` for options that cannot be. */
  constructor(machine: Machine, options: VmOptions = {}) {
    this.machine = machine;
    this.memory = new GuestMemory(machine.physical);
    this.mmioMarks = new MmioMarks(this.memory);
    this.engine = machine.engine;
    this.scheduler = machine.scheduler;
    this.apicMapLock = new Mutex(machine.engine);
    this.backend = backendName(options.backend ?? "vmx");
    this.semantics = hostSemantics(options.hostSemantics ?? "v6.19");
    this.behaviour = HOST_SEMANTICS[this.semantics];
    this.acceleration = acceleration(options.acceleration ?? "none", this.backend);
    this.vmxSetup = this.backend === "vmx" ? vmxSetup(this.acceleration, this.behaviour, options) : undefined;
    this.enableApicv = this.vmxSetup?.apicv.on ?? this.#usesAvic(options.apicv ?? true);
    this.enableIpiv = this.vmxSetup?.ipiv.on ?? (this.enableApicv && (options.ipiv ?? true));
    this.avicKick = avicKick(options.avicKick ?? this.behaviour.avicKick);
    if (!this.enableApicv) this.apicvInhibits = inhibitMask(["DISABLED"]);
    this.requiredInhibits = this.backend === "vmx" ? VMX_INHIBITS : SVM_INHIBITS;
    const profile = options.costs ?? (this.backend === "vmx" ? SKYLAKE_VMX : GENERIC_SVM);
    this.cost = this.engine.explores ? freeTable() : costTable(profile);
    this.tscKhz = profile.tscKhz;
    this.maxVcpuIds = maxVcpuIds(options);
    this.tracer = new Tracer(options.trace ?? 0);
    this.enforcePvFeatureCpuid = options.enforcePvFeatureCpuid ?? false;
    this.ignoreMsrs = options.ignoreMsrs ?? false;
    this.vectorHashing = options.vectorHashing ?? true;
    this.haltPollNs = checkHaltPoll(options.haltPollNs ?? HALT_POLL_NS_MAX);
    this.x2apicFormat = options.x2apicApi32BitIds ?? false;
    this.x2apicBroadcastQuirkDisabled = options.x2apicApiDisableBroadcastQuirk ?? false;
    this.ioapicInKernel = options.ioapicInKernel ?? true;
    this.#disabledKvmQuirks = checkKvmQuirks(options.disabledKvmQuirks ?? []);
    for (const slot of memorySlots(options)) this.memory.addSlot(slot);
    this.mmu = new VmMmu(this, options);
    this.dirtyLog = new DirtyLog(this.memory, { ...options.dirtyLog, ...loggedBy(this) });
    this.residency = options.disk && new Residency(this.memory, new Disk(this.engine, options.disk));
    this.ownership = options.ownership ? watchOwnership(this.engine) : undefined;
    this.ioapic = new Ioapic(this);
    this.routing = new IrqRouting(this);
    if (this.ioapicInKernel) this.mmioBus.add(this.ioapic);

    const ids = vcpuIds(options);
    const vcpus: Vcpu[] = [];
    this.vcpus = vcpus;
    for (const [index, id] of ids.entries()) {
      const vcpu = new Vcpu(this, index, id, cpuidTable(options, this, id, ids.length));
      if (options.bulkSpin === false) vcpu.processor.bulkSpin = false;
      vcpus.push(vcpu);
    }
    for (const vcpu of vcpus) vcpu.reset(false);
    if (this.tracksPages) this.#track();
    for (const _ of recalculateApicMap(this)) { /* Nobody runs yet: straight through. */ }
    for (const vcpu of vcpus) {
      vcpu.attention &= ~ATTENTION_APIC_MAP;
      updateApicv(vcpu);
    }
  }

  /** Whether there is AVIC, and KVM knows and wants it (avic_hardware_setup). */
  #usesAvic(wanted: boolean): boolean {
    return wanted && this.acceleration !== "none" && this.behaviour.avic !== "none";
  }

  /** The vCPU of a number (kvm_get_vcpu_by_id): mostly it is its place as well. */
  vcpuById(id: number): Vcpu | undefined {
    const vcpu = this.vcpus[id];
    return vcpu?.vcpuId === id ? vcpu : this.vcpus.find(({ vcpuId }) => vcpuId === id);
  }

  /** A vCPU's thread has its number. */
  addThread(vcpu: Vcpu): void {
    if (vcpu.id >= this.#vcpuIndex.length) {
      const grown = new Int32Array(2 * vcpu.id).fill(NOBODY);
      grown.set(this.#vcpuIndex);
      this.#vcpuIndex = grown;
    }
    this.#vcpuIndex[vcpu.id] = vcpu.index;
  }

  /** The bootstrap processor. */
  get bootstrap(): Vcpu {
    return this.vcpus.find((vcpu) => vcpu.bootstrap)!;
  }

  /**
   * KVM_CREATE_VCPU once more. All vCPUs are made with their virtual machine, so it fails, and what it did is undone.
   * Answers with the negative error number: EINVAL beyond the highest number, EEXIST for one that is taken, and EMFILE
   * for any other, as user space has no file descriptor left.
   */
  createVcpu(vcpuId: number): number {
    if (vcpuId >= this.maxVcpuIds) return -EINVAL;
    const taken = this.vcpus.some((vcpu) => vcpu.vcpuId === vcpuId);
    // Since 97d65b544f48 that is looked at before anything is made; v6.19 looked last.
    if (taken && !this.quirk("pid-table-keeps-freed")) return -EEXIST;
    createBackendInVain(this, vcpuId);
    return taken ? -EEXIST : -EMFILE;
  }

  // Starting.

  /**
   * Loads an image: writes its bytes into memory and lets the processors fetch from it. Throws `RangeError` where
   * memory is missing.
   */
  load(text: Text): void {
    text.load((address, bytes) => {
      if (!this.memory.load(address, bytes)) {
        throw new RangeError(`Cannot load text at 0x${address.toString(16)}: no memory there`);
      }
    });
    for (const vcpu of this.vcpus) vcpu.processor.text = text;
  }

  /** Starts the bootstrap processor at `entry`, in 64-bit mode, or in 32-bit mode without paging. */
  start(entry: number, mode: "64-bit" | "32-bit" = "64-bit"): void {
    const vcpu = this.bootstrap;
    if (mode === "64-bit") startLongMode(vcpu.processor, entry);
    else startProtectedMode(vcpu.processor, entry);
    this.scheduler.ready(vcpu, vcpu.time);
    for (const other of this.vcpus) {
      if (other !== vcpu) this.scheduler.ready(other, other.time);
    }
  }

  // Features and quirks.

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

  // The APIC map, and requests to all.

  /** A vCPU changed its ID, its logical destination or an enable bit: it rebuilds the map before it goes on. */
  apicMapDirty(vcpu: Vcpu): void {
    this.apicMapState = MapState.Dirty;
    vcpu.attention |= ATTENTION_APIC_MAP;
  }

  /** vCPUs are to recompute which vectors the I/O APIC handles. Halted ones do it when they wake. */
  requestScanIoapic(which: readonly Vcpu[] = this.vcpus): void {
    for (const vcpu of which) {
      vcpu.request(REQ_SCAN_IOAPIC);
      vcpu.kickOut();
    }
  }

  /** Asks every vCPU for something, now: those in guest mode leave it (kvm_make_all_cpus_request). */
  requestAll(request: number): void {
    for (const vcpu of this.vcpus) {
      vcpu.request(request);
      vcpu.kickOut();
    }
  }

  // Memory.

  /**
   * Whether each page that the guest uses matters to the host: pages may be away, or writes are logged. Then even guests
   * without page tables of their own have their addresses translated.
   */
  get tracksPages(): boolean {
    return this.residency !== undefined || this.dirtyLog.active > 0;
  }

  #track(): void {
    for (const { processor } of this.vcpus) {
      if (processor.tracked === this.tracksPages) continue;
      processor.tracked = this.tracksPages;
      processor.pagingChanged();
    }
  }

  /**
   * The host evicts the pages of a range, where it can: they come back from disk when somebody uses them. How many those
   * are. Like what follows, it may have to wait for vCPUs: see {@linkcode HostTask}.
   */
  evict(address: number, bytes: number): Steps<number> {
    return evictPages(this, address, bytes);
  }

  /** Sets or clears KVM_MEM_LOG_DIRTY_PAGES of a slot. */
  *logDirtyPages(slot: Slot, on: boolean): Steps {
    const steps = logDirtyPages(this, slot, on);
    // The log is there before the first yield.
    for (let ended = steps.next().done; ended !== true; ended = steps.next().done) {
      this.#track();
      yield;
    }
    this.#track();
  }

  /** KVM_GET_DIRTY_LOG: a bit a page. */
  getDirtyLog(slot: Slot): Steps<Uint32Array> {
    return locked(this, this.mmu.slotsLock, this.dirtyLog.getInSteps(slot));
  }

  /** KVM_CLEAR_DIRTY_LOG. */
  clearDirtyLog(slot: Slot, range: ClearDirtyLog): Steps {
    return locked(this, this.mmu.slotsLock, this.dirtyLog.clearInSteps(slot, range));
  }

  /** KVM_SET_USER_MEMORY_REGION adds a slot. Throws `RangeError` where it cannot. */
  addMemoryRegion(options: SlotOptions): Slot {
    return this.memory.addSlot(options);
  }

  /** KVM_SET_USER_MEMORY_REGION removes a slot. */
  *removeMemoryRegion(slot: Slot): Steps {
    yield* removeMemoryRegion(this, slot);
    this.#track();
  }

  // What the running thread does.

  /**
   * Accesses to state that hardware and other CPUs share. Explored runs carry a vCPU's out a step each, before it does
   * anything else; a device's or a timer's are one step, as all it does.
   */
  perform(steps: Steps): void {
    const { running, explores } = this.engine;
    const index = explores && running !== undefined ? this.#indexOf(running.id) : NOBODY;
    if (index === NOBODY) straight(steps);
    else this.vcpus[index].defer(steps);
  }

  /** The running thread spends time. */
  chargeRunning(cycles: number): void {
    this.engine.running!.time += cycles;
  }

  /** Emits an event that the running thread causes: a vCPU's of this machine, or nobody's. */
  traceRunning(event: number, a = 0, b = 0, c = 0, d = 0, e = 0): void {
    const { running } = this.engine;
    const index = running === undefined ? NOBODY : this.#indexOf(running.id);
    this.tracer.counts[index + 1][event]++;
    if (this.tracer.recording) {
      this.tracer.record(event, index, this.engine.now, a, b, c, d, e);
    }
  }

  #indexOf(thread: number): number {
    const indices = this.#vcpuIndex;
    return thread < indices.length ? indices[thread] : NOBODY;
  }

  /** What switching a CPU between threads costs. */
  get switchCost(): number {
    return this.cost.contextSwitch;
  }

  /** A device in user space signals a message; with MSI_EXT_DEST_ID user space unpacks its destination first. */
  signalMsi(message: MsiMessage): number {
    const extended = this.bootstrap.cpuid.pvHas("MSI_EXT_DEST_ID") && this.x2apicFormat;
    return this.routing.signal(extended ? swizzleExtendedDestination(message) : message);
  }

  // Results.

  /** How often each event happened, by name; events that did not happen are left out. */
  counters(): Record<string, number> {
    const counters: Record<string, number> = {};
    for (const [event, { name }] of TRACEPOINTS.entries()) {
      const total = this.tracer.total(event);
      if (total > 0) counters[name] = total;
    }
    return counters;
  }

  /** How often each exit happened, by the name that kvm_exit prints. */
  exits(): Record<string, number> {
    const exits: Record<string, number> = {};
    for (const vcpu of this.vcpus) {
      for (const [reason, count] of vcpu.exitCounts.entries()) {
        if (count === 0) continue;
        const name = vcpu.backend.exitName(reason);
        exits[name] = (exits[name] ?? 0) + count;
      }
    }
    return exits;
  }

  /**
   * Why each accelerated path and each paravirtual feature is, or is not, in use at this moment.
   *
   * @example PV EOI has nothing to do where hardware ends interrupts
   * ```ts
   * import { Kernel, Machine } from "@exitless/exitless";
   * import { assertEquals } from "@std/assert";
   *
   * const kernel = new Kernel({
   *   *main(cpu) {
   *     yield cpu.work(1000);
   *   },
   * });
   * const vm = new Machine().createVm({ acceleration: "apicv" });
   * vm.load(kernel.text);
   * vm.start(kernel.entry);
   * vm.machine.run();
   * const pvEoi = vm.explain().find(({ path }) => path === "PV EOI");
   * assertEquals(pvEoi, {
   *   path: "PV EOI",
   *   inUse: false,
   *   why: "APICv ends interrupts: it is never armed",
   *   vcpus: [0],
   * });
   * ```
   */
  explain(): Explanation[] {
    return explain(this);
  }
}
