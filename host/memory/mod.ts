/**
 * Guest-physical memory.
 *
 * @module
 */

export * from "./cache.ts";
export * from "./guest_memory.ts";
export * from "./host_memory.ts";
export * from "./mmio_marks.ts";
export * from "./slot.ts";
