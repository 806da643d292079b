/**
 * VMRUN's check of AVIC's fields, and what comes of those that fail: VMEXIT_INVALID, and KVM_RUN comes back with
 * KVM_EXIT_FAIL_ENTRY. That is a bug of the host's, so here it is an error.
 *
 * @module
 */

import { SVM_EXIT_ERR } from "../../abi/mod.ts";
import { entryFailed } from "../kvm/userspace.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { type AvicRule, brokenAvicRules } from "./avic/consistency.ts";
import type { Vmcb } from "./vmcb.ts";

/** Checks AVIC's fields, where they were written. Throws {@linkcode VmrunFailed}, and the virtual machine is dead. */
export function checkAvic(vcpu: Vcpu, vmcb: Vmcb): void {
  const broken = brokenAvicRules(vmcb, vcpu.machine.hostMemory);
  if (broken.length > 0) {
    entryFailed(vcpu);
    throw new VmrunFailed(vcpu.vcpuId, broken);
  }
  vmcb.avicDirty = false;
}

/** VMRUN refused a VMCB, and the virtual machine is dead. */
export class VmrunFailed extends Error {
  /** The error's name. */
  override readonly name = "VmrunFailed";
  /** hardware_entry_failure_reason: the exit code. */
  readonly hardwareEntryFailureReason: number = SVM_EXIT_ERR;
  /** The rules that the VMCB breaks. */
  readonly broken: readonly AvicRule[];

  /** VMRUN on `vcpu` found these rules broken. */
  constructor(vcpu: number, broken: readonly AvicRule[]) {
    super(
      `Cannot enter the guest on vcpu ${vcpu}: VMEXIT_INVALID, as it must hold that ` +
        broken.map(({ rule }) => rule).join("; that "),
    );
    this.broken = broken;
  }
}
