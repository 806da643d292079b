/**
 * The local APIC.
 *
 * @module
 */

export * from "./access.ts";
export * from "./apic_map.ts";
export * from "./base.ts";
export * from "./delivery.ts";
export * from "./destination.ts";
export * from "./edge.ts";
export * from "./icr.ts";
export * from "./lapic.ts";
export * from "./message.ts";
export * from "./registers.ts";
export * from "./timer.ts";
export * from "./vector_state.ts";
export * from "./vectors.ts";
