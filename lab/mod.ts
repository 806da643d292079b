/**
 * What people do with guests and hosts: experiments, and reports of what they found.
 *
 * @module
 */

export * from "./experiments/avic_kick.ts";
export * from "./explain.ts";
export * from "./features.ts";
export * from "./experiments/demand_paging.ts";
export * from "./experiments/experiment.ts";
export * from "./experiments/hypercalls.ts";
export * from "./experiments/ipiv.ts";
export * from "./hypercalls/observe.ts";
export * from "./experiments/pv_eoi.ts";
export * from "./experiments/pv_ipi.ts";
export * from "./experiments/registry.ts";
export * from "./experiments/tlb_shootdown.ts";
export * from "./measure.ts";
export * from "./report/bars.ts";
export * from "./report/explanation.ts";
export * from "./report/features.ts";
export * from "./report/perf_stat.ts";
export * from "./report/table.ts";
export * from "./report/trace_text.ts";
