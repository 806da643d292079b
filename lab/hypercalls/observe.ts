/**
 * What a hypercall does, seen from the guest that makes it: its registers before and after, the instruction's bytes in
 * memory, the exit, and what became of it.
 *
 * @module
 */

import {
  type CallOutcome,
  type Convention,
  hex,
  type MachineContext,
  MachineFault,
  type MachineGuest,
} from "../../abi/mod.ts";
import type { ArchVm } from "../../host/mod.ts";
import { outcomeText, spaced } from "../features.ts";

/** Registers by name, in the order of the convention: 64-bit values in hexadecimal. */
export type RegistersShown = Readonly<Record<string, string>>;

/** A call, as it went. */
export interface ObservedCall {
  /** The instruction as an assembler spells it. */
  readonly instruction: string;
  /** Its bytes, in memory order. */
  readonly bytes: string;
  /** Its bytes afterwards, where the host has rewritten them; else null. */
  readonly rewritten: string | null;
  /** The registers, loaded. */
  readonly before: RegistersShown;
  /** The registers when the guest goes on; null where it does not. */
  readonly after: RegistersShown | null;
  /** Why the processor left guest mode, by name; more than one where KVM entered the guest again in between. */
  readonly exits: readonly string[];
  /** Why KVM_RUN came back meanwhile, by KVM_EXIT_* name. */
  readonly userspace: readonly string[];
  /** What became of it. */
  readonly outcome: string;
}

/** What was counted of a call. */
export interface CountedCall {
  /** The call. */
  readonly call: ObservedCall;
  /** Tracepoints by name. */
  readonly counters: Readonly<Record<string, number>>;
  /** Exits by name. */
  readonly exits: Readonly<Record<string, number>>;
  /** Simulated cycles. */
  readonly cycles: number;
}

/** A call that is to be made. */
export interface PlannedCall<Cpu> {
  /** Its name. */
  readonly name: string;
  /** The registers of its results, where they are others than the convention's. */
  readonly results?: readonly string[];
  /** Loads its registers, and whatever else has to be there. */
  prepare(cpu: Cpu): MachineGuest;
  /** Builds the instruction. */
  issue(cpu: Cpu): number;
}

/** The registers of a convention, each once. */
export function conventionRegisters<Register extends string>(convention: Convention<Register>): Register[] {
  return [...new Set([convention.number, ...convention.arguments, ...convention.results])];
}

/** Registers as they are shown. */
export function shown<Register extends string>(
  names: readonly Register[],
  read: (register: Register) => bigint,
): RegistersShown {
  return Object.fromEntries(names.map((name) => [name, hex(read(name))]));
}

/** How often something happened more than before; what did not is left out. */
export function more(
  now: Readonly<Record<string, number>>,
  before: Readonly<Record<string, number>>,
): Record<string, number> {
  const difference = Object.entries(now).map(([name, count]) => [name, count - (before[name] ?? 0)] as const);
  return Object.fromEntries(difference.filter(([, count]) => count > 0));
}

/** Names as often as they were counted. */
export function named(counts: Readonly<Record<string, number>>): string[] {
  return Object.entries(counts).flatMap(([name, count]) => new Array<string>(count).fill(name));
}

/** Where a call's instruction is, and what it looks like. */
export interface CallSite {
  /** As an assembler spells it. */
  readonly text: string;
  /** Its physical address. */
  readonly address: number;
  /** How many bytes. */
  readonly bytes: number;
  /** Bytes of a word. */
  readonly unitBytes: number;
}

/** What an architecture's guest is seen through. */
export interface Scene<Cpu extends MachineContext<Cpu>, Register extends string> {
  /** Its virtual machine. */
  readonly vm: ArchVm<Cpu>;
  /** Its convention. */
  readonly convention: Convention<Register>;
  /** The registers that are shown. */
  readonly registers: readonly Register[];
  /** Reads one. */
  read(cpu: Cpu, register: Register): bigint;
  /** Where the instruction of `opcode` is. */
  site(cpu: Cpu, opcode: number): CallSite;
}

/** Notes a call of a guest of s390, PowerPC or MIPS while it is made. */
export class Observer<Cpu extends MachineContext<Cpu>, Register extends string> {
  readonly #scene: Scene<Cpu, Register>;
  readonly #planned: PlannedCall<Cpu>;
  #site: CallSite | undefined;
  #bytes = "";
  #before: RegistersShown = {};
  #after: RegistersShown | null = null;
  #start: Counted = { counters: {}, exits: {}, userspace: {}, clock: 0 };
  #end: Counted | undefined;
  #fault: MachineFault | undefined;
  #instead: string | undefined;

  /** An observer of one call. */
  constructor(scene: Scene<Cpu, Register>, planned: PlannedCall<Cpu>) {
    this.#scene = scene;
    this.#planned = planned;
  }

  /** The guest's part: makes the call. */
  *make(cpu: Cpu): MachineGuest {
    const { vm, registers, read, site } = this.#scene;
    const [vcpu] = vm.vcpus;
    yield* this.#planned.prepare(cpu);
    vcpu.lastOutcome = undefined;
    const opcode = this.#planned.issue(cpu);
    this.#site = site(cpu, opcode);
    this.#bytes = this.#memory();
    this.#before = shown(registers, (register) => read(cpu, register));
    this.#start = counted(vm);
    try {
      yield opcode;
    } catch (error) {
      if (!(error instanceof MachineFault)) throw error;
      this.#fault = error;
    }
    this.interrupted();
    this.#after = shown(registers, (register) => read(cpu, register));
  }

  /**
   * The call is over, or a handler of the guest's own begins: what exits from here on is not the call's. `instead` says what
   * became of it, if that is the handler.
   */
  interrupted(instead?: string): void {
    if (this.#site === undefined) return;
    this.#end ??= counted(this.#scene.vm);
    this.#instead ??= instead;
  }

  #memory(): string {
    const { address, bytes, unitBytes } = this.#site!;
    const { memory } = this.#scene.vm;
    return spaced(Uint8Array.from({ length: bytes }, (_, i) => memory.byte(address + i)), unitBytes);
  }

  /** What was seen, once the machine has stopped. Throws where the guest never came to the call. */
  result(): CountedCall {
    const { vm } = this.#scene;
    if (this.#site === undefined) throw new Error(`Cannot tell of a call: the guest did not come to it`);
    const end = this.#end ?? counted(vm);
    const exits = more(end.exits, this.#start.exits);
    const after = this.#memory();
    return {
      call: {
        instruction: this.#site.text,
        bytes: this.#bytes,
        rewritten: after === this.#bytes ? null : after,
        before: this.#before,
        after: this.#after,
        exits: named(exits),
        userspace: named(more(end.userspace, this.#start.userspace)),
        outcome: this.#outcome(vm.vcpus[0].lastOutcome),
      },
      counters: more(end.counters, this.#start.counters),
      exits,
      cycles: end.clock - this.#start.clock,
    };
  }

  #outcome(outcome: CallOutcome | undefined): string {
    const { vm, convention } = this.#scene;
    const [status] = convention.results;
    if (outcome !== undefined) {
      const text = outcomeText(
        { ...convention, results: this.#planned.results ?? convention.results },
        outcome,
      );
      return vm.dead ? `${text}; the virtual machine has ended` : text;
    }
    if (this.#fault !== undefined) return `${this.#fault.exception} (${hex(this.#fault.code)})`;
    if (this.#instead !== undefined) return this.#instead;
    if (this.#after === null) return "the guest does not go on";
    return `nobody is called; ${status} = ${BigInt.asIntN(64, BigInt(this.#after[status]))}`;
  }
}

interface Counted {
  readonly counters: Readonly<Record<string, number>>;
  readonly exits: Readonly<Record<string, number>>;
  readonly userspace: Readonly<Record<string, number>>;
  readonly clock: number;
}

function counted<Cpu extends MachineContext<Cpu>>(vm: ArchVm<Cpu>): Counted {
  return {
    counters: vm.counters(),
    exits: vm.exits(),
    userspace: Object.fromEntries(vm.userspaceExits),
    clock: vm.vcpus[0].clock,
  };
}
