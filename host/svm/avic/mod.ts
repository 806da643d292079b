/**
 * AMD's Advanced Virtual Interrupt Controller: hardware, and KVM's module for it.
 *
 * @module
 */

export * from "./avic.ts";
export * from "./consistency.ts";
export * from "./hardware.ts";
export * from "./kick.ts";
export * from "./logical_ids.ts";
export * from "./registers.ts";
export * from "./tables.ts";
