/**
 * Devices that the host's kernel serves.
 *
 * @module
 */

export * from "./bus.ts";
export * from "./disk.ts";
export * from "./ioeventfd.ts";
export * from "./msi_source.ts";
