/**
 * The simulated machine: physical CPUs, the stepping core, and the virtual machines on it.
 *
 * @module
 */

import type { ArchVm } from "./arch/mod.ts";
import {
  Engine,
  LimitExceeded,
  type Limits,
  limitsFrom,
  type PolicySpec,
  type RunEnd,
  type Schedule,
} from "./core/mod.ts";
import { MipsVm, type MipsVmOptions } from "./mips/mod.ts";
import { ForwardingBudget, S390Vm, type S390VmOptions } from "./s390/mod.ts";
import { MpState } from "./kvm/modes.ts";
import { Vm } from "./kvm/vm.ts";
import type { VmOptions } from "./kvm/vm_options.ts";
import { checkQuirks, type Quirk } from "./quirks.ts";
import { PpcVm, type PpcVmOptions } from "./ppc/mod.ts";
import { HostMemory, PhysicalSpace } from "./memory/mod.ts";
import { StalenessOracle } from "./mmu/mod.ts";
import { HostScheduler } from "./sched/mod.ts";

/** How a machine is made. Everything has a default. */
export interface MachineOptions {
  /** Physical CPUs; by default as many as its virtual machines' vCPUs need: 1024. */
  readonly pcpus?: number;
  /**
   * Whether the host's own local APICs are in x2APIC mode; true by default. In xAPIC mode IDs have 8 bits: there are at
   * most 255 CPUs, 255 by default.
   */
  readonly x2apicHost?: boolean;
  /** A time slice in cycles, for CPUs that several vCPUs share; 7,500,000 (3 ms at 2.5 GHz) by default. */
  readonly timeSlice?: number;
  /** The host's CLOCK_REALTIME in cycle 0, in whole seconds since 1970; 0 by default. It runs with the TSC. */
  readonly realtime?: number;
  /** Who runs next; "timed" by default. */
  readonly policy?: PolicySpec;
  /** What random data is drawn from under the timed policy; 0 by default. */
  readonly seed?: number;
  /** What a run may use up. */
  readonly limits?: Partial<Limits>;
  /** Whether an oracle judges each use of a cached translation; false by default, as it makes each dearer. */
  readonly staleness?: boolean;
  /** How many ASIDs each CPU has (CPUID 8000_000A EBX), on SVM; 32768 by default. 0 is the host's. */
  readonly asids?: number;
  /** Whether VMRUN can flush one ASID (CPUID 8000_000A EDX bit 6, FlushByAsid), on SVM; true by default. */
  readonly flushByAsid?: boolean;
  /**
   * KVM's parameter diag9c_forwarding_hz, on s390: directed yields a second that the host may pass on to the hypervisor below,
   * for all its virtual machines together; 0 by default.
   */
  readonly diag9cForwardingHz?: number;
  /** Named deviations; none by default. */
  readonly quirks?: readonly Quirk[];
}

/** How a run ended. */
export interface RunResult {
  /**
   * "finished": every bootstrap processor's program has returned, and nothing goes on. "halted": one has not; every
   * vCPU waits, and nothing will wake one. "shutdown": a
   * virtual machine triple-faulted, or its user space ended it. "deadline": the given time is reached. "stopped":
   * somebody asked for it.
   * "schedule-end": a replayed schedule is used up.
   */
  readonly end: "finished" | "halted" | "shutdown" | Exclude<RunEnd, "idle">;
  /** Simulated time: the largest clock of a vCPU, in cycles (in explored runs: in ticks). */
  readonly cycles: number;
  /** Steps that the stepping core took, of this machine's whole life. */
  readonly steps: number;
}

/** What a machine knows of a virtual machine that is not x86's. */
export type ArchVmOnMachine = Pick<ArchVm<never>, "dead" | "finished"> & {
  /** Its vCPUs, whose clocks are the machine's. */
  readonly vcpus: readonly { readonly clock: number }[];
};

const DEFAULT_PCPUS = 1024;
/** xAPIC IDs are 0 to 254; 255 is everybody. */
const XAPIC_PCPUS = 255;
const DEFAULT_SLICE = 7_500_000;
const DEFAULT_ASIDS = 0x8000;
/** How many exits are granted at a time. */
const GRANT: number = 1 << 30;

/**
 * A machine that runs virtual machines.
 *
 * @example A guest that makes one hypercall
 * ```ts
 * import { Machine, Text, type X86Cpu } from "@exitless/exitless";
 * import { assertEquals } from "@std/assert";
 *
 * const text = new Text();
 * const entry = text.add(function* main(cpu: X86Cpu) {
 *   yield cpu.loadHypercall(1).vmcall(); // KVM_HC_VAPIC_POLL_IRQ
 *   assertEquals(cpu.rax, 0n);
 * });
 * const vm = new Machine().createVm({ memory: 2 ** 21 });
 * vm.load(text);
 * vm.start(entry);
 * const { end } = vm.machine.run();
 * assertEquals(end, "finished");
 * assertEquals(vm.counters().kvm_hypercall, 1);
 * ```
 */
export class Machine {
  /** The stepping core. */
  declare readonly engine: Engine;
  /** The host's scheduler. */
  declare readonly scheduler: HostScheduler;
  /** The deviations that are on. */
  declare readonly quirks: ReadonlySet<Quirk>;
  /** How many ASIDs each CPU has, on SVM. */
  declare readonly asids: number;
  /** Whether VMRUN can flush one ASID. */
  declare readonly flushByAsid: boolean;
  /** The host's CLOCK_REALTIME in cycle 0, in seconds since 1970. */
  declare readonly realtime: number;
  /** How many directed yields of s390 guests may be passed on. */
  declare readonly diag9cForwarding: ForwardingBudget;
  /** Whether the host's local APICs are in x2APIC mode. */
  declare readonly x2apicHost: boolean;
  /** The host's memory, where hardware looks at it by address. */
  readonly hostMemory: HostMemory = new HostMemory();
  /** The host's physical memory: guests' pages, and tables. */
  readonly physical: PhysicalSpace = new PhysicalSpace(this.hostMemory);
  /** Judges each use of a cached translation, where that was asked for. */
  declare readonly staleness: StalenessOracle | undefined;
  /** The x86 virtual machines. */
  readonly vms: Vm[] = [];
  /** Those of other architectures. */
  readonly archVms: ArchVmOnMachine[] = [];
  readonly #exitLimit: number;
  /** Exits that may still happen: a small integer, whatever the limit is. */
  #exitsLeft = 0;
  #runs = false;
  #exitsGranted = 0;

  /** A machine without virtual machines. Throws `RangeError` for options that cannot be. */
  constructor(options: MachineOptions = {}) {
    const limits: Limits = limitsFrom(options.limits ?? {});
    this.#exitLimit = limits.exits;
    this.quirks = checkQuirks(options.quirks ?? []);
    this.engine = new Engine(options.policy ?? "timed", limits, options.seed ?? 0);
    this.asids = checkAsids(options.asids ?? DEFAULT_ASIDS);
    this.flushByAsid = options.flushByAsid ?? true;
    this.realtime = checkRealtime(options.realtime ?? 0);
    this.x2apicHost = options.x2apicHost ?? true;
    this.diag9cForwarding = new ForwardingBudget(options.diag9cForwardingHz ?? 0);
    const most = this.x2apicHost ? DEFAULT_PCPUS : XAPIC_PCPUS;
    if (!this.x2apicHost && options.pcpus !== undefined && options.pcpus > most) {
      throw new RangeError(
        `Cannot build a machine of ${options.pcpus} physical CPUs in xAPIC mode: allowed are 1 to ${most}`,
      );
    }
    this.scheduler = new HostScheduler(this.engine, {
      pcpus: options.pcpus ?? most,
      slice: options.timeSlice ?? DEFAULT_SLICE,
    });
    this.staleness = options.staleness
      ? new StalenessOracle((cpu, entry, address) => {
        return this.scheduler.pcpus[cpu].current!.processor.mmu!.now(entry.kind, address);
      })
      : undefined;
  }

  /** Adds an x86 virtual machine. Throws `RangeError` for options that cannot be. */
  createVm(options: VmOptions = {}): Vm {
    const vm = new Vm(this, options);
    this.vms.push(vm);
    return vm;
  }

  /** Adds a MIPS virtual machine. Throws `RangeError` for options that cannot be. */
  createMipsVm(options: MipsVmOptions = {}): MipsVm {
    const vm = new MipsVm(this, options);
    this.archVms.push(vm);
    return vm;
  }

  /** Adds a PowerPC virtual machine. Throws `RangeError` for options that cannot be. */
  createPpcVm(options: PpcVmOptions = {}): PpcVm {
    const vm = new PpcVm(this, options);
    this.archVms.push(vm);
    return vm;
  }

  /** Adds an s390 virtual machine. Throws `RangeError` for options that cannot be. */
  createS390Vm(options: S390VmOptions = {}): S390Vm {
    const vm = new S390Vm(this, options);
    this.archVms.push(vm);
    return vm;
  }

  /** The steps of an explored run so far: what a replay needs. */
  get schedule(): Schedule {
    return this.engine.schedule;
  }

  /** VM exits, of all vCPUs together. */
  get exits(): number {
    return this.#exitsGranted - this.#exitsLeft;
  }

  /** One more exit. */
  countExit(): void {
    if (this.#exitsLeft === 0) this.#grantExits();
    this.#exitsLeft--;
  }

  /** An exit has been taken back. */
  takeExitBack(): void {
    this.#exitsLeft++;
  }

  #grantExits(): void {
    const more = Math.min(Math.floor(this.#exitLimit) - this.#exitsGranted, GRANT);
    if (more <= 0) throw new LimitExceeded("exits", this.#exitLimit);
    this.#exitsGranted += more;
    this.#exitsLeft = more;
  }

  /**
   * Runs until nothing can run any more, or simulated time passes `deadline` (in cycles). Throws `RangeError` for a
   * deadline that is no number, and `Error` where a guest or a host thread asks, as it is running then.
   */
  run(deadline: number = Infinity): RunResult {
    if (Number.isNaN(deadline)) throw new RangeError("Cannot run to NaN: a deadline is a number of cycles");
    if (this.#runs) {
      throw new Error("Cannot run the machine: it is running");
    }
    this.#runs = true;
    let end: RunEnd;
    try {
      end = this.engine.run(deadline);
    } finally {
      this.#runs = false;
    }
    const vcpus = this.vms.flatMap((vm) => vm.vcpus);
    const started = vcpus.filter((vcpu) => vcpu.mpState !== MpState.Uninitialized);
    const others = this.archVms.flatMap((vm) => vm.vcpus);
    const cycles = Math.max(0, ...started.map((vcpu) => vcpu.clock), ...others.map((vcpu) => vcpu.clock));
    return {
      end: this.#ended(end),
      cycles,
      steps: this.engine.steps,
    };
  }

  #ended(end: RunEnd): RunResult["end"] {
    if (this.vms.some((vm) => vm.dead) || this.archVms.some((vm) => vm.dead)) return "shutdown";
    if (end !== "idle") return end;
    const finished = this.vms.every((vm) => vm.bootstrap.processor.finished) &&
      this.archVms.every((vm) => vm.finished);
    return finished ? "finished" : "halted";
  }
}

function checkRealtime(seconds: number): number {
  if (Number.isInteger(seconds) && seconds >= 0 && seconds < 2 ** 40) return seconds;
  throw new RangeError(`Cannot build a machine in second ${seconds}: allowed are 0 to 2^40 - 1`);
}

function checkAsids(asids: number): number {
  if (Number.isInteger(asids) && asids >= 2 && asids <= 2 ** 31) return asids;
  throw new RangeError(`Cannot build a machine with ${asids} ASIDs: allowed are 2 to 2^31`);
}
