/**
 * A MIPS virtual machine: a paravirtual guest under KVM with the Virtualization Module, and kvmtool as its user space.
 *
 * @module
 */

import { type ByteOrder, mipsBootAddress, type MipsCpu, type WidthMode } from "../../abi/mod.ts";
import { type ArchShape, ArchVm, type ArchVmOptions, type KvmSystemEvent } from "../arch/mod.ts";
import { type CostProfile, SKYLAKE_VMX } from "../cost/mod.ts";
import type { Machine } from "../machine.ts";
import { MIPS_HOSTS, type MipsHost } from "./hypercall.ts";
import { MIPS_EXIT_NAMES, MIPS_TRACEPOINTS } from "./tracepoints.ts";
import { MipsUserspace } from "./userspace.ts";
import { MipsVcpu } from "./vcpu.ts";

/** How a MIPS virtual machine is made. Everything has a default. */
export interface MipsVmOptions extends ArchVmOptions {
  /** Whose KVM it is; "mainline" by default, which knows no hypercall. */
  readonly host?: MipsHost;
  /** The guest's byte order; "big" by default. */
  readonly order?: ByteOrder;
  /** Whether the guest's kernel is a 64-bit or a 32-bit one; 64 by default. */
  readonly bits?: 64 | 32;
  /** The frequency of Count in Hz; 100 MHz, KVM's own, by default (kvm_mips_init_count). */
  readonly countHz?: number;
}

/** Prices: a server's, until somebody measures a MIPS one. */
const GENERIC_MIPS_VZ: CostProfile = { ...SKYLAKE_VMX, name: "generic-mips-vz" };

const SHAPE: Omit<ArchShape, "order"> = {
  arch: "mips",
  tracepoints: MIPS_TRACEPOINTS,
  exitNames: MIPS_EXIT_NAMES,
  costs: GENERIC_MIPS_VZ,
  loadAddress: (address) => mipsBootAddress(address) ?? -1,
};

/** A virtual machine. */
export class MipsVm extends ArchVm<MipsCpu> {
  /** Whose KVM it is. */
  readonly host: MipsHost;
  /** The guest's width. */
  readonly mode: WidthMode;
  /** The frequency of Count, in Hz. */
  readonly countHz: number;
  /** User space. */
  readonly userspace: MipsUserspace;
  /** The system event that KVM_RUN came back with (kvm_run.system_event.type); undefined while there was none. */
  systemEvent: KvmSystemEvent | undefined = undefined;
  /** The vCPUs, by index. */
  override readonly vcpus: readonly MipsVcpu[];

  /** Builds a virtual machine, not started. Throws `RangeError` for options that cannot be. */
  constructor(machine: Machine, options: MipsVmOptions = {}) {
    super(machine, { ...SHAPE, order: options.order ?? "big" }, options);
    this.host = checkHost(options.host ?? "mainline");
    this.mode = (options.bits ?? 64) === 64 ? "wide" : "narrow";
    this.countHz = checkHz(options.countHz ?? 100_000_000);
    this.userspace = new MipsUserspace(this.memory);
    this.vcpus = this.makeVcpus(options, (index) => new MipsVcpu(this, index));
  }
}

function checkHost(host: string): MipsHost {
  if (Object.hasOwn(MIPS_HOSTS, host)) return host as MipsHost;
  throw new RangeError(
    `Cannot simulate a MIPS host ${host}: allowed are ${Object.keys(MIPS_HOSTS).join(", ")}`,
  );
}

function checkHz(hz: number): number {
  if (Number.isInteger(hz) && hz >= 1 && hz < 2 ** 32) return hz;
  throw new RangeError(`Cannot run Count at ${hz} Hz: allowed are 1 to 2^32 - 1`);
}
