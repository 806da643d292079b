/**
 * MIPS guests.
 *
 * @module
 */

export * from "./hypercall.ts";
