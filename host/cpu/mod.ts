/**
 * The processor in guest mode.
 *
 * @module
 */

export { GuestError, NotModelled } from "./errors.ts";
export { burst } from "./burst.ts";
export * from "./events.ts";
export { setCr3 } from "./control_registers.ts";
export * from "./memory_access.ts";
export * from "./mmu.ts";
export * from "./parts.ts";
export * from "./processor.ts";
export * from "./reset.ts";
export * from "./state.ts";
export * from "./virtualization.ts";
