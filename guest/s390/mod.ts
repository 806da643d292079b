/**
 * s390 guests.
 *
 * @module
 */

export * from "./hypercall.ts";
export * from "./kernel.ts";
export * from "./machine_type.ts";
export * from "./pfault.ts";
export * from "./reset.ts";
export * from "./spinlock.ts";
export * from "./storage.ts";
export * from "./tasks.ts";
export * from "./virtio_ccw.ts";
