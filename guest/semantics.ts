/**
 * Which guest kernel is simulated: today's Linux, or that of a year whose patches are reproduced here. One row says
 * what differs.
 *
 * @module
 */

/** A guest kernel's year. */
export type GuestSemantics = "v6.19" | "2022" | "2021" | "2018" | "2012";

/** The ways to send an IPI to several processors that a PV IPI driver can override. */
export type IpiOperation = "mask" | "maskAllButSelf" | "allButSelf" | "all";

/** What differs between guest kernels. */
export interface GuestBehaviour {
  /** IPIs to all online processors use the ICR's shorthand once every present one has booted. Since v5.4 (2019). */
  readonly ipiShorthand: boolean;
  /**
   * When a call for several processors is sent as one for a single processor: when one IPI is needed, or when the call
   * has one target. Since v5.13 (2021) the first.
   */
  readonly singleCallWhen: "one-ipi" | "one-target";
  /** A processor whose queue holds calls already gets no other IPI. Since v4.14 (2017). */
  readonly skipsQueuedIpis: boolean;
  /** A processor that goes off line disables its APIC, so that shorthands pass it by. Since v5.4 (2019). */
  readonly silencesDeadApics: boolean;
  /** The local APIC's task priority: 0x10 keeps vectors below 0x20 out. Since v5.4 (2019); before that it was 0. */
  readonly taskPriority: number;
  /**
   * What PV EOI replaces: `eoi` of the APIC driver in use, or `eoi_write` of every driver that the kernel has. Since
   * v6.6 (2023) the first.
   */
  readonly eoiHook: "eoi" | "eoiWrite";
  /** What PV EOI's eoi_write falls back to: the driver's plain register write, or what eoi_write was before. */
  readonly eoiFallback: "write" | "native";
  /** What PV IPIs override; none where the kernel has no PV IPIs. */
  readonly pvIpiOverrides: readonly IpiOperation[];
  /** The boot processor disables paravirtual areas for suspend, and a crashing one before it dies. Since v5.13 (2021). */
  readonly teardownOnSuspendAndCrash: boolean;
}

/** The guest kernels. */
export const GUEST_SEMANTICS: Readonly<Record<GuestSemantics, GuestBehaviour>> = {
  "v6.19": {
    ipiShorthand: true,
    singleCallWhen: "one-ipi",
    skipsQueuedIpis: true,
    silencesDeadApics: true,
    taskPriority: 0x10,
    eoiHook: "eoi",
    eoiFallback: "native",
    pvIpiOverrides: ["mask", "maskAllButSelf"],
    teardownOnSuspendAndCrash: true,
  },
  "2022": {
    ipiShorthand: true,
    singleCallWhen: "one-ipi",
    skipsQueuedIpis: true,
    silencesDeadApics: true,
    taskPriority: 0x10,
    eoiHook: "eoiWrite",
    eoiFallback: "native",
    pvIpiOverrides: ["mask", "maskAllButSelf"],
    teardownOnSuspendAndCrash: true,
  },
  "2021": {
    ipiShorthand: true,
    singleCallWhen: "one-ipi",
    skipsQueuedIpis: true,
    silencesDeadApics: true,
    taskPriority: 0x10,
    eoiHook: "eoiWrite",
    eoiFallback: "native",
    pvIpiOverrides: ["mask", "maskAllButSelf"],
    teardownOnSuspendAndCrash: true,
  },
  "2018": {
    ipiShorthand: false,
    singleCallWhen: "one-target",
    skipsQueuedIpis: true,
    silencesDeadApics: false,
    taskPriority: 0,
    eoiHook: "eoiWrite",
    eoiFallback: "native",
    pvIpiOverrides: ["mask", "maskAllButSelf", "allButSelf", "all"],
    teardownOnSuspendAndCrash: false,
  },
  "2012": {
    ipiShorthand: false,
    singleCallWhen: "one-target",
    skipsQueuedIpis: false,
    silencesDeadApics: false,
    taskPriority: 0,
    eoiHook: "eoiWrite",
    eoiFallback: "write",
    pvIpiOverrides: [],
    teardownOnSuspendAndCrash: false,
  },
};

/** Vouches for a guest kernel's name. Throws `RangeError` naming those allowed. */
export function guestSemantics(name: string): GuestSemantics {
  if (!Object.hasOwn(GUEST_SEMANTICS, name)) {
    throw new RangeError(
      `Cannot simulate a guest of ${name}: allowed are ${Object.keys(GUEST_SEMANTICS).join(", ")}`,
    );
  }
  return name as GuestSemantics;
}
