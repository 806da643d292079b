/**
 * Every call of DIAGNOSE on s390: the subcodes of 0x500, and its other functions.
 *
 * @module
 */

import {
  argumentsInOrder,
  type DiagName,
  DIAGNOSES,
  type DiagSpec,
  encodeCall,
  encodePfaultToken,
  PSW_MASK_PSTATE,
  S390_CONVENTION,
  S390_HYPERCALLS,
  type S390Cpu,
  type S390HypercallSpec,
  s390RegisterNumber,
} from "../../abi/mod.ts";
import { s390EnterUserMode, S390Kernel } from "../../guest/mod.ts";
import { Machine, type S390Host } from "../../host/mod.ts";
import type { Watcher } from "../experiments/experiment.ts";
import { conventionRegisters, type CountedCall, Observer, type PlannedCall } from "./observe.ts";

/** How the hosts are chosen. */
export interface S390CallOptions {
  /** Whose host. */
  readonly host: S390Host;
  /** Who sees each machine. */
  readonly watcher: Watcher;
}

/** Where the guest keeps what it hands over. */
const BLOCK = 0x9000;
/** Pages that it gives back. */
const [FIRST, LAST] = [0x8_0000, 0x8_1000];
/** A subcode that nobody has. */
const UNKNOWN = 5;

function plan(subchannel: number): PlannedCall<S390Cpu>[] {
  const values: Readonly<Record<string, number>> = {
    address: 0x1234,
    descriptor: 0x1000,
    subchannel,
    queue: 0,
    cookie: 0,
    preset: 0,
  };
  const table: [string, S390HypercallSpec][] = Object.entries(S390_HYPERCALLS);
  return [
    ...table.map(([name, { nr, args }]) => planned(name, nr, argumentsInOrder(args, values))),
    planned(`unknown subcode ${UNKNOWN}`, UNKNOWN, []),
    fromUserMode(planned("KVM_S390_VIRTIO_CCW_NOTIFY", S390_HYPERCALLS.KVM_S390_VIRTIO_CCW_NOTIFY.nr, [])),
    ...Object.entries(FUNCTIONS).map(([name, issue]) => ({
      name: `DIAG 0x${DIAGNOSES[name as DiagName].code.toString(16)} ${name}`,
      results: [RESULTS[DIAGNOSES[name as DiagName].result]],
      prepare: parameterBlock,
      issue,
    })),
  ];
}

/** The same in the problem state. */
function fromUserMode(call: PlannedCall<S390Cpu>): PlannedCall<S390Cpu> {
  return {
    ...call,
    name: `${call.name}, from user mode`,
    *prepare(cpu) {
      yield* s390EnterUserMode(cpu);
      yield* call.prepare(cpu);
    },
  };
}

function planned(name: string, nr: number, values: readonly bigint[]): PlannedCall<S390Cpu> {
  const loads = Object.entries(
    encodeCall(S390_CONVENTION, { number: BigInt(nr), arguments: values }, "wide"),
  );
  return {
    name,
    *prepare(cpu) {
      yield cpu.nop();
      for (const [register, value] of loads) {
        cpu.setRegister(s390RegisterNumber(register as "gpr1"), value);
      }
    },
    issue: (cpu) => cpu.diag500(),
  };
}

/** DIAGNOSE's other functions, with operands that they take. */
const FUNCTIONS: Readonly<Record<Exclude<DiagName, "KVM_VIRTIO_FUNCTIONS">, (cpu: S390Cpu) => number>> = {
  RELEASE_PAGES: (cpu) => cpu.diag10(FIRST, LAST),
  TIME_SLICE_END: (cpu) => cpu.diag44(),
  TIME_SLICE_END_DIRECTED: (cpu) => cpu.diag9c(1),
  PAGE_REFERENCE_SERVICES: (cpu) => cpu.diag258(BLOCK),
  IPL_FUNCTIONS: (cpu) => cpu.diag308(6, BLOCK),
  KVM_BREAKPOINT: (cpu) => cpu.diag501(),
};

/** Where their results come, with the registers that these functions' instructions name. */
const RESULTS: Readonly<Record<DiagSpec["result"], string>> = {
  "r1 + 1": "gpr3",
  r3: "gpr3",
  gpr2: "gpr2",
  none: "gpr2",
};

/** The handshake's block, which asks for tokens. */
function* parameterBlock(cpu: S390Cpu): Generator<number, void, void> {
  const block = encodePfaultToken({
    tokenAddress: BigInt(BLOCK + 0x100),
    selectMask: PSW_MASK_PSTATE,
    compareMask: PSW_MASK_PSTATE,
  });
  for (const [i, byte] of block.entries()) yield cpu.store8(BLOCK + i, byte);
  for (const register of conventionRegisters(S390_CONVENTION)) {
    cpu.setRegister(s390RegisterNumber(register), 0);
  }
}

/** Makes every call, each on a machine of its own. */
export function s390Calls({ host, watcher }: S390CallOptions): Map<string, CountedCall> {
  const calls = new Map<string, CountedCall>();
  const count = plan(0).length;
  for (let index = 0; index < count; index++) {
    const vm = new Machine().createS390Vm({ host, vcpus: 2, trace: watcher.records });
    const subchannel = vm.addCcwDevice({ number: 0, queues: [128], notified: () => {} });
    const call = plan(subchannel)[index];
    const observer = new Observer({
      vm,
      convention: S390_CONVENTION,
      registers: conventionRegisters(S390_CONVENTION),
      read: (cpu: S390Cpu, register) => cpu.register(s390RegisterNumber(register)),
      site: (cpu, opcode) => ({
        text: cpu.layout.instructionText(opcode),
        address: cpu.top!.block.address + cpu.layout.site[opcode],
        bytes: 4,
        unitBytes: 4,
      }),
    }, call);
    const kernel = new S390Kernel({ main: (cpu) => observer.make(cpu) });
    vm.load(kernel.text);
    vm.start(kernel.entry);
    vm.machine.run();
    watcher.done(call.name, vm);
    calls.set(call.name, observer.result());
  }
  return calls;
}
