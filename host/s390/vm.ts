/**
 * An s390 virtual machine: KVM, or QEMU's emulator, with QEMU's devices.
 *
 * @module
 */

import { highOf, KVM_S390_INTERRUPTS, lowOf, type S390Cpu } from "../../abi/mod.ts";
import { type ArchShape, ArchVm, type ArchVmOptions } from "../arch/mod.ts";
import { type CostProfile, SKYLAKE_VMX } from "../cost/mod.ts";
import type { Machine } from "../machine.ts";
import { PAGE_SIZE, type PageStore, Residency } from "../memory/mod.ts";
import {
  type CcwDevice,
  ChannelSubsystem,
  type LegacyTransport,
  NO_LEGACY_DEVICES,
  subchannelOf,
} from "./css.ts";
import { S390_HZ } from "./directed_yield.ts";
import { S390_EXITS } from "./exits.ts";
import { HostCpus } from "./host_cpus.ts";
import { S390_HOSTS, type S390Host, s390Host, type S390HostBehaviour } from "./hosts.ts";
import { IoBus } from "./io_bus.ts";
import { assignIoEventFd, CcwIoEventFd } from "./ioeventfd.ts";
import type { IplState } from "./ipl.ts";
import type { PageRange } from "./release_pages.ts";
import { clearReset } from "./reset.ts";
import { S390_TP, S390_TRACEPOINTS } from "./tracepoints.ts";
import { S390Vcpu } from "./vcpu.ts";

/** How an s390 virtual machine is made. Everything has a default. */
export interface S390VmOptions extends ArchVmOptions {
  /** Who answers calls; "kvm", today's KVM and QEMU, by default. */
  readonly host?: S390Host;
  /** CPUs of the host that its vCPUs take turns on; one for each vCPU by default. */
  readonly hostCpus?: number;
  /** A turn in cycles, where vCPUs wait; 7,500,000 by default. */
  readonly turn?: number;
  /** One past the highest address that memory devices may use; the end of memory by default. */
  readonly storageLimit?: number;
  /** The block 3.2.2 that the host gets from its own host, where it is a guest itself. */
  readonly outerSystem?: Readonly<Uint8Array>;
  /** The devices of the older s390-virtio transport, for hosts that have it. */
  readonly legacy?: LegacyTransport;
}

/** How a device is put on the channel subsystem. */
export interface AddCcwDeviceOptions {
  /** Whether its queues have doorbells in the kernel (ioeventfds); true by default. */
  readonly ioeventfd?: boolean;
}

/** Prices: another server's, until somebody measures an s390. */
const GENERIC_S390: CostProfile = { ...SKYLAKE_VMX, name: "generic-s390" };
const TURN = 7_500_000;

const SHAPE: ArchShape = {
  arch: "s390",
  order: "big",
  tracepoints: S390_TRACEPOINTS,
  exitNames: S390_EXITS,
  costs: GENERIC_S390,
  loadAddress: (address) => address,
};

/** A virtual machine. */
export class S390Vm extends ArchVm<S390Cpu> {
  /** The vCPUs: their CPU addresses are their indices. */
  override readonly vcpus: readonly S390Vcpu[];
  /** Who answers calls. */
  readonly host: S390Host;
  /** What that one does. */
  readonly behaviour: S390HostBehaviour;
  /** The host's CPUs. */
  readonly hostCpus: HostCpus;
  /** The bus of notifications that the kernel serves. */
  readonly ccwBus: IoBus = new IoBus();
  /** QEMU's channel subsystem. */
  readonly css: ChannelSubsystem = new ChannelSubsystem();
  /** The devices of the older transport. */
  readonly legacy: LegacyTransport;
  /** The CPU that booted, or went on after a reset. */
  bootCpu: S390Vcpu;
  /** The parameters of the next IPL. */
  readonly ipl: IplState;
  /** The tokens of pages that have come, for whichever CPU takes them. */
  readonly floating: bigint[] = [];
  /** Whether the guest may be told of pages that are missing. */
  pfaultEnabled = true;
  /** Which pages are in the host's memory; undefined: all. */
  residency: Residency | undefined = undefined;
  /** One past the end of memory. */
  readonly memoryEnd: number;
  /** One past the highest address that memory devices may use. */
  readonly storageLimit: number;
  /** What the host's own host says of itself. */
  readonly outerSystem: Readonly<Uint8Array> | undefined;
  /** Pages that the guest has released. */
  discardedPages = 0;
  /**
   * The debugger: whether it planted a DIAGNOSE 0x501 at an address (kvm_find_sw_breakpoint). There is none at first. It
   * plants these where KVM cannot hand it instruction 0 (KVM_CAP_S390_USER_INSTR0).
   */
  breakpointAt: (address: number) => boolean = () => false;
  #nextFloating = 0;

  /** Builds a virtual machine, not started. Throws `RangeError` for options that cannot be. */
  constructor(machine: Machine, options: S390VmOptions = {}) {
    super(machine, SHAPE, options);
    this.host = s390Host(options.host ?? "kvm");
    this.behaviour = S390_HOSTS[this.host];
    this.memoryEnd = this.memory.slots[0].end;
    this.storageLimit = options.storageLimit ?? this.memoryEnd;
    this.outerSystem = options.outerSystem;
    this.legacy = options.legacy ?? NO_LEGACY_DEVICES;
    this.vcpus = this.makeVcpus(options, (index) => new S390Vcpu(this, index));
    this.bootCpu = this.vcpus[0];
    this.hostCpus = new HostCpus(this.engine, options.hostCpus ?? this.vcpus.length, options.turn ?? TURN);
    this.ipl = {
      parameters: undefined,
      checks: this.behaviour.checksIpl,
      read: (address, bytes) => this.words.bytes(Number(address), bytes),
      write: (address, bytes) => this.memory.load(Number(address), bytes),
    };
  }

  /** Adds a virtio-ccw device, and doorbells for its queues. Gives the word that names its subchannel. */
  addCcwDevice(device: CcwDevice, { ioeventfd = true }: AddCcwDeviceOptions = {}): number {
    this.css.add(device);
    const subchannel = subchannelOf(device);
    if (!ioeventfd || !this.behaviour.kvm) return subchannel;
    for (const [queue, size] of device.queues.entries()) {
      if (size === 0) continue;
      const signal = () => device.notified(queue, undefined);
      assignIoEventFd(this.ccwBus, new CcwIoEventFd({ subchannel, queue, signal }));
    }
    return subchannel;
  }

  /** The tick of the host's clock that a time in cycles belongs to. */
  jiffies(clock: number): number {
    return Math.floor(clock * S390_HZ / (this.clockKhz * 1000));
  }

  /** Lets pages leave the host's memory, for `store`. */
  pageTo(store: PageStore): Residency {
    this.residency = new Residency(this.memory, store);
    for (const { storage } of this.vcpus) storage.residency = this.residency;
    return this.residency;
  }

  /** The guest's pages have no contents any more: they read as zeros. */
  discard({ start, end }: PageRange): void {
    for (const slot of this.memory.slots) {
      const first = Math.max(slot.base, Number(start));
      const last = Math.min(slot.end, Number(end));
      if (first >= last) continue;
      slot.u8.fill(0, first - slot.base, last - slot.base);
      this.memory.stored(first, last - first);
      this.discardedPages += (last - first) / PAGE_SIZE;
      if ((this.residency?.away ?? 0) === 0) continue;
      for (let at = first; at < last; at += PAGE_SIZE) this.residency!.forget(at);
    }
  }

  /** A page has come that the guest was told of: an interruption for one CPU, which waits if it can. */
  injectPfaultDone(token: bigint): void {
    const { KVM_S390_INT_PFAULT_DONE } = KVM_S390_INTERRUPTS;
    this.floating.push(token);
    if (this.behaviour.kvm) {
      this.trace(S390_TP.kvm_s390_inject_vm, KVM_S390_INT_PFAULT_DONE, 0, lowOf(token), highOf(token));
    }
    this.#floatingTarget().kick();
  }

  /** A CPU that waits, else one after the other (__floating_irq_kick). Any other takes it if it is enabled first. */
  #floatingTarget(): S390Vcpu {
    const idle = this.vcpus.find(({ idle }) => idle);
    if (idle !== undefined) return idle;
    const running = this.vcpus.filter(({ phase }) => phase !== "ended");
    return running[this.#nextFloating++ % running.length] ?? this.vcpus[0];
  }

  /**
   * The guest has asked for an IPL, from a device of which this laboratory has none: its image is gone, and the virtual
   * machine ends here. QEMU resets all CPUs, and clears no memory, whatever is asked.
   */
  reIpl(kind: string): void {
    for (const vcpu of this.vcpus) clearReset(vcpu);
    this.shutDown(`reset: ${kind}`);
  }

  /** Whether the program of the CPU that booted, or had the others reset, has returned. */
  override get finished(): boolean {
    return this.bootCpu.phase === "ended";
  }

  /** The guest cannot go on: user space gives it up. */
  panic(why: string): void {
    this.shutDown(`guest panicked: ${why}`);
  }
}
