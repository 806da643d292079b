/**
 * The device tree that user space writes for a guest: the part of QEMU in ePAPR's and KVM's discovery (hw/ppc/e500.c,
 * ppce500_load_device_tree; hw/ppc/spapr.c, spapr_dt_hypervisor).
 *
 * @module
 */

import {
  fdtCells,
  type FdtNode,
  fdtStrings,
  type FdtTree,
  HAS_IDLE,
  HCALL_INSTRUCTIONS,
  HYPERVISOR_NODE,
  KVM_COMPATIBLE,
} from "../../abi/mod.ts";
import type { HypervisorNode, PpcHost } from "./hosts.ts";

/** What a tree tells. */
export interface DeviceTreeOptions {
  /** The host. */
  readonly host: PpcHost;
  /** Bytes of memory at address 0. */
  readonly memory: number;
  /** vCPUs. */
  readonly vcpus: number;
  /** Frequency of the time base, in Hz. */
  readonly timebase: number;
}

/** The tree of a guest. */
export function deviceTree({ host, memory, vcpus, timebase }: DeviceTreeOptions): FdtTree {
  const cpus = Array.from({ length: vcpus }, (_, index): [string, FdtNode] => [
    `cpu@${index.toString(16)}`,
    node({
      device_type: fdtStrings("cpu"),
      reg: fdtCells(index),
      "timebase-frequency": fdtCells(timebase),
    }),
  ]);
  return {
    root: node({
      "#address-cells": fdtCells(2),
      "#size-cells": fdtCells(2),
      compatible: fdtStrings("exitless,ppc"),
      model: fdtStrings(host.meaning),
    }, {
      cpus: node({ "#address-cells": fdtCells(1), "#size-cells": fdtCells(0) }, Object.fromEntries(cpus)),
      "memory@0": node({
        device_type: fdtStrings("memory"),
        reg: fdtCells(0, 0, Math.floor(memory / 2 ** 32), memory % 2 ** 32),
      }),
      ...(host.hypervisor === undefined ? {} : { [HYPERVISOR_NODE]: hypervisor(host.hypervisor) }),
    }),
  };
}

function hypervisor({ words, idle }: HypervisorNode): FdtNode {
  return node({
    compatible: fdtStrings(KVM_COMPATIBLE),
    ...(words === undefined ? {} : { [HCALL_INSTRUCTIONS]: fdtCells(...words) }),
    ...(idle ? { [HAS_IDLE]: new Uint8Array(0) } : {}),
  });
}

function node(properties: FdtNode["properties"], children: FdtNode["children"] = {}): FdtNode {
  return { properties, children };
}
