/**
 * The MIPS side of the contract: registers, segments, instructions, the hypercall convention.
 *
 * @module
 */

export * from "./convention.ts";
export * from "./cpu.ts";
export * from "./instructions.ts";
export * from "./registers.ts";
export * from "./segments.ts";
