/**
 * Every hypercall of MIPS.
 *
 * @module
 */

import {
  argumentsInOrder,
  type ByteOrder,
  HYPERCALLS,
  type HypercallSpec,
  MIPS_CONVENTION,
  MIPS_HYPCALL,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  mipsBootAddress,
  type MipsCpu,
  mipsKseg0,
  mipsRegisterAddress,
  mipsText,
} from "../../abi/mod.ts";
import { mipsEnterUserMode, mipsFixup, mipsUnmapUseg, mipsVectors } from "../../guest/mod.ts";
import { Machine, type MipsHost } from "../../host/mod.ts";
import type { Watcher } from "../experiments/experiment.ts";
import { conventionRegisters, type CountedCall, Observer, type PlannedCall } from "./observe.ts";

/** How the guests and hosts are chosen. */
export interface MipsCallOptions {
  /** Whose KVM. */
  readonly host: MipsHost;
  /** The byte order. */
  readonly order: ByteOrder;
  /** The guest's width. */
  readonly bits: 64 | 32;
  /** Who sees each machine. */
  readonly watcher: Watcher;
}

const BUFFER = mipsKseg0(0x9000);
const TEXT = "hello, host\n";
const ARGUMENTS: Readonly<Record<string, number | bigint>> = {
  port: 0,
  buffer: mipsRegisterAddress(BUFFER),
  length: TEXT.length,
};
/** Where a program is that goes to user mode: in useg. */
const USER_TEXT = 0x10_0000;
/** A number that no host knows. */
const UNKNOWN = 13;

interface MipsCall extends PlannedCall<MipsCpu> {
  /** Whether a program makes it, in user mode. */
  readonly user?: boolean;
}

function plan(): MipsCall[] {
  const table: [string, HypercallSpec][] = Object.entries(HYPERCALLS);
  const known = table.filter(([, { arch }]) => arch.includes("mips")).map(([name, { nr, args }]) =>
    planned(name, nr, argumentsInOrder(args, ARGUMENTS))
  );
  return [...known, planned(`unknown number ${UNKNOWN}`, UNKNOWN, []), fromUserMode(known[0])];
}

/** The same in user mode. */
function fromUserMode(call: MipsCall): MipsCall {
  return {
    ...call,
    name: `${call.name}, from user mode`,
    user: true,
    *prepare(cpu) {
      yield* mipsUnmapUseg(cpu);
      yield* call.prepare(cpu);
      yield* mipsEnterUserMode(cpu);
    },
  };
}

function planned(name: string, nr: number, values: readonly bigint[]): MipsCall {
  return {
    name,
    *prepare(cpu) {
      // As after reset no exception would come to the kernel's vectors.
      yield cpu.mfc0Status();
      yield cpu.mtc0Status(cpu.value32 & ~(MIPS_STATUS_ERL | MIPS_STATUS_EXL));
      for (const [i, byte] of new TextEncoder().encode(TEXT).entries()) yield cpu.sb(BUFFER + i, byte);
      cpu.loadHypercall({ number: BigInt(nr), arguments: values });
    },
    issue: (cpu) => cpu.hypcall(),
  };
}

/** Makes every call, each on a machine of its own. */
export function mipsCalls({ host, order, bits, watcher }: MipsCallOptions): Map<string, CountedCall> {
  const calls = new Map<string, CountedCall>();
  for (const call of plan()) {
    const vm = new Machine().createMipsVm({ host, order, bits, trace: watcher.records });
    const text = mipsText();
    mipsVectors(text, mipsFixup);
    const observer = new Observer({
      vm,
      convention: MIPS_CONVENTION,
      registers: conventionRegisters(MIPS_CONVENTION),
      read: (cpu: MipsCpu, register) => cpu.gpr(register),
      site: (cpu, opcode) => ({
        text: MIPS_HYPCALL.text,
        address: mipsBootAddress(cpu.top!.block.address + cpu.layout.site[opcode])!,
        bytes: 4,
        unitBytes: 4,
      }),
    }, call);
    const main = (cpu: MipsCpu) => observer.make(cpu);
    const entry = call.user ? text.addAt(USER_TEXT, main, "program") : text.add(main, "main");
    vm.load(text);
    vm.start(entry);
    vm.machine.run();
    watcher.done(call.name, vm);
    calls.set(call.name, observer.result());
  }
  return calls;
}
