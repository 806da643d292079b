import type { Guest, GuestFunction, Gva, X86Cpu } from "../../abi/mod.ts";
import type { Kernel } from "../kernel/kernel.ts";
/** x */
export interface MmOptions {
  readonly frames?: number;
}
/** x */
export class MemoryManager {
  declare end: number;
  declare smap: boolean;
  constructor(_k: Kernel, _s: number, _o: MmOptions) {}
  declare boot: (cpu: X86Cpu) => Guest;
  declare bootProcessor: (cpu: X86Cpu, n: number) => Guest;
  declare enterLongMode: (cpu: X86Cpu) => Guest;
  declare switchTasks: (cpu: X86Cpu, a: number, b: number) => Guest;
  declare finishSwitch: (cpu: X86Cpu) => Guest;
  declare exitTask: (cpu: X86Cpu, n: number) => Guest;
  declare get: (cpu: X86Cpu, n: number) => Guest;
  declare disableFaults: (cpu: X86Cpu, n: number) => Guest;
  declare accessOk: (a: number, n: number) => boolean;
  declare addUserText: (p: GuestFunction, n: string) => Gva;
}
