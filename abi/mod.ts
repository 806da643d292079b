/**
 * The contract between guests and hosts: what both sides know, and all that either knows of the other. It imports
 * nothing.
 *
 * "SDM" is Intel's Software Developer's Manual in its December 2023 numbering, "APM" AMD's Architecture Programmer's
 * Manual; paths are those of the Linux source.
 *
 * @module
 */

export * from "./bits.ts";
export * from "./brand.ts";
export * from "./convention.ts";
export * from "./fdt.ts";
export * from "./fdt_parse.ts";
export * from "./hypercalls.ts";
export * from "./instruction_format.ts";
export * from "./kvm_errors.ts";
export * from "./layout.ts";
export * from "./machine_context.ts";
export * from "./mips/mod.ts";
export * from "./ppc/mod.ts";
export * from "./s390/mod.ts";
export * from "./text_block.ts";
export * from "./virtio_ring.ts";
export * from "./words.ts";
export * from "./x86/mod.ts";
