/**
 * Physical CPUs, and the host's scheduler.
 *
 * @module
 */

export * from "./pcpu.ts";
export * from "./scheduler.ts";
