/**
 * Every hypercall of x86, and one through the other vendor's instruction, which KVM rewrites.
 *
 * @module
 */

import {
  EFER_SCE,
  type Guest,
  HYPERCALLS,
  type HypercallSpec,
  IA32_EFER,
  LENGTH,
  OP_VMCALL,
  OP_VMMCALL,
  SITE,
  X86_CONVENTION,
  type X86Cpu,
} from "../../abi/mod.ts";
import { Kernel } from "../../guest/mod.ts";
import { type BackendName, type HostSemantics, Machine, type Vm } from "../../host/mod.ts";
import type { Watcher } from "../experiments/experiment.ts";
import { outcomeText, spaced } from "../features.ts";
import { Stopwatch } from "../measure.ts";
import {
  conventionRegisters,
  type CountedCall,
  more,
  named,
  type ObservedCall,
  type RegistersShown,
  shown,
} from "./observe.ts";

/** How the guests and hosts are chosen. */
export interface X86CallOptions {
  /** Which vendor's virtualization. */
  readonly backend: BackendName;
  /** Whose KVM. */
  readonly host: HostSemantics;
  /** The guest's width. */
  readonly bits: 64 | 32;
  /** Who sees each machine. */
  readonly watcher: Watcher;
}

const VECTOR = 0x40;
/** The vCPU that is woken, interrupted and yielded to. */
const TARGET = 1;
/** Values for the calls' arguments. */
const ARGUMENTS: Readonly<Record<string, number>> = {
  flags: 0,
  apicId: TARGET,
  gpa: 0x9000,
  clockType: 0,
  bitmapLow: 1 << TARGET,
  bitmapHigh: 0,
  min: 0,
  icr: VECTOR,
  npages: 1,
  attrs: 0x10,
};
/** A number that no host knows. */
const UNKNOWN = 13;
/** Long enough for the other vCPU to sleep. */
const SETTLE = 1_000_000;
const TEXT = { [OP_VMCALL]: "vmcall", [OP_VMMCALL]: "vmmcall" };
const NATIVE = { vmx: OP_VMCALL, svm: OP_VMMCALL } as const;
const FOREIGN = { vmx: OP_VMMCALL, svm: OP_VMCALL } as const;
type CallOpcode = typeof OP_VMCALL | typeof OP_VMMCALL;

interface Planned {
  readonly name: string;
  readonly nr: number;
  readonly values: readonly number[];
  readonly opcode: CallOpcode;
  /** Whether a program makes it, at CPL 3. */
  readonly user?: boolean;
}

function plan(backend: BackendName, bits: 64 | 32): Planned[] {
  const [native, foreign] = [NATIVE[backend], FOREIGN[backend]];
  const table: [string, HypercallSpec][] = Object.entries(HYPERCALLS);
  const known = table.filter(([, { arch }]) => arch.includes("x86")).map(([name, { nr, args }]) => ({
    name,
    nr,
    values: args.map((arg) => ARGUMENTS[arg.name]),
    opcode: native,
  }));
  return [
    ...known,
    { name: `unknown number ${UNKNOWN}`, nr: UNKNOWN, values: [], opcode: native },
    { ...known[0], name: `${known[0].name}, by the other vendor's instruction`, opcode: foreign },
    // SYSRET leads there; not every processor has it outside 64-bit mode.
    ...bits === 64 ? [{ ...known[0], name: `${known[0].name}, from user mode`, user: true }] : [],
  ];
}

/** Makes every call, each on a machine of its own. */
export function x86Calls(options: X86CallOptions): Map<string, CountedCall> {
  return new Map(plan(options.backend, options.bits).map((call) => [call.name, made(options, call)]));
}

function made(options: X86CallOptions, planned: Planned): CountedCall {
  const { backend, host, bits, watcher } = options;
  const vm = new Machine().createVm({ backend, hostSemantics: host, vcpus: 2, trace: watcher.records });
  const stopwatch = new Stopwatch(vm);
  const registers = conventionRegisters(X86_CONVENTION);
  const read = (cpu: X86Cpu): RegistersShown => shown(registers, (register) => cpu.register(register));
  const bytes = (address: number): string =>
    spaced(
      Uint8Array.from({ length: LENGTH[planned.opcode] }, (_, i) => vm.memory.byte(address + i)),
      1,
    );
  let site = 0;
  let instruction = "";
  let before: RegistersShown = {};
  let after: RegistersShown | null = null;
  let exits: Record<string, number> = {};
  let lap: Pick<CountedCall, "counters" | "exits" | "cycles"> = { counters: {}, exits: {}, cycles: 0 };
  let result = "";
  const kernel = new Kernel({
    cpus: 2,
    bits,
    *main(cpu: X86Cpu): Guest {
      yield cpu.work(SETTLE);
      if (!planned.user) {
        yield* call(cpu);
        return;
      }
      yield cpu.rdmsr(IA32_EFER);
      yield cpu.wrmsr(IA32_EFER, cpu.eax | EFER_SCE, cpu.edx);
      yield cpu.sysret(program);
    },
  });
  const call = function* (cpu: X86Cpu): Guest {
    const [a0 = 0, a1 = 0, a2 = 0, a3 = 0] = planned.values;
    cpu.loadHypercall(planned.nr, a0, a1, a2, a3);
    const opcode = planned.opcode === OP_VMCALL ? cpu.vmcall() : cpu.vmmcall();
    site = cpu.top.block!.address + SITE[opcode];
    instruction = bytes(site);
    before = read(cpu);
    exits = exitsOf(vm);
    stopwatch.restart();
    yield opcode;
    lap = stopwatch.lap();
    exits = more(exitsOf(vm), exits);
    after = read(cpu);
    const rax = BigInt.asIntN(bits, cpu.register("rax")); // as the guest reads it
    result = outcomeText(X86_CONVENTION, { kind: "registers", values: [rax] });
  };
  const program = kernel.text.add(call, "program");
  kernel.irq(VECTOR, function* interrupted(cpu: X86Cpu) {
    yield cpu.work(100);
  });
  vm.load(kernel.text);
  vm.start(kernel.entry, bits === 64 ? "64-bit" : "32-bit");
  vm.machine.run();
  watcher.done(planned.name, vm);
  const rewritten = bytes(site);
  const observed: ObservedCall = {
    instruction: TEXT[planned.opcode],
    bytes: instruction,
    rewritten: rewritten === instruction ? null : rewritten,
    before,
    after,
    exits: named(exits),
    userspace: [],
    outcome: result,
  };
  return { call: observed, counters: lap.counters, exits: lap.exits, cycles: lap.cycles };
}

/** The exits of the vCPU that calls. */
function exitsOf(vm: Vm): Record<string, number> {
  const [vcpu] = vm.vcpus;
  return Object.fromEntries(
    [...vcpu.exitCounts].map(([reason, count]) => [vcpu.backend.exitName(reason), count]),
  );
}
