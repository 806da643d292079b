/**
 * A kernel whose processors call functions on one another, for tests of who runs them, when and how often.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { X86Cpu } from "../../abi/mod.ts";
import type { GuestSemantics, GuestValue } from "../../guest/mod.ts";
import { KernelRig, type KernelRigOptions } from "./kernels.ts";

/** Kernels of which years there are. */
export const YEARS: readonly GuestSemantics[] = ["v6.19", "2022", "2021", "2018", "2012"];
/** CALL_FUNCTION_SINGLE_VECTOR. */
export const SINGLE = 0xfb;
/** Memory of the tests' own, behind all that a small kernel uses. */
export const SCRATCH = 0x300_0000;
/** What processors wait for: it is 0 until somebody says go. */
export const GO: number = SCRATCH + 0x100;

/** The number of the processor that runs this. */
export function* self(cpu: X86Cpu): GuestValue<number> {
  yield cpu.load32(cpu.gsBase);
  return cpu.eax;
}

/** A kernel with a function that notes who called it with what, and whether interrupts were off. */
export function noting(
  options: KernelRigOptions,
): { rig: KernelRig; func: number; notes: [number, number][] } {
  const rig = new KernelRig(options);
  const notes: [number, number][] = [];
  const func = rig.kernel.smpFunction(function* note(cpu, info) {
    yield cpu.pushf();
    assertEquals(cpu.interruptsEnabled, false);
    notes.push([yield* self(cpu), info]);
  });
  return { rig, func, notes };
}

/** Computes in stretches while something has not happened yet: others go on. */
export function* whileWaiting(cpu: X86Cpu, waiting: () => boolean): Generator<number, void, void> {
  while (waiting()) yield cpu.work(1000);
}
