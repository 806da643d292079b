/**
 * A vCPU of an architecture without a folder of its own in host/cpu: a thread that executes guest instructions, leaves
 * guest mode with a reason, lets KVM handle it, and enters again. What an instruction does and what KVM does about an exit
 * the architecture adds.
 *
 * @module
 */

import type { CallOutcome, MachineContext, MachineFault } from "../../abi/mod.ts";
import { Thread } from "../core/mod.ts";
import { Activations } from "./activations.ts";
import type { ArchGuestError } from "./errors.ts";
import { KVM_EXITS, type KvmExit } from "./kvm_run.ts";
import type { ArchVm } from "./vm.ts";

/** What a vCPU does between two steps. */
export type ArchPhase =
  /** It executes guest instructions. */
  | "guest"
  /** It is in the host, and enters with its next step. */
  | "host"
  /** It has exited, and KVM handles that with its next step. */
  | "exited"
  /** It waits until somebody wakes it. */
  | "blocked"
  /** Its program has returned, or its virtual machine has ended. */
  | "ended";

/** A vCPU. `Cpu` is the handle that its guest functions get. */
export abstract class ArchVcpu<Cpu extends MachineContext<Cpu>> extends Thread {
  /** Its virtual machine. */
  declare readonly vm: ArchVm<Cpu>;
  /** Its place among the vCPUs. */
  declare readonly index: number;
  /** Its guest code. */
  declare readonly code: Activations<Cpu>;
  /** What it does. */
  phase: ArchPhase = "ended";
  /** Why it has left guest mode: a number of its architecture's exits. */
  exitReason = 0;
  /** What became of the last hypercall; undefined before the first. The architecture's dispatch sets it. */
  lastOutcome: CallOutcome | undefined = undefined;
  /** Guest instructions that were executed. */
  instructions = 0;

  /** A vCPU that is not started. */
  constructor(vm: ArchVm<Cpu>, index: number, context: Cpu) {
    super(vm.engine, `${vm.arch} vcpu ${index}`);
    this.vm = vm;
    this.index = index;
    this.code = new Activations(`vcpu ${index}`, context);
  }

  // What the architecture adds.

  /** Fetches, decodes and executes the instruction at the program counter; sets the program counter. */
  protected abstract instruction(): void;
  /** KVM handles an exit. Afterwards the vCPU enters again, unless it was blocked or its virtual machine has ended. */
  protected abstract handleExit(reason: number): void;
  /** At an instruction boundary: an interrupt that is due begins its handler, or a host event leaves guest mode. */
  protected boundary(): boolean {
    return false;
  }
  /** KVM is about to enter guest mode. false where it does not: then the vCPU was blocked or ended. */
  protected beforeEntry(): boolean {
    return true;
  }
  /** Emits what the architecture's KVM traces at an entry. */
  protected traceEntry(): void {}
  /** Emits what the architecture's KVM traces at an exit. */
  protected traceExit(): void {}

  // Steps.

  /** One guest instruction, one exit handled, or one entry. */
  override step(): void {
    if (this.phase === "guest") this.#guestStep();
    else if (this.phase === "exited") this.#hostStep();
    else if (this.phase === "host") this.#enter();
    else this.engine.park(this);
  }

  #guestStep(): void {
    if (this.boundary()) return;
    if (!this.code.ready()) {
      this.end();
      return;
    }
    this.instructions++;
    this.instruction();
  }

  #hostStep(): void {
    this.phase = "host";
    this.handleExit(this.exitReason);
  }

  #enter(): void {
    if (!this.beforeEntry()) return;
    this.charge(this.vm.cost.vmentry);
    this.traceEntry();
    this.phase = "guest";
  }

  // What the architecture uses.

  /** The context that is loaded. */
  get context(): Cpu {
    return this.code.context;
  }

  /** Leaves guest mode. */
  protected exit(reason: number): void {
    this.vm.machine.countExit();
    this.phase = "exited";
    this.exitReason = reason;
    this.vm.tracer.exits(this.index)[reason]++;
    this.charge(this.vm.cost.vmexit);
    this.traceExit();
  }

  /** The handler at the program counter begins: the processor has set that to a vector. */
  enterHandler(fault?: MachineFault): void {
    this.charge(this.vm.cost.eventDelivery);
    this.code.enterHandler(fault);
  }

  /** The instruction that ends handlers has been executed, by the processor or by the host for it. */
  leaveHandler(): void {
    this.charge(this.vm.cost.iret);
    this.code.leaveHandler();
  }

  /** KVM_RUN comes back with a reason, and user space has its turn. */
  toUserspace(exit: KvmExit): void {
    this.vm.userspaceExits.set(exit, (this.vm.userspaceExits.get(exit) ?? 0) + 1);
    this.traceUserspaceExit(KVM_EXITS[exit]);
    this.charge(this.vm.cost.userspace);
  }

  /** Emits kvm_userspace_exit, which virt/kvm has for every architecture. */
  protected abstract traceUserspaceExit(reason: number): void;

  /** Waits until {@linkcode wake}. */
  block(): void {
    this.charge(this.vm.cost.block);
    this.phase = "blocked";
    this.engine.park(this);
  }

  /** Goes on, if it is blocked, at `time` of the one who wakes it (its clock, in cycles). */
  wake(time: number = this.engine.now): void {
    if (this.phase !== "blocked") return;
    this.phase = "host";
    this.engine.wake(this, Math.max(time, this.clock) + this.vm.cost.wake);
  }

  /** Begins to run at an entry. */
  start(entry: number, time: number = this.engine.now): void {
    this.context.pc = entry;
    this.phase = "host";
    this.engine.wake(this, Math.max(time, this.clock));
  }

  /** Stops for good. */
  end(): void {
    this.phase = "ended";
    this.engine.park(this);
  }

  /** Counts an event, and keeps it where records are kept: of the time of whoever runs, as it may sleep meanwhile. */
  trace(event: number, a = 0, b = 0, c = 0, d = 0, e = 0): void {
    const { tracer, engine } = this.vm;
    tracer.counts[this.index + 1][event]++;
    if (!tracer.recording) return;
    const time = engine.running === undefined ? this.clock : engine.now;
    tracer.record(event, this.index, time, a, b, c, d, e);
  }

  /** An error in guest terms. */
  error(problem: string, cause?: unknown): ArchGuestError {
    return this.code.error(problem, cause);
  }
}
