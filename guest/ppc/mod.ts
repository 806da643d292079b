/**
 * PowerPC guests.
 *
 * @module
 */

export * from "./epapr.ts";
export * from "./flat_tree.ts";
export * from "./hypercall.ts";
export * from "./idle.ts";
export * from "./magic_page/patch.ts";
export * from "./magic_page/patch_table.ts";
export * from "./magic_page/templates.ts";
export * from "./vectors.ts";
