/**
 * What a host's processor can do for interrupts: from nothing to IPI virtualization on VMX, to x2AVIC on SVM; and how
 * KVM finds those whom AVIC's IPIs do not reach.
 *
 * @module
 */

import type { BackendName } from "./backends.ts";

/**
 * What the host's processor has, each with all before it.
 *
 * VMX: "apicv" is APIC-register virtualization, virtual-interrupt delivery and posted interrupts (Ivy Bridge-EP);
 * "ipiv" is IPI virtualization (Sapphire Rapids). SVM: "avic", and "x2avic", which knows x2APIC mode.
 */
export type Acceleration = "none" | "apicv" | "ipiv" | "avic" | "x2avic";

/**
 * How KVM finds the vCPUs that it must kick after AVIC has found a target of an IPI not running: asks every vCPU; the
 * single look-up of the patch of April 2022 as it was posted; today's look-up of every target.
 */
export type AvicKick = "slow" | "2022" | "v6.19";

/** The ways to find them. */
export const AVIC_KICKS: readonly AvicKick[] = ["slow", "2022", "v6.19"];

/** Vouches for a way to find them. Throws `RangeError` naming those that there are. */
export function avicKick(name: string): AvicKick {
  if (!AVIC_KICKS.includes(name as AvicKick)) {
    throw new RangeError(`Cannot kick AVIC's targets by ${name}: allowed are ${AVIC_KICKS.join(", ")}`);
  }
  return name as AvicKick;
}

/** What each vendor's processors can have. */
export const ACCELERATIONS: Readonly<Record<BackendName, readonly Acceleration[]>> = {
  vmx: ["none", "apicv", "ipiv"],
  svm: ["none", "avic", "x2avic"],
};

/** Vouches for an acceleration. Throws `RangeError` naming those that the vendor has. */
export function acceleration(name: string, backend: BackendName): Acceleration {
  const allowed = ACCELERATIONS[backend];
  if (!allowed.includes(name as Acceleration)) {
    throw new RangeError(
      `Cannot build a ${backend} processor with ${name}: allowed are ${allowed.join(", ")}`,
    );
  }
  return name as Acceleration;
}
