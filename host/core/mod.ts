/**
 * The architecture-neutral stepping core: threads, clocks, policies, limits.
 *
 * @module
 */

export * from "./engine.ts";
export * from "./entropy.ts";
export * from "./limits.ts";
export * from "./mutex.ts";
export * from "./policy.ts";
export * from "./queue.ts";
export * from "./schedule.ts";
export * from "./steps.ts";
export * from "./thread.ts";
export * from "./time.ts";
export * from "./timer.ts";
