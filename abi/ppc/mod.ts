/**
 * The PowerPC side of the contract: registers, instructions, interrupts, hypercalls of ePAPR and KVM, and the magic
 * page.
 *
 * @module
 */

export * from "./assembly.ts";
export * from "./convention.ts";
export * from "./cpu.ts";
export * from "./fields.ts";
export * from "./hcalls.ts";
export * from "./instructions.ts";
export * from "./interrupts.ts";
export * from "./magic_page.ts";
export * from "./pvinfo.ts";
export * from "./registers.ts";
export * from "./text.ts";
