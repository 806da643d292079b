/**
 * What a paravirtual driver is: hooks that the kernel calls along its life. All but {@linkcode PvDriver.probe} are
 * optional; what a hook touches is its processor's own, unless it says otherwise.
 *
 *     boot      probe (boot processor, once) -> online (each processor, interrupts off)
 *     hotplug   offline (that processor) -> online (again, when it is started again)
 *     suspend   suspend (boot processor) -> resume (boot processor)
 *     reboot    reboot (every processor)
 *     crash     crash (the processor that crashes, it alone: the others are stopped where they are)
 *
 * @module
 */

import type { Guest, X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import type { Kernel } from "../kernel/kernel.ts";

/** A paravirtual driver. */
export interface PvDriver {
  /** Its name: what a kernel's `disable` option calls it. */
  readonly name: string;
  /** Looks whether the host offers what it drives, and installs its overrides. Whether it is in use from now on. */
  probe(cpu: X86Cpu, kernel: Kernel): GuestValue<boolean>;
  /** This processor comes up. */
  online?(cpu: X86Cpu, kernel: Kernel): Guest;
  /** This processor goes down. */
  offline?(cpu: X86Cpu, kernel: Kernel): Guest;
  /** The machine goes to sleep. */
  suspend?(cpu: X86Cpu, kernel: Kernel): Guest;
  /** The machine woke up. */
  resume?(cpu: X86Cpu, kernel: Kernel): Guest;
  /** This processor crashes, and another kernel takes over its memory. */
  crash?(cpu: X86Cpu, kernel: Kernel): Guest;
  /** The machine restarts, or another kernel is started in its place. */
  reboot?(cpu: X86Cpu, kernel: Kernel): Guest;
}

/** The hooks after probing. */
export type PvHook = Exclude<keyof PvDriver, "name" | "probe">;
