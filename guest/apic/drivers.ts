/**
 * The APIC drivers that a kernel has compiled in.
 *
 * @module
 */

import type { ApicDriver, ApicMachine, ApicName } from "./driver.ts";
import { X2apicClusterDriver, X2apicPhysicalDriver } from "./x2apic.ts";
import { XapicDriver } from "./xapic.ts";

/** One of each, unmodified: a kernel has its own, since paravirtual drivers replace their operations. */
export function apicDrivers(machine: ApicMachine): readonly ApicDriver[] {
  return [new X2apicPhysicalDriver(machine), new X2apicClusterDriver(machine), new XapicDriver(machine)];
}

/** The driver of a name. Throws `RangeError` naming those allowed. */
export function chooseApicDriver(drivers: readonly ApicDriver[], name: ApicName): ApicDriver {
  const driver = drivers.find((candidate) => candidate.name === name);
  if (driver === undefined) {
    throw new RangeError(
      `Cannot drive the APIC with ${name}: allowed are ${drivers.map((d) => d.name).join(", ")}`,
    );
  }
  return driver;
}
