/**
 * Guest-physical memory.
 *
 * @module
 */

export * from "./cache.ts";
export * from "./dirty_log.ts";
export * from "./guest_memory.ts";
export * from "./host_memory.ts";
export * from "./mmio_marks.ts";
export * from "./ownership.ts";
export * from "./page_bitmap.ts";
export * from "./page_window.ts";
export * from "./physical_space.ts";
export * from "./residency.ts";
export * from "./slot.ts";
