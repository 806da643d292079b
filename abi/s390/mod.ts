/**
 * s390x: the contract between KVM and its guests there, and what both know of the architecture.
 *
 * @module
 */

export * from "./calls.ts";
export * from "./convention.ts";
export * from "./cpu.ts";
export * from "./diagnose.ts";
export * from "./instructions.ts";
export * from "./interruptions.ts";
export * from "./ipl.ts";
export * from "./lowcore.ts";
export * from "./pfault.ts";
export * from "./psw.ts";
export * from "./sysib.ts";
export * from "./sysib_machine.ts";
export * from "./virtio_ccw.ts";
