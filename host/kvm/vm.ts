/**
 * A virtual machine: memory, vCPUs, interrupt controllers, capabilities.
 *
 * @module
 */

import type { MsiMessage, Text } from "../../abi/mod.ts";
import { type Engine, Mutex, type Steps, straight } from "../core/mod.ts";
import { startLongMode, startProtectedMode } from "../cpu/mod.ts";
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
import { formatRecord, NOBODY, TRACEPOINTS, Tracer } from "../trace/mod.ts";
import { inhibitMask, updateApicv } from "./apicv.ts";
import { createBackendInVain } from "./backends.ts";
import { explain, type Explanation } from "./explain.ts";
import { evictPages, logDirtyPages, loggedBy, removeMemoryRegion } from "./memory_region.ts";
import { ATTENTION_APIC_MAP, REQ_SCAN_IOAPIC } from "./requests.ts";
import { locked } from "./tdp/locks.ts";
import { VmMmu } from "./tdp/vm_mmu.ts";
import type { UserspaceDevice } from "./userspace.ts";
import { Vcpu } from "./vcpu.ts";
import { cpuidTable, memorySlots, vcpuIds, type VmOptions } from "./vm_options.ts";
import { VmConfiguration } from "./vm_configuration.ts";

/** What KVM_CREATE_VCPU gives. */
const EEXIST = 17;
const EINVAL = 22;
const EMFILE = 24;

/** An oracle with the engine's clock. */
function watchOwnership(engine: Engine): MemoryOwnership {
  return new MemoryOwnership({ now: () => engine.now });
}

/** A virtual machine. */
export class Vm extends VmConfiguration {
  /** Why APICv is not in use, as bits; 0 where it is (apicv_inhibit_reasons). */
  apicvInhibits = 0;
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

  /** By thread number: the vCPU's index, {@linkcode NOBODY} for other threads. */
  #vcpuIndex = new Int32Array(64).fill(NOBODY);

  /** Builds a virtual machine, its vCPUs reset and not started. Throws `RangeError` for options that cannot be. */
  constructor(machine: Machine, options: VmOptions = {}) {
    super(machine, options);
    this.memory = new GuestMemory(machine.physical);
    this.mmioMarks = new MmioMarks(this.memory);
    this.apicMapLock = new Mutex(machine.engine);
    if (!this.enableApicv) this.apicvInhibits = inhibitMask(["DISABLED"]);
    this.tracer = new Tracer(options.trace ?? 0);
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
   * are. Like what follows, it may have to wait for vCPUs: see {@linkcode HostTask}. Throws `RangeError` where the range
   * is none, or is not memory.
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
      for (const [reason, count] of vcpu.exitCounts) {
        const name = vcpu.backend.exitName(reason);
        exits[name] = (exits[name] ?? 0) + count;
      }
    }
    return exits;
  }

  /** The kept trace records as text, one a line. */
  traceText(): string[] {
    const { backend } = this.bootstrap;
    return [...this.tracer.records()].map((record) =>
      formatRecord(record, (reason) => backend.exitName(reason))
    );
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
