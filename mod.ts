/**
 * Exitless: a laboratory for KVM's paravirtual interface.
 *
 * @module
 */

export * from "./abi/mod.ts";
export * from "./guest/mod.ts";
export * from "./host/mod.ts";
