/**
 * MIPS kernels' exception vectors: two words that jump to the handler.
 *
 * @module
 */

import {
  type MachineFunction,
  type MachineText,
  MIPS_EBASE,
  MIPS_VECTOR_GENERAL,
  MIPS_VECTOR_REFILL,
  type MipsCpu,
} from "../../abi/mod.ts";

const J = 0x0800_0000;
const NOP = 0;

/** Has the general vector jump to a handler, and the TLB refill's too: nothing here has a TLB to refill. */
export function mipsVectors(text: MachineText<MipsCpu>, handler: MachineFunction<MipsCpu>): void {
  const entry = text.add(handler);
  const words = [J | ((entry >>> 2) & 0x03ff_ffff), NOP];
  text.addWords(MIPS_EBASE + MIPS_VECTOR_GENERAL, words);
  text.addWords(MIPS_EBASE + MIPS_VECTOR_REFILL, words);
}

/** A handler that sends whatever faulted to its fixup: functions find a {@linkcode MachineFault} thrown. */
// deno-lint-ignore require-yield
export function* mipsFixup(cpu: MipsCpu): Generator<number, void, void> {
  cpu.fixup();
}
