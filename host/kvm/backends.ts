/**
 * The vendor modules by name.
 *
 * @module
 */

import { Svm } from "../svm/mod.ts";
import { createVmx, createVmxInVain } from "../vmx/create.ts";
import type { Backend } from "./backend.ts";
import type { Vcpu } from "./vcpu.ts";
import type { Vm } from "./vm.ts";

/** A vendor module. */
export type BackendName = "vmx" | "svm";

/** The vendor modules. */
export const BACKENDS: readonly BackendName[] = ["vmx", "svm"];

/** Vouches for a vendor module's name. Throws `RangeError` naming those allowed. */
export function backendName(name: string): BackendName {
  if (!(BACKENDS as readonly string[]).includes(name)) {
    throw new RangeError(`Cannot use backend ${name}: allowed are ${BACKENDS.join(", ")}`);
  }
  return name as BackendName;
}

/** The vendor module's part of a vCPU. */
export function createBackend(vcpu: Vcpu, name: BackendName): Backend {
  return name === "vmx" ? createVmx(vcpu) : new Svm(vcpu);
}

/** What a vendor module does for a vCPU whose creation fails behind it, and undoes. */
export function createBackendInVain(vm: Vm, vcpuId: number): void {
  if (vm.backend === "vmx") createVmxInVain(vm, vcpuId);
}
