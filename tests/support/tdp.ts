/**
 * Virtual machines whose pages KVM's tables of the second dimension map, for tests: a disk makes KVM track the pages of
 * guests that have no tables themselves.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { LEVEL_PT, PHYSICAL_ADDRESS_LIMIT } from "../../abi/mod.ts";
import {
  type BackendName,
  type DiskOptions,
  Ept,
  type HostPage,
  HostTask,
  mappingOf,
  Npt,
  type PolicySpec,
  type Quirk,
  type Steps,
  type Vm,
  type VmOptions,
} from "../../host/mod.ts";
import { Rig, type RigOptions } from "./guests.ts";

/** A disk that takes its time. */
export const DISK: DiskOptions = { pages: 2 ** 24, latency: 100_000 };

/** How a rig with tracked pages is made. */
export interface TrackedOptions extends VmOptions {
  /** Whether an oracle judges each use of a translation; true by default. */
  readonly staleness?: boolean;
  /** Who runs next. */
  readonly policy?: PolicySpec;
  /** Physical CPUs. */
  readonly pcpus?: number;
  /** ASIDs of each CPU. */
  readonly asids?: number;
  /** Whether VMRUN can flush one ASID. */
  readonly flushByAsid?: boolean;
  /** Deviations. */
  readonly quirks?: readonly Quirk[];
}

/** A rig all of whose pages can be away. */
export function trackedRig(backend: BackendName, options: TrackedOptions = {}): Rig {
  const { staleness = true, policy = "timed", quirks = [], pcpus, asids, flushByAsid, ...vm } = options;
  const machine: RigOptions["machine"] = {
    staleness,
    policy,
    quirks,
    ...pcpus !== undefined && { pcpus },
    ...asids !== undefined && { asids },
    ...flushByAsid !== undefined && { flushByAsid },
  };
  return new Rig({ machine, vm: { backend, disk: DISK, trace: 1 << 16, ...vm } });
}

/** Runs steps as a thread of the host's, from clock `at` on. */
export function task<T>(vm: Vm, steps: Steps<T>, at: number = 0): HostTask<T> {
  return new HostTask(vm.engine, "host task", steps, at);
}

/** Where a guest-physical address is mapped now, and whether it may be written; undefined where it is not mapped. */
export function mapped(vm: Vm, address: number): { level: number; writable: boolean } | undefined {
  const mapping = mappingOf(vm.mmu.tables, address);
  return mapping && { level: mapping.level, writable: mapping.writable };
}

/** Everything that is mapped is in memory, as KVM has to see to. */
export function checkMapped({ mmu, residency }: Vm): void {
  for (const { gpa, level } of mmu.tables?.leaves(0, PHYSICAL_ADDRESS_LIMIT) ?? []) {
    const away = residency!.firstAway(gpa, level === LEVEL_PT ? 4096 : 2 ** 21);
    assertEquals(away, -1, `0x${away.toString(16)} is away, and mapped by an entry of level ${level}`);
  }
}

/** A page of 4 KiB that may be written. */
export const SMALL = { level: LEVEL_PT, writable: true };

/** What hardware finds that walks the tables of a virtual machine; undefined for a fault. It sets no flag. */
export function hardwareFinds(vm: Vm, address: number, write = false): HostPage | undefined {
  const { physical } = vm.machine;
  const root = vm.mmu.tables!.root.address;
  const memory = {
    word: (at: number) => physical.word(at),
    setWord() {},
    backed: (at: number, bytes: number) => physical.backed(at, bytes),
  };
  const npt = { maxPhysicalBits: 46, pages1G: true, amd: true };
  const ept = vm.vmxSetup?.capabilities.eptFeatures;
  const tables = ept === undefined
    ? new Npt({ memory, ncr3: root, nx: true, features: npt })
    : new Ept({ memory, eptp: root + (ept.accessedDirty ? 0x5e : 0x1e), features: ept });
  const found = tables.translate(address, { purpose: "final", write, fetch: false });
  return found.kind === "page" ? found : undefined;
}
