import {
  type MachineFunction,
  type MachineGuest,
  MSR_EE,
  type PpcCpu,
  ppcFamily,
  TCR_DIE,
  TSR_DIS,
} from "../../abi/mod.ts";
import { DATA } from "./ppc.ts";

/** Counts itself in memory, and acknowledges: Book3S by a new count, BookE by the status register. */
export function decrementerHandler(next: number = 0x7fff_ffff): MachineFunction<PpcCpu> {
  return function* decrementer(cpu) {
    yield cpu.lwz(DATA);
    yield cpu.stw(DATA, cpu.r3 + 1n);
    yield cpu.mtspr("DEC", next);
    if (ppcFamily(cpu.core) === "booke") yield cpu.mtspr("TSR", TSR_DIS);
  };
}

/** Lets the decrementer expire after some cycles. */
export function* arm(cpu: PpcCpu, cycles: number): MachineGuest {
  if (ppcFamily(cpu.core) === "booke") yield cpu.mtspr("TCR", TCR_DIE);
  yield cpu.mtspr("DEC", cycles);
}

/** Sets MSR[EE]. */
export function* setEe(cpu: PpcCpu, on: boolean): MachineGuest {
  yield cpu.mfmsr();
  yield cpu.mtmsr(on ? cpu.r3 | BigInt(MSR_EE) : cpu.r3 & ~BigInt(MSR_EE));
}

/** How often the decrementer was taken. */
export function* taken(cpu: PpcCpu) {
  yield cpu.lwz(DATA);
  return Number(cpu.r3);
}
