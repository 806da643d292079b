/**
 * The paravirtual features of the host: one file a feature, one line here.
 *
 * @module
 */

import type { HypercallHandler } from "../kvm/hypercall.ts";
import type { MsrHandler } from "../kvm/msr.ts";
import { CLOCK_PAIRING } from "./clock_pairing.ts";
import { KICK_CPU } from "./kick_cpu.ts";
import { POLL_CONTROL_MSR } from "./poll_control.ts";
import { PV_EOI_MSR } from "./pv_eoi.ts";
import { SCHED_YIELD } from "./sched_yield.ts";
import { SEND_IPI } from "./send_ipi.ts";

/** The features' MSRs. */
export const PV_MSR_HANDLERS: readonly MsrHandler[] = [PV_EOI_MSR, POLL_CONTROL_MSR];

/** The features' hypercalls. */
export const PV_HYPERCALLS: readonly HypercallHandler[] = [KICK_CPU, CLOCK_PAIRING, SEND_IPI, SCHED_YIELD];
