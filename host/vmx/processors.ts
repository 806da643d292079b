/**
 * Processors as lists of VMX features.
 *
 * @module
 */

import { VMX_FEATURES } from "../../abi/mod.ts";

/** What every VMX processor that runs KVM has. */
const ALWAYS: readonly string[] = [
  "intr_exiting",
  "nmi_exiting",
  "intr_window_exiting",
  "tsc_offset",
  "hlt_exiting",
  "invlpg_exiting",
  "mwait_exiting",
  "rdpmc_exiting",
  "rdtsc_exiting",
  "cr3_load_exiting",
  "cr3_store_exiting",
  "cr8_load_exiting",
  "cr8_store_exiting",
  "mov_dr_exiting",
  "uncond_io_exiting",
  "use_io_bitmaps",
  "use_msr_bitmaps",
  "monitor_exiting",
  "pause_exiting",
];

/** A feature that is there only with others: aggregates with all their parts, dependents with what they need. */
const NEEDS: Readonly<Record<string, readonly string[]>> = {
  flexpriority: ["vtpr", "vapic"],
  apicv: ["vtpr", "vapic_reg", "vid", "posted_intr"],
  eptp_switching: ["vmfunc", "ept"],
  ept_x_only: ["ept"],
  ept_ad: ["ept"],
  ept_1gb: ["ept"],
  ept_5level: ["ept"],
  unrestricted_guest: ["ept"],
  pml: ["ept_ad"],
};
/** What a feature brings along: controls without which its own cannot be set, and which /proc/cpuinfo does not show. */
const BRINGS: Readonly<Record<string, readonly string[]>> = {
  vnmi: ["nmi_window_exiting"],
  ipi_virt: ["tertiary_controls"],
};

const NO_APICV = [
  "vnmi",
  "preemption_timer",
  "invvpid",
  "ept_x_only",
  "ept_1gb",
  "flexpriority",
  "vtpr",
  "mtf",
  "vapic",
  "ept",
  "vpid",
  "unrestricted_guest",
  "ple",
  "desc_exiting",
  "rdtscp",
  "virtual_x2apic",
  "wbinvd_exiting",
] as const;
const APICV = [
  ...NO_APICV,
  "posted_intr",
  "ept_ad",
  "apicv",
  "vapic_reg",
  "vid",
  "shadow_vmcs",
  "pml",
  "tsc_scaling",
  "invpcid",
  "rdrand_exiting",
  "rdseed_exiting",
  "xsaves",
] as const;
const IPI_VIRTUALIZATION = [...APICV, "usr_wait_pause", "notify_vm_exiting", "ipi_virt"] as const;

/** The processors that have a name here. */
export type VmxProcessor = "none" | "apicv" | "ipiv";

/**
 * Feature lists, named by what they do for interrupts. APICv came with Ivy Bridge-EP, IPI virtualization with Sapphire
 * Rapids; what else is in a list is usual beside it.
 */
export const VMX_PROCESSORS: Readonly<Record<VmxProcessor, readonly string[]>> = {
  none: NO_APICV,
  apicv: APICV,
  ipiv: IPI_VIRTUALIZATION,
};

/**
 * The features of a processor: those listed, or those of a named list, with what every processor has and what they bring
 * along. Throws `RangeError` for a name that is no feature, and for a feature without what it needs.
 */
export function completeFeatures(named: readonly string[] | VmxProcessor): ReadonlySet<string> {
  const list = typeof named === "string" ? processor(named) : named;
  const features = new Set(ALWAYS);
  for (const name of list) {
    const spec = VMX_FEATURES.find((known) => known.name === name);
    if (spec === undefined) {
      throw new RangeError(
        `Cannot build a processor with VMX feature ${name}: allowed are ${
          VMX_FEATURES.map((known) => known.name).join(", ")
        }`,
      );
    }
    features.add(name);
    if (spec.word === 2) features.add("sec_controls");
    for (const brought of BRINGS[name] ?? []) features.add(brought);
  }
  for (const [name, needs] of Object.entries(NEEDS)) {
    if (!features.has(name)) continue;
    const missing = needs.filter((needed) => !features.has(needed));
    if (missing.length > 0) {
      throw new RangeError(
        `Cannot build a processor with VMX feature ${name}: it lacks ${missing.join(", ")}`,
      );
    }
  }
  for (const aggregate of ["flexpriority", "apicv"]) {
    if (NEEDS[aggregate].every((part) => features.has(part))) features.add(aggregate);
  }
  return features;
}

function processor(name: string): readonly string[] {
  if (Object.hasOwn(VMX_PROCESSORS, name)) return VMX_PROCESSORS[name as VmxProcessor];
  throw new RangeError(
    `Cannot build processor ${name}: allowed are ${
      Object.keys(VMX_PROCESSORS).join(", ")
    }, or a list of features`,
  );
}
