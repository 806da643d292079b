/**
 * A small s390 kernel: it fills the lowcore, takes interruptions, and waits.
 *
 *     0x0_0000  lowcore of CPU 0; the others' are their own, at their prefix
 *     0x1_0000  text
 *
 * A program interruption ends at the fixup of the function that it interrupted, as an exception table has it: the function
 * sees a MachineFault with the code.
 *
 * @module
 */

import {
  CR0_SERVICE_SIGNAL_SUBMASK,
  DISABLED_WAIT_PSW_MASK,
  KERNEL_PSW_MASK,
  LOWCORE,
  type MachineText,
  PSW_MASK_EXT,
  PSW_MASK_IO,
  PSW_MASK_WAIT,
  S390_RETURN_PSW,
  type S390Cpu,
  type S390Function,
  type S390Guest,
  s390Text,
  USER_PSW_MASK,
  WAIT_PSW_MASK,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { s390LoadField } from "./storage.ts";

/** The kernel's own places in the lowcore, in the part that is software's. */
export const S390_LC_SCRATCH = 0x280;
/** A PSW that it is about to load. */
export const S390_LC_PSW = 0x2a0;
/** The doubleword that names the running task: what pfault tells. */
export const S390_LC_LPP = 0x2b0;
/** Two bytes for the CPU's address. */
export const S390_LC_CPU_NR = 0x2b8;

/** What a handler of external interruptions is told. */
export interface ExternalInterruption {
  /** The code. */
  readonly code: number;
  /** The CPU-address field, which for CP services is a subcode. */
  readonly subcode: number;
  /** The 64-bit parameter. */
  readonly parameter: bigint;
}

/** Handles an external interruption. */
export type ExternalHandler = (cpu: S390Cpu, what: ExternalInterruption) => S390Guest;
/** Serves a supervisor call; gets its number. The caller's registers are the interrupted ones. */
export type SupervisorCall = (cpu: S390Cpu, nr: number) => S390Guest;

/** How a kernel is built. */
export interface S390KernelOptions {
  /** What runs on CPU 0, interruptions disabled. */
  readonly main: S390Function;
  /** Serves supervisor calls; there are none by default. */
  readonly svc?: SupervisorCall;
}

/** A kernel image. */
export class S390Kernel {
  /** Its functions. */
  readonly text: MachineText<S390Cpu> = s390Text();
  /** Where CPU 0 starts. */
  readonly entry: number;
  readonly #external: number;
  readonly #program: number;
  readonly #svc: number;
  readonly #handlers = new Map<number, ExternalHandler>();

  /** Links an image. */
  constructor({ main, svc }: S390KernelOptions) {
    const { text } = this;
    this.#program = text.add(programCheck);
    this.#external = text.add((cpu) => this.#externalInterrupt(cpu), "externalInterrupt");
    this.#svc = text.add((cpu) => supervisorCall(cpu, svc), "supervisorCall");
    this.entry = this.cpu(0, main);
  }

  /** Handles external interruptions of a code. */
  onExternal(code: number, handler: ExternalHandler): void {
    this.#handlers.set(code, handler);
  }

  /**
   * Links what runs on a CPU whose lowcore is at `prefix`: that is filled first. Gives the entry, to be started by whoever
   * owns the virtual machine.
   */
  cpu(prefix: number, main: S390Function): number {
    const setUp = (cpu: S390Cpu) => this.#setUp(cpu, prefix);
    return this.text.add(function* boot(cpu) {
      yield* setUp(cpu);
      yield* main(cpu);
    }, main.name);
  }

  *#setUp(cpu: S390Cpu, prefix: number): S390Guest {
    if (prefix !== 0) {
      // SPX takes its operand from storage. Every CPU finds the first one's lowcore at 0 so far: that is not touched.
      yield cpu.store32(prefix + S390_LC_SCRATCH, prefix);
      yield cpu.spx(prefix + S390_LC_SCRATCH);
    }
    const { fields } = LOWCORE;
    for (
      const [field, address] of [
        [fields.program_new_psw, this.#program],
        [fields.external_new_psw, this.#external],
        [fields.svc_new_psw, this.#svc],
      ] as const
    ) {
      yield cpu.store64(field.offset, KERNEL_PSW_MASK);
      yield cpu.store64(field.offset + 8, address);
    }
  }

  *#externalInterrupt(cpu: S390Cpu): S390Guest {
    const { fields } = LOWCORE;
    const [mask, address] = yield* oldPsw(cpu, fields.external_old_psw.offset);
    const code = Number(yield* s390LoadField(cpu, 0, fields.ext_int_code));
    const subcode = Number(yield* s390LoadField(cpu, 0, fields.ext_cpu_addr));
    const parameter = yield* s390LoadField(cpu, 0, fields.ext_params2);
    const handler = this.#handlers.get(code);
    if (handler !== undefined) yield* handler(cpu, { code, subcode, parameter });
    // Who waited goes on, with interruptions disabled, as Linux' idle loop does.
    const waited = (mask & PSW_MASK_WAIT) !== 0n;
    yield* returnTo(cpu, waited ? mask & ~(PSW_MASK_WAIT | PSW_MASK_EXT | PSW_MASK_IO) : mask, address);
  }
}

/** The exception table has every instruction that functions wait for a fault of: all. */
function* programCheck(cpu: S390Cpu): S390Guest {
  const { program_old_psw, pgm_ilc } = LOWCORE.fields;
  const [mask] = yield* oldPsw(cpu, program_old_psw.offset);
  // Without an instruction's length it is the PSW itself that was refused: its mask would be again.
  const length = yield* s390LoadField(cpu, 0, pgm_ilc);
  yield* returnTo(cpu, length === 0n ? KERNEL_PSW_MASK : mask, cpu.fixupPad());
}

function* supervisorCall(cpu: S390Cpu, serve: SupervisorCall | undefined): S390Guest {
  const [mask, address] = yield* oldPsw(cpu, LOWCORE.fields.svc_old_psw.offset);
  if (serve !== undefined) yield* serve(cpu, Number(cpu.interruptedRegister(1)));
  yield* returnTo(cpu, mask, address);
}

function* oldPsw(cpu: S390Cpu, at: number): GuestValue<readonly [mask: bigint, address: bigint]> {
  yield cpu.load64(at);
  const mask = cpu.value;
  yield cpu.load64(at + 8);
  return [mask, cpu.value];
}

/** The handler ends with LPSWE from here. */
function* returnTo(cpu: S390Cpu, mask: bigint, address: number | bigint): S390Guest {
  yield cpu.store64(S390_RETURN_PSW, mask);
  yield cpu.store64(S390_RETURN_PSW + 8, address);
}

/** Goes on behind here with another mask. */
export function* loadPswMask(cpu: S390Cpu, mask: bigint): S390Guest {
  yield cpu.store64(S390_LC_PSW, mask);
  yield cpu.store64(S390_LC_PSW + 8, cpu.behindLpswe);
  yield cpu.lpswe(S390_LC_PSW);
}

/** Goes on in the problem state, with interruptions enabled. */
export function s390EnterUserMode(cpu: S390Cpu): S390Guest {
  return loadPswMask(cpu, USER_PSW_MASK);
}

/** Waits for an external interruption, and goes on with them disabled. */
export function s390Wait(cpu: S390Cpu): S390Guest {
  return loadPswMask(cpu, WAIT_PSW_MASK);
}

/** Gives up: a disabled wait. */
export function s390DisabledWait(cpu: S390Cpu): S390Guest {
  return loadPswMask(cpu, DISABLED_WAIT_PSW_MASK);
}

/** Has service signals, and with them CP services, be taken. */
export function* enableServiceSignals(cpu: S390Cpu): S390Guest {
  yield cpu.stctg0(S390_LC_SCRATCH);
  yield cpu.load64(S390_LC_SCRATCH);
  yield cpu.store64(S390_LC_SCRATCH, cpu.value | CR0_SERVICE_SIGNAL_SUBMASK);
  yield cpu.lctlg0(S390_LC_SCRATCH);
}

/** This CPU's address. */
export function* s390CpuAddress(cpu: S390Cpu): GuestValue<number> {
  yield cpu.stap(S390_LC_SCRATCH);
  yield cpu.load16(S390_LC_SCRATCH);
  return cpu.number;
}
