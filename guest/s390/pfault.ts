/**
 * Pseudo page faults, the guest's half (arch/s390/mm/pfault.c): the handshake, and per task a state that takes both
 * interruptions in either order, as the completion may go to another CPU and be there first.
 *
 *     pfault_wait   initial                    completion
 *      0            1, and the task blocks     -1 if it is running; else nothing: a leftover
 *      1            the task blocks again      0, and the task is woken
 *     -1            0                          -1 if it is running; else nothing
 *
 * @module
 */

import {
  encodePfaultCancel,
  encodePfaultToken,
  PFAULT_COMPLETE,
  PFAULT_DONE,
  PSW_MASK_PSTATE,
  S390_ERRNO,
  type S390Cpu,
  type S390Guest,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { S390_LC_LPP } from "./kernel.ts";
import { s390StoreBytes } from "./storage.ts";

/** Begins the handshake of this CPU: faults in the problem state, by the token in the lowcore. Whether the host took it. */
export function* pfaultInit(cpu: S390Cpu, block: number): GuestValue<boolean> {
  yield* s390StoreBytes(
    cpu,
    block,
    encodePfaultToken({
      tokenAddress: BigInt(S390_LC_LPP),
      selectMask: PSW_MASK_PSTATE,
      compareMask: PSW_MASK_PSTATE,
    }),
  );
  // The result register holds an error while nobody has answered.
  yield cpu.diag258(block, -S390_ERRNO.EOPNOTSUPP);
  return cpu.register(3) === BigInt(PFAULT_DONE);
}

/** Ends it. */
export function* pfaultFini(cpu: S390Cpu, block: number): S390Guest {
  yield* s390StoreBytes(cpu, block, encodePfaultCancel());
  yield cpu.diag258(block);
}

/** A task's state: 0; 1 while it waits for a page; -1 where the page came before the fault was told. */
export type PfaultWait = -1 | 0 | 1;

/** What an interruption does to a task. */
export interface PfaultStep {
  /** The state afterwards. */
  readonly wait: PfaultWait;
  /** What becomes of the task. */
  readonly task: "blocks" | "is woken" | "goes on";
}

/** The state machine. `running` says whether the task can run: neither waits for a page nor for anything else. */
export function pfaultStep(wait: PfaultWait, subcode: number, running: boolean): PfaultStep {
  if ((subcode & PFAULT_COMPLETE) !== 0) {
    if (wait === 1) return { wait: 0, task: "is woken" };
    return { wait: running ? -1 : wait, task: "goes on" };
  }
  return wait === -1 ? { wait: 0, task: "goes on" } : { wait: 1, task: "blocks" };
}
