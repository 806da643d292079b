/**
 * MIPS guests.
 *
 * @module
 */

export * from "./hypercall.ts";
export * from "./paravirt.ts";
export * from "./user_mode.ts";
export * from "./vectors.ts";
