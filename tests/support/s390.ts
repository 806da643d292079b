/**
 * Small s390 guests for tests: a virtual machine that executes one DIAGNOSE, whatever its bytes are, with any registers.
 *
 * @module
 */

import {
  assembleInstruction,
  type CallOutcome,
  type DiagField,
  LOWCORE,
  MachineFault,
  S390_DIAG,
  S390_OP_DIAG_500,
  type S390Cpu,
  type S390Guest,
} from "../../abi/mod.ts";
import { S390Kernel } from "../../guest/mod.ts";
import { Machine, type S390Vcpu, type S390Vm, type S390VmOptions } from "../../host/mod.ts";

/** 2 MiB. */
export const MEMORY = 0x20_0000;

/** A call. */
export interface DiagCall {
  /** The instruction's fields, where they are others than those of KVM's own calls. */
  readonly fields?: Partial<Record<DiagField, number>>;
  /** General registers, by number. */
  readonly gprs?: Readonly<Record<number, number | bigint>>;
  /** What the virtual machine is. */
  readonly vm?: S390VmOptions;
  /** Sets it up. */
  readonly prepare?: (vm: S390Vm) => void;
  /** What the guest does before. */
  readonly before?: (cpu: S390Cpu) => S390Guest;
}

/** What came of a call. */
export interface DiagResult {
  /** The program-interruption code; 0 where there was none. */
  readonly pic: number;
  /** The registers afterwards. */
  readonly gprs: readonly bigint[];
  /** Those before. */
  readonly before: readonly bigint[];
  /** The condition code before and after. */
  readonly cc: readonly [number, number];
  /** How far the PSW was behind the instruction's first byte: in the old PSW, if it was interrupted. */
  readonly advance: number;
  /** The instruction's length, as the lowcore has it. */
  readonly ilc: number;
  /** The virtual machine. */
  readonly vm: S390Vm;
  /** The vCPU. */
  readonly vcpu: S390Vcpu;
  /** What the host did last. */
  readonly outcome: CallOutcome | undefined;
}

/** Executes one DIAGNOSE in the supervisor state. */
export function diagnose(
  { fields = {}, gprs = {}, vm: options = {}, prepare, before }: DiagCall,
): DiagResult {
  const vm = new Machine().createS390Vm({ memory: MEMORY, ...options });
  const registers = (cpu: S390Cpu) => Array.from({ length: 16 }, (_, number) => cpu.register(number));
  let [first, last]: bigint[][] = [[], []];
  let [ccBefore, ccAfter, pic, site, behind] = [0, 0, 0, 0, 0];
  const kernel = new S390Kernel({
    *main(cpu) {
      if (before !== undefined) yield* before(cpu);
      for (const [number, value] of Object.entries(gprs)) cpu.setRegister(Number(number), value);
      first = registers(cpu);
      ccBefore = cpu.cc;
      site = cpu.top!.block.address + cpu.layout.site[S390_OP_DIAG_500];
      try {
        yield cpu.diag500();
        behind = cpu.top!.block.address + cpu.layout.behind[S390_OP_DIAG_500];
      } catch (error) {
        if (!(error instanceof MachineFault)) throw error;
        pic = error.code;
      }
      last = registers(cpu);
      ccAfter = cpu.cc;
    },
  });
  prepare?.(vm);
  vm.load(kernel.text);
  const bytes = assembleInstruction(S390_DIAG, "big", fields);
  vm.memory.load(kernel.entry + kernel.text.layout.site[S390_OP_DIAG_500], bytes);
  vm.start(kernel.entry);
  vm.machine.run(1e7);
  const [vcpu] = vm.vcpus;
  const { fields: lowcore } = LOWCORE;
  const interrupted = pic !== 0;
  return {
    pic,
    gprs: last,
    before: first,
    cc: [ccBefore, ccAfter],
    advance: (interrupted ? Number(vm.words.read64(lowcore.program_old_psw.offset + 8)) : behind) - site,
    ilc: interrupted ? vm.words.read(lowcore.pgm_ilc.offset, 2)! : 0,
    vm,
    vcpu,
    outcome: vcpu.lastOutcome,
  };
}

/** A call of DIAGNOSE 0x500: subcode and parameters from gpr 2 on. */
export function call500(
  subcode: number | bigint,
  parameters: readonly (number | bigint)[],
  more: Omit<DiagCall, "gprs" | "fields"> = {},
): DiagResult {
  const gprs: Record<number, number | bigint> = { 1: subcode };
  for (const [index, parameter] of parameters.entries()) gprs[2 + index] = parameter;
  return diagnose({ ...more, gprs });
}

/** Runs a program under a kernel, to its end. */
export function runS390(
  main: (cpu: S390Cpu) => S390Guest,
  options: S390VmOptions = {},
  prepare?: (vm: S390Vm) => void,
): S390Vm {
  const vm = new Machine().createS390Vm({ memory: MEMORY, ...options });
  const kernel = new S390Kernel({ main });
  prepare?.(vm);
  vm.load(kernel.text);
  vm.start(kernel.entry);
  const { end } = vm.machine.run(1e7);
  if (end !== "finished") throw new Error(`the guest did not finish: ${end}, ${vm.ending}`);
  return vm;
}
