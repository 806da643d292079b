/**
 * PowerPC guests.
 *
 * @module
 */

export * from "./hypercall.ts";
