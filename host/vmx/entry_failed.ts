/**
 * VM entry's checks, and what comes of those that fail: the instruction fails (VMfailValid), KVM dumps the VMCS, and
 * KVM_RUN comes back with KVM_EXIT_FAIL_ENTRY. That is a bug of the host's, so here it is an error.
 *
 * @module
 */

import { APIC_TASKPRI, VMXERR_ENTRY_INVALID_CONTROL_FIELD } from "../../abi/mod.ts";
import { entryFailed } from "../kvm/userspace.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import { dumpVmcs } from "./dump.ts";
import { type EntryCheck, failedEntryChecks } from "./entry_checks.ts";
import type { Vmcs } from "./vmcs.ts";

/** Checks controls before an entry. Throws {@linkcode VmEntryFailed}, and the virtual machine is dead. */
export function checkControls(vcpu: Vcpu, vmcs: Vmcs): void {
  const failed = failedEntryChecks(vmcs, vcpu.lapic.get(APIC_TASKPRI));
  if (failed.length === 0) {
    vmcs.unchecked = 0;
    return;
  }
  vmcs.vmInstructionError = VMXERR_ENTRY_INVALID_CONTROL_FIELD;
  entryFailed(vcpu);
  throw new VmEntryFailed(vcpu.vcpuId, failed, dumpVmcs(vcpu));
}

/** VM entry failed: the controls are invalid, and the virtual machine is dead. */
export class VmEntryFailed extends Error {
  /** The error's name. */
  override readonly name = "VmEntryFailed";
  /** hardware_entry_failure_reason: the VM-instruction error. */
  readonly hardwareEntryFailureReason: number = VMXERR_ENTRY_INVALID_CONTROL_FIELD;
  /** The checks that failed. */
  readonly failed: readonly EntryCheck[];
  /** The VMCS, as KVM dumps it. */
  readonly dump: string;

  /** The entry on `vcpu` failed these checks. */
  constructor(vcpu: number, failed: readonly EntryCheck[], dump: string) {
    const rules = failed.map(({ name, rule, sdm }) => `${rule} (${name}, SDM 3C ${sdm})`);
    super(
      `Cannot enter the guest on vcpu ${vcpu}: VM-instruction error ${VMXERR_ENTRY_INVALID_CONTROL_FIELD}, ` +
        `as it must hold that ${rules.join("; that ")}`,
    );
    this.failed = failed;
    this.dump = dump;
  }
}
