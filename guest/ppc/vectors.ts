/**
 * Interrupt vectors of a PowerPC guest, and the handlers that every one needs.
 *
 * @module
 */

import {
  type MachineFunction,
  type MachineGuest,
  type MachineText,
  type PpcCore,
  type PpcCpu,
  ppcFamily,
  type PpcInterrupt,
  ppcVector,
  type SprName,
  SRR1_MSR_BITS,
} from "../../abi/mod.ts";

/** Handlers by interrupt. */
export type PpcHandlers = Partial<Record<PpcInterrupt, MachineFunction<PpcCpu>>>;

/**
 * A handler that throws what happened into the function that it interrupts, as an exception table does. It takes the
 * cause out of SRR1: processors ignore it when a handler returns, but KVM-PR moves all of SRR1 to the MSR, where the
 * bit of a privileged instruction is MSR[POW], and waits (arch/powerpc/kvm/book3s_pr.c, kvmppc_set_msr_pr).
 */
export function* ppcFixup(cpu: PpcCpu): MachineGuest {
  if (ppcFamily(cpu.core) === "book3s") {
    yield cpu.mfspr("SRR1");
    yield cpu.mtspr("SRR1", cpu.r3 & SRR1_MSR_BITS);
  }
  yield cpu.mtspr("SRR0", cpu.fixupPad());
}

/** What has a handler in any case: a fault is thrown where it happened. */
const FIXED_UP: PpcHandlers = { DATA_STORAGE: ppcFixup, PROGRAM: ppcFixup };

/** Places handlers at their vectors. */
export function placePpcHandlers(text: MachineText<PpcCpu>, core: PpcCore, handlers: PpcHandlers = {}): void {
  const all = Object.entries({ ...FIXED_UP, ...handlers }) as [PpcInterrupt, MachineFunction<PpcCpu>][];
  for (const [interrupt, handler] of all) {
    text.addAt(ppcVector(ppcFamily(core), interrupt), handler, handler.name || interrupt);
  }
}

const IVORS: readonly (readonly [SprName, PpcInterrupt])[] = [
  ["IVOR2", "DATA_STORAGE"],
  ["IVOR3", "INST_STORAGE"],
  ["IVOR4", "EXTERNAL"],
  ["IVOR6", "PROGRAM"],
  ["IVOR8", "SYSCALL"],
  ["IVOR10", "DECREMENTER"],
];

/** Tells the processor where the vectors are: BookE asks for that, Book3S does not. */
export function* setPpcVectors(cpu: PpcCpu): MachineGuest {
  if (ppcFamily(cpu.core) !== "booke") return;
  yield cpu.mtspr("IVPR", 0);
  for (const [register, interrupt] of IVORS) {
    yield cpu.mtspr(register, ppcVector("booke", interrupt));
  }
}
