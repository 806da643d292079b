/**
 * The interrupt controllers and routes outside the local APICs.
 *
 * @module
 */

export * from "./ioapic.ts";
export * from "./routing.ts";
