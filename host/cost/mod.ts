/**
 * The cost model.
 *
 * @module
 */

export * from "./primitives.ts";
export * from "./profile.ts";
