/**
 * Every hypercall of PowerPC: ePAPR's and KVM's, through the stub into which the guest has patched the device tree's words.
 *
 * @module
 */

import {
  type ByteOrder,
  disassemblePpc,
  EV_VENDORS,
  evHcallToken,
  MSR_EE,
  MSR_PR,
  PPC_HYPERCALLS,
  PPC_PR_CONVENTION,
  type PpcCallRegister,
  type PpcCpu,
  type PpcHypercallName,
  ppcHypercallToken,
  ppcText,
  raises,
} from "../../abi/mod.ts";
import { epaprInit, placePpcHandlers, setPpcVectors } from "../../guest/mod.ts";
import { Machine, type PpcHostName, type PpcVm } from "../../host/mod.ts";
import type { Watcher } from "../experiments/experiment.ts";
import { outcomeText } from "../features.ts";
import { type CountedCall, Observer, type PlannedCall } from "./observe.ts";

/** How the guests and hosts are chosen. */
export interface PpcCallOptions {
  /** Whose KVM, on which processor. */
  readonly host: PpcHostName;
  /** The guest's byte order. */
  readonly order: ByteOrder;
  /** Who sees each machine. */
  readonly watcher: Watcher;
}

/** Where the guest has its stub. */
const STUB = 0x8000;
/** A number that KVM has no call for. */
const UNKNOWN = evHcallToken(EV_VENDORS.EV_KVM_VENDOR_ID, 13);
/** The registers that are shown: a call's, and that of the magic. */
const REGISTERS: readonly (PpcCallRegister | "r0")[] = ["r0", "r11", "r3", "r4", "r5", "r6", "r7", "r8"];

/** What calls get. Linux maps the magic page at the end of both address spaces, and sees to NX itself. */
const ARGUMENTS: Partial<Record<PpcHypercallName, readonly bigint[]>> = {
  EV_BYTE_CHANNEL_SEND: [1n, 4n, 0x6869_0a00n, 0n, 0n, 0n],
  KVM_HC_PPC_MAP_MAGIC_PAGE: [-4096n, -4095n],
};

function plan(): PlannedCall<PpcCpu>[] {
  return [
    ...(Object.keys(PPC_HYPERCALLS) as PpcHypercallName[]).map((name) =>
      planned(name, ppcHypercallToken(name))
    ),
    planned(`unknown token 0x${UNKNOWN.toString(16)}`, UNKNOWN),
    fromUserMode(planned("KVM_HC_FEATURES", ppcHypercallToken("KVM_HC_FEATURES"))),
  ];
}

function planned(name: string, token: number): PlannedCall<PpcCpu> {
  return {
    name,
    *prepare(cpu) {
      if (name === "EV_IDLE") {
        // Something has to end the wait.
        yield cpu.mfmsr();
        yield cpu.mtmsr(cpu.r3 | BigInt(MSR_EE));
        yield cpu.mtspr("DEC", 10_000);
      }
      for (const register of REGISTERS) cpu.setRegister(Number(register.slice(1)), 0);
      const values = ARGUMENTS[name as PpcHypercallName] ??
        (PPC_HYPERCALLS[name as PpcHypercallName]?.args ?? []).map(() => 1n);
      cpu.loadHypercall({ number: BigInt(token), arguments: values });
    },
    issue: (cpu) => cpu.call(STUB),
  };
}

/** The same in problem state. */
function fromUserMode(call: PlannedCall<PpcCpu>): PlannedCall<PpcCpu> {
  return {
    ...call,
    name: `${call.name}, from user mode`,
    *prepare(cpu) {
      yield cpu.mfmsr();
      yield cpu.mtmsr(cpu.r3 | BigInt(MSR_PR));
      yield* call.prepare(cpu);
    },
  };
}

/** Makes every call, each on a machine of its own. */
export function ppcCalls(options: PpcCallOptions): Map<string, CountedCall> {
  return new Map(plan().map((call) => [call.name, made(options, call)]));
}

function made({ host, order, watcher }: PpcCallOptions, call: PlannedCall<PpcCpu>): CountedCall {
  const vm = new Machine().createPpcVm({ host, order, trace: watcher.records });
  const convention = vm.host.convention ?? PPC_PR_CONVENTION; // All have the same registers.
  const text = ppcText(vm.host.core);
  const observer = new Observer({
    vm,
    convention,
    registers: REGISTERS,
    read: (cpu: PpcCpu, register) => cpu.register(Number(register.slice(1))),
    site: () => ({ text: stubText(vm), address: STUB, bytes: 16, unitBytes: 4 }),
  }, call);
  placePpcHandlers(text, vm.host.core, {
    *DECREMENTER(cpu) {
      observer.interrupted();
      yield cpu.mtspr("DEC", 0x7fff_ffff);
    },
    // deno-lint-ignore require-yield
    *SYSCALL() {
      const number = vm.vcpus[0].interrupts.number("SYSCALL");
      observer.interrupted(
        `${outcomeText(convention, raises("SYSCALL", number))}: a system call to the guest itself`,
      );
    },
  });
  const entry = text.add(function* main(cpu) {
    const fdt = Number(cpu.r3);
    yield* setPpcVectors(cpu);
    yield* epaprInit(cpu, { fdt, stub: STUB, order });
    yield* observer.make(cpu);
  });
  vm.load(text);
  vm.start(entry);
  vm.machine.run();
  watcher.done(call.name, vm);
  return observer.result();
}

/** What stands in the stub. */
function stubText(vm: PpcVm): string {
  return [0, 4, 8, 12].map((at) => disassemblePpc(vm.words.read(STUB + at, 4) ?? 0, STUB + at)).join("; ");
}
