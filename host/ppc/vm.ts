/**
 * A PowerPC virtual machine, and the user space that boots it.
 *
 * @module
 */

import { buildFdt, type ByteOrder, type FdtTree, type PpcCpu } from "../../abi/mod.ts";
import { ArchVm, type ArchVmOptions } from "../arch/mod.ts";
import { type CostProfile, SKYLAKE_VMX } from "../cost/mod.ts";
import type { Machine } from "../machine.ts";
import { deviceTree } from "./device_tree.ts";
import { PPC_EXITS } from "./exits.ts";
import { PPC_HOSTS, type PpcHost, type PpcHostName } from "./hosts.ts";
import { PPC_TRACEPOINTS } from "./tracepoints.ts";
import { PpcVcpu } from "./vcpu.ts";

/** How a PowerPC virtual machine is made. Everything has a default. */
export interface PpcVmOptions extends ArchVmOptions {
  /** The host; KVM-PR on a 64-bit server by default. */
  readonly host?: PpcHostName;
  /** The guest's byte order; big by default. Guests of 64-bit servers may be little-endian. */
  readonly order?: ByteOrder;
  /** The byte order of a 64-bit host itself; big by default. */
  readonly hostOrder?: ByteOrder;
  /** The device tree instead of user space's own. */
  readonly deviceTree?: FdtTree;
}

/** Prices: a server's, until somebody measures a PowerPC one. */
const GENERIC_PPC: CostProfile = { ...SKYLAKE_VMX, name: "generic-ppc" };

/** Memory at the top that user space uses to boot: the tree, then a stack for each vCPU below it. */
const BOOT_AREA = 0x1_0000;

/** A PowerPC virtual machine. */
export class PpcVm extends ArchVm<PpcCpu> {
  /** Its host. */
  readonly host: PpcHost;
  /** The byte order that its guest runs in. */
  readonly order: ByteOrder;
  /** The byte order of its host. */
  readonly hostOrder: ByteOrder;
  /** Its vCPUs. */
  override readonly vcpus: readonly PpcVcpu[];
  /** Where the device tree is. */
  readonly fdtAddress: number;

  /** Throws `RangeError` for options that cannot be. */
  constructor(machine: Machine, options: PpcVmOptions = {}) {
    const name = options.host ?? "book3s-64-pr";
    if (!Object.hasOwn(PPC_HOSTS, name)) {
      throw new RangeError(`Cannot run a guest on ${name}: allowed are ${Object.keys(PPC_HOSTS).join(", ")}`);
    }
    const host = PPC_HOSTS[name];
    const order = options.order ?? "big";
    if (order === "little" && host.core !== "book3s-64") {
      throw new RangeError(`Cannot run a little-endian guest on ${name}: on ${host.core} allowed is big`);
    }
    super(machine, {
      arch: "ppc",
      order,
      tracepoints: PPC_TRACEPOINTS,
      exitNames: PPC_EXITS,
      costs: GENERIC_PPC,
      loadAddress: (address) => address,
    }, options);
    this.host = host;
    this.order = order;
    this.hostOrder = options.hostOrder ?? "big";
    this.vcpus = this.makeVcpus(options, (index) => new PpcVcpu(this, index));
    const memory = this.memory.slots[0].size;
    this.fdtAddress = memory - BOOT_AREA;
    const tree = options.deviceTree ?? deviceTree({
      host,
      memory,
      vcpus: this.vcpus.length,
      timebase: Math.min(this.clockKhz * 1000, 0xffff_ffff),
    });
    this.#place(buildFdt(tree));
  }

  #place(blob: Uint8Array): void {
    if (blob.length > BOOT_AREA || !this.memory.load(this.fdtAddress, blob)) {
      throw new RangeError(
        `Cannot place a device tree of ${blob.length} bytes: allowed are ${BOOT_AREA}, and memory for it`,
      );
    }
    for (const { index, context } of this.vcpus) {
      context.setRegister(1, this.fdtAddress - BOOT_AREA * index);
      context.setRegister(3, this.fdtAddress);
    }
  }
}
