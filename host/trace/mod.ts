/**
 * Tracepoints: what they are, counting and recording them, printing them.
 *
 * @module
 */

export * from "./format.ts";
export * from "./tracepoints.ts";
export * from "./tracer.ts";
