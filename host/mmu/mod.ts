/**
 * Translation of addresses.
 *
 * @module
 */

export * from "./cached_second.ts";
export * from "./cpu_tlb.ts";
export * from "./ept_walk.ts";
export * from "./guest_walk.ts";
export * from "./in_memory.ts";
export * from "./invalidate.ts";
export * from "./look_up.ts";
export * from "./npt_walk.ts";
export * from "./permissions.ts";
export * from "./stale_translation.ts";
export * from "./staleness.ts";
export * from "./tlb.ts";
export * from "./tlb_array.ts";
export type { ArrayGeometry, BankGeometry } from "./tlb_banks.ts";
export * from "./tlb_entry.ts";
export * from "./translation.ts";
