/**
 * Waiting in the host: a routine that enables interrupts and calls EV_IDLE until one has been taken
 * (arch/powerpc/kernel/epapr_hcalls.S, epapr_ev_idle).
 *
 * An interrupt between the look for work and the call would be lost to a loop that looks and calls. So nobody looks:
 * the CPU says that it naps, and the handler of whatever interrupt sends it behind its call of the routine.
 *
 * @module
 */

import {
  encodePpc,
  type MachineGuest,
  MSR_EE,
  PPC_LR,
  PPC_NOP,
  ppcAsm,
  type PpcCore,
  type PpcCpu,
  ppcHypercallToken,
} from "../../abi/mod.ts";

/** What a napping CPU has in memory: not 0 while it naps. */
export interface Nap {
  /** The routine. */
  readonly routine: number;
  /** The word that says so. */
  readonly flag: number;
}

/** The routine's words as a linker writes them, and which of them the device tree's replace. */
export function idleRoutine(
  core: PpcCore,
): { readonly words: readonly number[]; readonly hypercall: number } {
  const token = ppcHypercallToken("EV_IDLE");
  const enable = core === "booke" ? [encodePpc("wrteei", { E: 1 })] : [
    encodePpc("mfmsr", { RT: 4 }),
    encodePpc("ori", { RA: 4, RS: 4, UI: MSR_EE }),
    encodePpc("mtmsr", { RS: 4 }),
  ];
  const loop = [
    ppcAsm.lis(11, token >>> 16),
    encodePpc("ori", { RA: 11, RS: 11, UI: token & 0xffff }),
    ppcAsm.li(3, -1),
    PPC_NOP,
    PPC_NOP,
    PPC_NOP,
  ];
  const words = [...enable, ...loop, ppcAsm.b(4 * loop.length, 0)]; // hosts may wake a CPU for nothing
  return { words, hypercall: enable.length + 2 };
}

/** Waits until an interrupt has been taken. Interrupts are disabled before, and enabled after. */
export function* evIdle(cpu: PpcCpu, { routine, flag }: Nap): MachineGuest {
  yield cpu.stw(flag, 1);
  yield cpu.call(routine);
}

/** In the handler of an interrupt: a CPU that naps goes on behind its call of the routine. */
export function* endNap(cpu: PpcCpu, { flag }: Nap): MachineGuest {
  yield cpu.lwz(flag);
  if (cpu.r3 === 0n) return;
  yield cpu.stw(flag, 0);
  yield cpu.mtspr("SRR0", cpu.interruptedRegister(PPC_LR));
}
