/**
 * The paravirtual drivers, in the order in which a kernel probes them. A new one is a file and a line here.
 *
 * @module
 */

import type { PvDriver } from "./driver.ts";
import { pvEoi } from "./pv_eoi.ts";
import { pvIpi } from "./pv_ipi.ts";

/** Every driver. */
export const PV_DRIVERS: readonly PvDriver[] = [pvEoi, pvIpi];
