/**
 * MIPS guests for tests: a virtual machine, an image with vectors that send faults to fixups, and one program.
 *
 * @module
 */

import {
  type MachineFunction,
  type MachineText,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  type MipsCpu,
  mipsText,
} from "../../abi/mod.ts";
import { mipsFixup, mipsVectors } from "../../guest/mod.ts";
import {
  Machine,
  type MachineOptions,
  type MipsVm,
  type MipsVmOptions,
  type RunResult,
} from "../../host/mod.ts";

/** Both byte orders. */
export const ORDERS = ["big", "little"] as const;
/** Hosts that have a KVM. */
export const MIPS_KVMS = ["mainline", "imgtec", "cavium"] as const;

/** How a rig is made. */
export interface MipsRigOptions extends MipsVmOptions {
  /** The machine. */
  readonly machine?: MachineOptions;
  /** What is at the exception vectors; a fixup by default, undefined for nothing. */
  readonly handler?: MachineFunction<MipsCpu> | undefined;
}

/** A guest and its machine. */
export class MipsRig {
  readonly vm: MipsVm;
  readonly text: MachineText<MipsCpu> = mipsText();

  constructor(options: MipsRigOptions = {}) {
    const limits = { steps: 1e6, ...options.machine?.limits };
    this.vm = new Machine({ ...options.machine, limits }).createMipsVm({ memory: 2 ** 21, ...options });
    const handler = "handler" in options ? options.handler : mipsFixup;
    if (handler !== undefined) mipsVectors(this.text, handler);
  }

  /** Runs a program. Status.ERL and EXL are cleared before it begins, so that exceptions are taken as usual. */
  run(program: MachineFunction<MipsCpu>): RunResult {
    const entry = this.text.add(function* start(cpu) {
      yield cpu.mfc0Status();
      yield cpu.mtc0Status(cpu.value32 & ~(MIPS_STATUS_ERL | MIPS_STATUS_EXL));
      yield* program(cpu);
    });
    this.vm.load(this.text);
    this.vm.start(entry);
    return this.vm.machine.run();
  }
}

/** Runs a program on a machine of its own. */
export function runMips(program: MachineFunction<MipsCpu>, options: MipsRigOptions = {}): MipsVm {
  const rig = new MipsRig(options);
  rig.run(program);
  return rig.vm;
}
