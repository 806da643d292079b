import { Machine, type MachineOptions, type PpcVm, type PpcVmOptions } from "../../host/mod.ts";
import {
  type ByteOrder,
  MachineFault,
  type MachineFunction,
  MSR_PR,
  PPC_BLR,
  type PpcCpu,
  ppcText,
  unitsToBytes,
} from "../../abi/mod.ts";
import {
  epaprInit,
  placePpcHandlers,
  type PpcHandlers,
  setPpcVectors,
  TEMPLATE_SPACE,
  type TextRange,
} from "../../guest/mod.ts";

/** Where the tests' guests have their hypercall stub, raw code, templates and data. */
export const STUB = 0x8000;
export const CODE = 0x2_0000;
export const SPACE: TextRange = { from: 0x4_0000, to: 0x4_0000 + TEMPLATE_SPACE };
export const DATA = 0x10_0000;

/** Every way to run a guest whose kernel is in problem state: the hosts with a magic page. */
export const PR_HOSTS: readonly PpcVmOptions[] = [
  { host: "book3s-64-pr" },
  { host: "book3s-64-pr", order: "little" },
  { host: "book3s-64-pr", order: "little", hostOrder: "little" },
  { host: "book3s-32-pr" },
  { host: "e500v2" },
  { host: "book3s-64-pr", hostOrder: "little" },
];

/** The name of a way, for a test's. */
export function nameOf({ host, order = "big", hostOrder = "big" }: PpcVmOptions): string {
  const plain = order === "big" && hostOrder === "big";
  return plain ? host! : `${host}, ${order}-endian on a ${hostOrder}-endian host`;
}

/** What a guest of a test has besides its program. */
export interface PpcStory {
  /** Handlers besides the ones that throw faults where they happened. */
  readonly handlers?: PpcHandlers;
  /** Other functions, which stand behind the program in text. */
  readonly functions?: readonly MachineFunction<PpcCpu>[];
  /** Words at {@linkcode CODE}. */
  readonly code?: readonly number[];
  /** The machine's options. */
  readonly machine?: MachineOptions;
  /** Called with the virtual machine before it runs. */
  readonly prepare?: (vm: PpcVm) => void;
}

/** A virtual machine with a program, ready to run. The guest's vectors are set before the program begins. */
export function ppcGuest(options: PpcVmOptions, main: MachineFunction<PpcCpu>, story: PpcStory = {}): PpcVm {
  const vm = new Machine(story.machine).createPpcVm(options);
  const { core } = vm.host;
  const text = ppcText(core);
  const entry = text.add(function* program(cpu) {
    const fdt = cpu.r3;
    yield* setPpcVectors(cpu);
    cpu.setRegister(2, 0x2222);
    cpu.setRegister(3, fdt);
    yield* main(cpu);
  });
  for (const code of story.functions ?? []) text.add(code);
  placePpcHandlers(text, core, story.handlers);
  vm.load(text);
  if (story.code !== undefined) loadWords(vm, CODE, story.code);
  story.prepare?.(vm);
  vm.start(entry);
  return vm;
}

/** Runs a program to its end. */
export function runPpc(options: PpcVmOptions, main: MachineFunction<PpcCpu>, story: PpcStory = {}): PpcVm {
  const vm = ppcGuest(options, main, story);
  const { end } = vm.machine.run();
  if (end !== "finished") throw new Error(`The guest did not finish: ${end}, ${vm.ending ?? ""}`);
  return vm;
}

/** A program that first takes its hypercall from the device tree. */
export function withHypercalls(
  main: MachineFunction<PpcCpu>,
  order: ByteOrder = "big",
): MachineFunction<PpcCpu> {
  return function* (cpu) {
    yield* epaprInit(cpu, { fdt: Number(cpu.r3), stub: STUB, order });
    yield* main(cpu);
  };
}

/** Writes words of code. */
export function loadWords(vm: PpcVm, address: number, words: readonly number[]): void {
  vm.memory.load(address, unitsToBytes(words, 4, vm.order));
}

/** Words that return to their caller. */
export function routine(...words: readonly number[]): number[] {
  return [...words, PPC_BLR];
}

/** Runs words in a guest, with r5 to r8 set to 5 to 8, and tells r3, r4 and the fault that came of them. */
export function ppcOutcome(options: PpcVmOptions, words: readonly number[], user: boolean = false) {
  let result: { r3: bigint; r4: bigint; fault: string | undefined } | undefined;
  const vm = runPpc(options, function* (cpu) {
    yield cpu.mfmsr();
    if (user) yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
    for (const r of [5, 6, 7, 8]) cpu.setRegister(r, r);
    cpu.setRegister(3, 3);
    cpu.setRegister(4, 4);
    let fault: string | undefined;
    try {
      yield cpu.call(CODE);
    } catch (error) {
      if (!(error instanceof MachineFault)) throw error;
      fault = error.exception;
    }
    result = { r3: cpu.r3, r4: cpu.r4, fault };
  }, { code: routine(...words) });
  return { ...result!, vm };
}
