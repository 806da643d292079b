/**
 * Handlers for what no driver asked for: exceptions, and interrupts that nobody expects.
 *
 * @module
 */

import { APIC_ISR, GP_VECTOR, type Guest, PF_VECTOR, UD_VECTOR, type X86Cpu } from "../../abi/mod.ts";
import type { Kernel } from "./kernel.ts";
import { SPURIOUS_APIC_VECTOR } from "./vectors.ts";

/** The exceptions that end in the interrupted function's fixup: what its exception table is for. */
export const FIXED_UP: readonly number[] = [UD_VECTOR, GP_VECTOR, PF_VECTOR];

/** Goes on in the fixup of the instruction that faulted: it throws there. */
// deno-lint-ignore require-yield
export function* fixupException(cpu: X86Cpu): Guest {
  cpu.fixup();
}

/**
 * An interrupt that no handler is registered for: it is ended only if it really is in service, and the APIC's own
 * spurious interrupt never is (SDM 3A 11.9).
 */
export function* spuriousInterrupt(cpu: X86Cpu, kernel: Kernel): Guest {
  const { vector } = cpu;
  yield* kernel.countIrq(cpu, vector);
  if (vector === SPURIOUS_APIC_VECTOR) return;
  yield* kernel.apic.read(cpu, APIC_ISR + 16 * (vector >>> 5));
  if (((cpu.eax >>> (vector & 31)) & 1) !== 0) yield* kernel.ackApicIrq(cpu);
}
