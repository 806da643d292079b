/**
 * What tests of explanations share: guests that have booted, and what is said of a path.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { Explanation, Vm } from "../../host/mod.ts";
import { KernelRig, type KernelRigOptions } from "./kernels.ts";

/** A kernel that has booted and ended. */
export function booted({ vm, ...options }: KernelRigOptions = {}): Vm {
  return new KernelRig({ cpus: 2, ...options, vm: { vcpus: 2, ...vm } }).run().vm;
}

/** What is said of a path, where all vCPUs agree. */
export function said(vm: Vm, path: string): Explanation {
  const rows = vm.explain().filter((row) => row.path === path);
  assertEquals(rows.length, 1, `${path}: ${rows.map(({ why }) => why).join(" | ")}`);
  assertEquals(rows[0].vcpus, vm.vcpus.map(({ vcpuId }) => vcpuId));
  return rows[0];
}

/** A path is in use, for this reason. */
export function yes(vm: Vm, path: string, why: string): void {
  const { inUse, why: found } = said(vm, path);
  assertEquals([inUse, found], [true, why]);
}

/** A path is not in use, for this reason. */
export function no(vm: Vm, path: string, why: string): void {
  const { inUse, why: found } = said(vm, path);
  assertEquals([inUse, found], [false, why]);
}
