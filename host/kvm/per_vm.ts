/**
 * What a vendor module keeps for a whole virtual machine, and makes when the first vCPU asks for it.
 *
 * @module
 */

import type { Vm } from "./vm.ts";

/** A look-up of what `make` has made for a virtual machine: once for each, and gone with it. */
export function perVm<T extends object>(make: (vm: Vm) => T): (vm: Vm) => T {
  const made = new WeakMap<Vm, T>();
  return (vm) => {
    let kept = made.get(vm);
    if (kept === undefined) {
      kept = make(vm);
      made.set(vm, kept);
    }
    return kept;
  };
}
