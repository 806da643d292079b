/**
 * Translation of addresses.
 *
 * @module
 */

export * from "./ept_walk.ts";
export * from "./guest_walk.ts";
export * from "./npt_walk.ts";
export * from "./permissions.ts";
export * from "./translation.ts";
