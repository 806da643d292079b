/**
 * A logical processor in guest mode: it resumes the guest function at the top of its stack of activations, takes the
 * one instruction that the function yields, and executes it.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { instructionText } from "../../abi/mod.ts";
import type { Guest, X86Cpu } from "../../abi/mod.ts";
import * as core from "../core/mod.ts";
import { type Engine, type Steps, straight } from "../core/mod.ts";
import type { Costs } from "../cost/mod.ts";
import { GuestMemory, type PhysicalSpace, type Watcher } from "../memory/mod.ts";
import { escaped, GuestError, misbuilt } from "./errors.ts";
import * as events from "./events.ts";
import * as instruction from "./execute.ts";
import * as activations from "./frames.ts";
import { Mmu } from "./mmu.ts";
import type { HostThread, ProcessorFeatures, ProcessorParts } from "./parts.ts";
import { resetProcessor } from "./reset.ts";
import { ProcessorState } from "./state.ts";
import * as waiting from "./waiting.ts";
import type { Virtualization } from "./virtualization.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { SYS_IDT_BASE, SYS_IDT_LIMIT } = abi;
const { FAR, LONG_AGO } = core;
// And so are functions.
const { endFrame } = events;
const { execute } = instruction;
const { resumeAt } = activations;
const { backToExit, endSpin, rebaseSleep, settleWork, spinInterrupted, workInterrupted } = waiting;

/**
 * Resumes a generator. Each guest function has a prototype of its own, so looking `next` up on the generators would be
 * a slow, megamorphic load.
 */
const resume: (guest: Guest) => IteratorResult<number, void> = Function.prototype.call.bind(
  Object.getPrototypeOf((function* () {}).prototype).next,
);

/** What instructions reach without translation while addresses are translated. */
const NOTHING = new GuestMemory();

/** A logical processor in guest mode. */
export class Processor extends ProcessorState {
  // What every interrupt touches stands together, as fields lie in memory in the order in which they are set: among
  // hundreds, each cache line less counts.
  /**
   * Whether common exits may be taken the host's straight way, and one that ends a sleep when it is over; off, every exit
   * is taken when it begins: the slow reference.
   */
  exitsStraight = false;
  /** Whether it is in guest mode. */
  guestMode = false;
  /** When the next asynchronous host event is due, counted from the epoch; FAR for none. */
  asyncAt: number = FAR;
  /** When it must look for an event. */
  eventAt: number = FAR;
  /** Something waits for an instruction boundary at which the guest takes it: {@linkcode requestWindow}. */
  windowRequested = false;
  /** The STI shadow: interrupts are held off until the next instruction has completed. */
  shadow = false;
  /** NMIs are blocked until the next IRET. */
  nmiBlocked = false;
  /** What IRET exits with, 0 where it does not: hardware says so at VM entry. */
  iretExit = 0;
  /** Whether a computation sleeps. */
  working = false;
  /** Whether a PAUSE loop spins on a word of memory. */
  spinning = false;
  /** When the computation, or the PAUSE loop, fell asleep, counted from the epoch. */
  sleepStart = 0;
  /** When it is to wake. */
  sleepEnd = 0;
  /** Instructions that completed. */
  instructions = 0;
  /** The word of memory at which the IDT begins, in long mode, while addresses are not translated. */
  idtWord = 0;
  /** How many gates it has there; none in other modes, or where it begins between words. */
  idtGates = 0;
  /** The exit's number: a VMX basic exit reason or an SVM exit code. */
  exitReason = 0;
  /** VMX: the exit qualification. SVM: EXITINFO1. */
  exitInfo1 = 0;
  /** VMX: the guest-physical address. SVM: EXITINFO2. */
  exitInfo2 = 0;
  /** The stepping core. */
  declare readonly engine: Engine;
  /** The thread that steps it, and whose clock it advances. */
  declare readonly thread: HostThread;
  /** The virtual machine's memory. */
  declare readonly memory: GuestMemory;
  /** What instructions reach by addresses as they are: that memory, or none while addresses are translated. */
  declare direct: GuestMemory;
  /** Prices. */
  declare readonly cost: Costs;
  /** Its virtualization hardware. */
  declare readonly virtualization: Virtualization;

  // And what few touch, behind it.
  /** The word on which a PAUSE loop spins; is told of stores to it. */
  declare readonly spin: { address: number } & Watcher;
  /** Whether PAUSE loops are charged in bulk; off, each turn is a step: the slow reference. */
  declare bulkSpin: boolean;
  /** What is added to the host's time-stamp counter, in whole cycles. */
  declare tscOffset: number;
  /** The program of the boot context has returned: the processor only halts from now on. */
  declare finished: boolean;
  /** What hardware does in several accesses to shared memory, and has not finished: explored runs take them one by one. */
  declare microcode: Steps | undefined;
  /** What a virtualized read brought. */
  declare virtualValue: number;
  /** What was being delivered when the guest exited: VECTORED_NOTHING and so on; software clears it. */
  declare vectored: number;
  /** Its vector. */
  declare vectoredVector: number;
  /** Its error code. */
  declare vectoredErrorCode: number;
  /** Its name in messages. */
  declare readonly name: string;
  /** What it has. */
  declare readonly features: ProcessorFeatures;
  /** The host's physical memory. */
  declare readonly physical: PhysicalSpace;
  /** Translates addresses; undefined until that was first needed. */
  declare mmu: Mmu | undefined;
  /** KVM wants the guest's accesses to go through its own tables, even where the guest has none. */
  declare tracked: boolean;
  /** The context that it began with at reset. */
  declare bootContext: X86Cpu;

  /** A processor in its reset state. */
  constructor(parts: ProcessorParts) {
    super();
    this.engine = parts.engine;
    this.thread = parts.thread;
    this.memory = parts.memory;
    this.direct = parts.memory;
    this.physical = parts.physical;
    this.cost = parts.cost;
    this.virtualization = parts.virtualization;
    this.spin = { address: -1, stored: () => spinInterrupted(this, this.engine.running!.time) };
    this.bulkSpin = true;
    this.tscOffset = 0;
    this.finished = false;
    this.microcode = undefined;
    this.virtualValue = 0;
    this.vectored = 0;
    this.vectoredVector = 0;
    this.vectoredErrorCode = 0;
    this.mmu = undefined;
    this.tracked = false;
    this.name = parts.name;
    this.features = parts.features;
    this.bootContext = this.context;
    resetProcessor(this, false);
  }

  /** Lets local time pass. */
  charge(cycles: number): void {
    this.thread.time += cycles;
  }

  /** The guest's time-stamp counter. */
  tsc(): number {
    return this.thread.clock + this.tscOffset;
  }

  /** VM entry. Where software has written RIP, the guest goes on there. */
  enter(): void {
    this.guestMode = true;
    if (this.ripWritten) {
      this.ripWritten = false;
      resumeAt(this);
    }
    this.virtualization.enter(this);
  }

  /** VM exit: out of guest mode. RIP is at the present instruction. */
  leave(reason: number): true {
    return this.leaveWith(reason, 0, 0);
  }

  /** VM exit with information: optional parameters would cost every exit. */
  leaveWith(reason: number, info1: number, info2: number): true {
    this.guestMode = false;
    this.stopWaiting();
    this.exitReason = reason;
    this.exitInfo1 = info1;
    this.exitInfo2 = info2;
    this.thread.time += this.cost.vmexit;
    return true;
  }

  /** An event takes the place of the present instruction: if that waited, it does not wait any more. */
  stopWaiting(): void {
    this.working = false;
    if (this.spinning) endSpin(this);
  }

  /** Software has carried out the instruction that exited: RIP moves behind it, and the STI shadow ends. */
  skipInstruction(): void {
    this.retire(this.context.pending);
  }

  /** Hardware does something in several accesses to memory that others use too. It is no instruction boundary in between. */
  perform(steps: Steps): true {
    if (this.engine.explores) {
      this.microcode = steps;
      this.#goOn(steps);
    } else {
      straight(steps);
    }
    return true;
  }

  #goOn(steps: Steps): void {
    if (steps.next().done && this.microcode === steps) this.microcode = undefined;
  }

  /** Runs one instruction, or takes one event, or makes one access of an instruction that makes several. Only in guest mode. */
  step(): void {
    if (this.microcode !== undefined) {
      this.#goOn(this.microcode);
      return;
    }
    backToExit(this);
    if (this.thread.time >= this.eventAt && this.takesEvent()) return;
    const op = this.context.pending || this.fetch();
    if (op !== 0) execute(this, op, false);
  }

  /** Resumes the guest function up to its next instruction, which is pending then: its opcode, 0 where it has ended. */
  fetch(): number {
    const { context } = this;
    let result: IteratorResult<number, void>;
    try {
      result = resume(context.guest!);
    } catch (error) {
      throw escaped(this, error);
    }
    if (result.done) {
      endFrame(this);
      return 0;
    }
    const op = result.value;
    if (op !== context.pending || op === 0) throw misbuilt(this, op);
    return op;
  }

  /** At an instruction boundary: an asynchronous event that is due, or a window that is open. */
  takesEvent(): boolean {
    if (this.asyncDue && this.virtualization.asynchronous(this)) return true;
    if (this.windowRequested && this.virtualization.window(this)) return true;
    return this.translates && !this.mmu!.fetchable();
  }

  /** Whether addresses are translated. */
  get translates(): boolean {
    return this.direct !== this.memory;
  }

  /** Whether the guest's own tables translate them. */
  get paged(): boolean {
    return this.mmu !== undefined && this.mmu.paged;
  }

  /** The registers that paging depends on have changed, or who wants translation. */
  pagingChanged(): void {
    this.idtChanged();
    const paging = this.hasTables;
    if (!paging && !this.tracked && this.mmu === undefined) return;
    this.mmu ??= new Mmu(this, this.physical);
    this.mmu.changed();
    this.direct = paging || this.tracked ? NOTHING : this.memory;
    this.setAsync(this.asyncAt);
  }

  /** The IDT register, or the mode, has changed. */
  idtChanged(): void {
    const { sys } = this;
    const base = sys[SYS_IDT_BASE];
    const whole = this.longActive && (base & 3) === 0 && sys[SYS_IDT_BASE + 1] === 0;
    this.idtGates = whole ? (sys[SYS_IDT_LIMIT] + 1) >>> 4 : 0;
    this.idtWord = base >>> 2;
  }

  /** The instruction completed. */
  retire(op: number): void {
    const context = this.context;
    context.pending = 0;
    context.last = op;
    this.instructions++;
    this.shadow = false;
  }

  /** The next asynchronous event is due at `time`. */
  setAsync(time: number): void {
    this.asyncAt = time;
    this.#lookForEvents();
  }

  /** Software asks, or does not ask any more, for an exit at an interrupt or NMI window. */
  requestWindow(requested: boolean): void {
    this.windowRequested = requested;
    this.#lookForEvents();
  }

  #lookForEvents(): void {
    this.eventAt = this.windowRequested || this.translates ? LONG_AGO : this.asyncAt;
  }

  /** Whether an asynchronous event is due. */
  get asyncDue(): boolean {
    return this.thread.time >= this.asyncAt;
  }

  /** The wait of the present instruction is cut short: a host event is due at `time`. */
  interruptWait(time: number): void {
    if (this.working) workInterrupted(this, time);
    else if (this.spinning) spinInterrupted(this, time);
  }

  /** The run has stopped, or somebody looks: nothing may be early or late any more. */
  settle(): void {
    const { engine, thread } = this;
    if (!this.guestMode || !this.working || !settleWork(this)) return;
    engine.countStep();
    this.step();
    engine.wakeAt(thread, thread.time);
  }

  /** The engine's epoch has moved on. */
  rebase(by: number): void {
    rebaseSleep(this, by);
  }

  /** Throws a fault into the running function, as its fixup does; what it yields next stays pending. */
  throwInto(fault: Error): void {
    let result: IteratorResult<number, void>;
    try {
      result = this.context.guest!.throw(fault);
    } catch (error) {
      throw escaped(this, error);
    }
    if (result.done) endFrame(this);
    else if (result.value !== this.context.pending || result.value === 0) throw misbuilt(this, result.value);
  }

  /** REX prefixes exist in 64-bit mode alone (SDM 2A 2.2.1): elsewhere the bytes are other instructions. */
  needs64BitMode(op: number): void {
    if (!this.longMode) throw this.error(`it executed ${instructionText(op)} outside 64-bit mode`);
  }

  /** An error in guest terms, for the present instruction. */
  error(problem: string, cause?: unknown): GuestError {
    const { context } = this;
    if (context.depth === 0) return new GuestError(this.name, "no function", this.storedRip, problem, cause);
    const where = context.top.block?.name ?? "no function";
    return new GuestError(this.name, where, this.rip, problem, cause);
  }
}
