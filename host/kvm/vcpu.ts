/**
 * A vCPU: KVM's side of a processor. Its thread runs the guest while the processor is in guest mode, and KVM's run
 * loop otherwise.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import type { VcpuId } from "../../abi/mod.ts";
import * as core from "../core/mod.ts";
import type { Costs } from "../cost/mod.ts";
import * as cpu from "../cpu/mod.ts";
import { Processor, resetProcessor } from "../cpu/mod.ts";
import { Lapic, resetLapic } from "../lapic/mod.ts";
import { PvEoi } from "../pv/pv_eoi.ts";
import type { Machine } from "../machine.ts";
import type { CpuTlb } from "../mmu/mod.ts";
import * as tracing from "../trace/mod.ts";
import type { Tracer } from "../trace/mod.ts";
import { createBackend } from "./backends.ts";
import type { Backend, CommonExits } from "./backend.ts";
import type { CpuidTable } from "./cpuid.ts";
import { HaltPolling } from "./halt.ts";
import { MsrState } from "./msr_state.ts";
import * as requests from "./requests.ts";
import * as modes from "./modes.ts";
import * as loop from "./run_loop.ts";
import { addUp } from "./straight_counts.ts";
import * as straightExits from "./straight_exits.ts";
import { mmuReset } from "./tdp/root.ts";
import { VcpuState } from "./vcpu_state.ts";
import { VcpuStats } from "./vcpu_stats.ts";
import type { Vm } from "./vm.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const { GP_VECTOR, RDX, SYS_CR0 } = abi;
const { FAR, rebased } = core;
const { burst } = cpu;
const { ATTENTION_INTERLEAVE, REQ_MMU_RELOAD } = requests;
const { MpState, Phase, Straight, Turn, VcpuMode } = modes;
const { runLoop, takeTurn } = loop;
const { straightInterrupt, straightTurn, straightWrmsr, takeTurnBack } = straightExits;
const { exitAt, exitPlace, FIRST_EXIT, TP } = tracing;

/** A vCPU. */
export class Vcpu extends VcpuState {
  #preemptionTimer = Infinity;
  readonly #loop: Generator<void, void, void>;
  readonly #stats = new VcpuStats();
  /** The virtual machine's events. */
  declare readonly tracer: Tracer;
  /** Its place among the vCPUs. */
  declare readonly index: number;
  /** Its number: its x2APIC ID, and for the low 8 bits its xAPIC ID at reset. */
  declare readonly vcpuId: VcpuId;
  /** Whether it is the bootstrap processor. */
  declare readonly bootstrap: boolean;
  /** What CPUID says. */
  declare readonly cpuid: CpuidTable;
  /** The virtual machine. */
  declare readonly vm: Vm;
  /** The machine. */
  declare readonly machine: Machine;
  /** Prices. */
  declare readonly cost: Costs;
  /** KVM_MP_STATE: whether it has been started, and whether it halts. */
  declare mpState: modes.MpState;
  /** The vendor module's part. */
  declare readonly backend: Backend;
  /** The exits that every interrupt costs. */
  declare readonly commonExits: CommonExits;
  /** Where its own events and exits are counted: see {@linkcode tracing.CountRow}. */
  declare readonly countRows: Uint32Array;
  /** Where its row begins there. */
  declare readonly row: number;
  /** Whether events are recorded. */
  declare readonly recording: boolean;
  /** The processor. */
  declare readonly processor: Processor;
  /** The local APIC. */
  declare readonly lapic: Lapic;
  /** Paravirtual end of interrupt. */
  declare readonly pvEoi: PvEoi;
  /** MSRs that KVM keeps for it. */
  declare readonly msrs: MsrState;
  /** Halt polling. */
  declare readonly haltPolling: HaltPolling;

  /** A vCPU after KVM_CREATE_VCPU. */
  constructor(vm: Vm, index: number, vcpuId: VcpuId, cpuid: CpuidTable) {
    super(vm.engine, `vcpu ${vcpuId}`);
    this.tracer = vm.tracer;
    this.index = index;
    this.vcpuId = vcpuId;
    this.bootstrap = vcpuId === 0;
    this.cpuid = cpuid;
    this.vm = vm;
    this.machine = vm.machine;
    this.cost = vm.cost;
    this.mpState = this.bootstrap ? MpState.Runnable : MpState.Uninitialized;
    this.backend = createBackend(this, vm.backend);
    this.commonExits = this.backend.commonExits;
    const { counts, start } = vm.tracer.addVcpu(this.backend.exitPlaces, () => addUp(this, this.#stats));
    this.countRows = counts;
    this.row = start;
    this.recording = vm.tracer.recording;
    this.processor = new Processor({
      name: this.name,
      engine: vm.engine,
      thread: this,
      memory: vm.memory,
      physical: vm.machine.physical,
      cost: vm.cost,
      virtualization: this.backend.hardware,
      features: cpuid,
    });
    this.lapic = new Lapic(this);
    this.rest();
    this.pvEoi = new PvEoi(this);
    this.msrs = new MsrState(this);
    this.haltPolling = new HaltPolling(this);
    this.processor.exitsStraight = !this.recording && !vm.enableApicv && !vm.engine.explores;
    if (vm.engine.explores) this.attention |= ATTENTION_INTERLEAVE;
    this.requests = REQ_MMU_RELOAD;
    this.#loop = runLoop(this);
    vm.addThread(this);
  }

  /** RESET, or INIT: processor, local APIC, paravirtual state (kvm_vcpu_reset). */
  reset(init: boolean): void {
    this.touch();
    const cr0 = this.processor.sys[SYS_CR0];
    this.straight = Straight.None;
    resetLapic(this.lapic, init);
    this.nmiQueued = 0;
    this.nmiPending = 0;
    this.events = 0;
    resetProcessor(this.processor, init);
    // The processor's signature, 0x600 where CPUID says none (kvm_vcpu_reset).
    this.processor.regs[RDX] = this.cpuid.find(1, 0)?.[0] ?? 0x600;
    this.msrs.reset(init);
    this.backend.reset(init);
    mmuReset(this, cr0, init);
    this.vm.ownership?.vcpuReset(this.vcpuId, init ? "INIT" : "RESET");
  }

  /** The guest's next instruction, or KVM's next step. */
  override step(): void {
    if (this.processor.guestMode) {
      this.processor.step();
      return;
    }
    this.#hostStep();
  }

  /** KVM's next step, by the straight way if there is one. */
  hostStep(): void {
    if (this.straight === Straight.None || !straightTurn(this)) this.#hostStep();
  }

  /** WRMSR of a register whose exit has a straight way, and KVM's turn if nobody comes between. Whether it has one. */
  straightWrmsr(): boolean {
    return straightWrmsr(this);
  }

  /** A physical interrupt that is due, and KVM's turn, if nobody comes between. Whether that is so. */
  straightInterrupt(): boolean {
    return straightInterrupt(this);
  }

  /** An EOI's turn was taken before its exit was over, and may not have been. */
  protected override takeTurnBack(): void {
    takeTurnBack(this);
  }

  /** From an exit on, a turn may be all that is needed: the loop's generator waits where the guest was entered. */
  #hostStep(): void {
    const exited = this.phase === Phase.Exited || this.phase === Phase.Served;
    if (!exited || (this.turn = takeTurn(this)) !== Turn.Guest) this.#goOn();
  }

  #goOn(): void {
    if (this.#loop.next().done) this.vm.scheduler.release(this);
  }

  /** Emits an event that this vCPU's own thread causes. */
  trace(event: number, a = 0, b = 0, c = 0, d = 0, e = 0): void {
    if (this.hit(event)) this.record(event, a, b, c, d, e);
  }

  /** Counts an event. Whether it is to be recorded as well: hot paths look its arguments up only then. */
  hit(event: number): boolean {
    this.countRows[this.row + event]++;
    return this.recording;
  }

  /** Counts an exit. Whether that is to be recorded. */
  hitExit(reason: number): boolean {
    this.countRows[this.row + FIRST_EXIT + exitPlace(reason)]++;
    return this.hit(TP.kvm_exit);
  }

  /** Statistics. */
  get stats(): VcpuStats {
    addUp(this, this.#stats);
    return this.#stats;
  }

  /** How often each exit happened, by its number; those that did not are left out. */
  get exitCounts(): Map<number, number> {
    const counts = new Map<number, number>();
    for (const [place, count] of this.tracer.exits(this.index).entries()) {
      if (count > 0) counts.set(exitAt(place), count);
    }
    return counts;
  }

  /** Records an event that {@linkcode hit} has counted. */
  record(event: number, a = 0, b = 0, c = 0, d = 0, e = 0): void {
    this.tracer.record(event, this.index, this.clock, a, b, c, d, e);
  }

  /** Many steps, the quick way. */
  override burst(): void {
    burst(this.processor);
  }

  /** The run has stopped, or somebody looks. */
  override settle(): void {
    this.touch();
    this.processor.settle();
  }

  /** The engine's epoch has moved on. */
  override rebase(by: number): void {
    super.rebase(by);
    this.processor.rebase(by);
    this.earlyTurnAt = rebased(this.earlyTurnAt, by);
    this.preemptionAt = this.engine.timeOf(this.#preemptionTimer);
    this.#settleAsync();
  }

  // Requests and kicks.

  /** Gets the vCPU out of guest mode, or out of bed, so that it looks at what has changed (kvm_vcpu_kick). */
  kick(): void {
    this.touch();
    if (this.blocked) {
      this.wakeUp();
      return;
    }
    this.kickOut();
  }

  /** Gets the vCPU out of guest mode, but not out of bed. */
  kickOut(): void {
    if (this.mode !== VcpuMode.InGuest) return;
    this.mode = VcpuMode.Exiting;
    const running = this.engine.running!;
    if (running === this) return;
    const { cost } = this;
    const sent = running.time + cost.kick;
    running.time = sent;
    this.pcpu!.interrupt(sent + cost.ipiLatency);
  }

  /** Wakes the vCPU if it waits for an event. */
  wakeUp(): void {
    if (this.woken) return;
    this.woken = true;
    const { running } = this.engine;
    const now = running!.time;
    if (this.asleep) {
      this.asleep = false;
      this.ready = true;
      this.stats.halt_wakeup++;
      this.vm.scheduler.ready(this, now + this.cost.wake);
    } else if (running !== this) {
      this.engine.wakeAt(this, Math.min(this.time, now + this.cost.pollTurn));
    }
  }

  /** The TLB of the CPU that it is on. */
  tlb(): CpuTlb {
    return this.pcpu!.tlb(this);
  }

  /** The scheduler has put the vCPU on a CPU. */
  loaded(): void {
    this.ready = false;
    this.backend.loadedOn(this.pcpu!);
  }

  // Asynchronous exits.

  /** Something is posted to it while it is on a CPU: where it polls for events, it sees that at once. */
  postedTo(): void {
    if (this.polling) this.wakeUp();
  }

  /** The pCPU's notification has been taken: what is next comes later. */
  notificationTaken(): void {
    this.#settleAsync();
  }

  /** When the VMX-preemption timer expires, in cycles of host time; Infinity switches it off. */
  setPreemptionTimer(at: number): void {
    this.#preemptionTimer = at;
    this.preemptionAt = this.engine.timeOf(at);
    this.asynchronousEvent();
  }

  /** Whether the preemption timer has expired. */
  get preemptionTimerExpired(): boolean {
    return this.preemptionAt <= this.time;
  }

  /** A physical interrupt arrives at `time`, before any other. */
  interruptDue(time: number): void {
    this.touch();
    const { processor } = this;
    const at = time < processor.asyncAt ? time : processor.asyncAt;
    processor.setAsync(at);
    if (processor.guestMode) processor.interruptWait(at);
  }

  /** The next asynchronous event has changed. */
  asynchronousEvent(): void {
    this.touch();
    const at = this.#settleAsync();
    if (at !== FAR && this.processor.guestMode) this.processor.interruptWait(at);
  }

  /** The host takes the physical interrupts that have arrived. A notification it counts at most. */
  serveInterrupts(): void {
    const pcpu = this.pcpu!;
    if (pcpu.notifiedAt <= this.time) {
      pcpu.notified();
      if (this.backend.notifiedByInterrupt) this.time += this.cost.hostInterrupt;
    }
    if (pcpu.interruptAt > this.time) return;
    this.time += this.cost.hostInterrupt;
    pcpu.served();
    if (pcpu.notifiedAt === FAR) this.processor.setAsync(this.preemptionAt);
    else this.#settleAsync();
  }

  #settleAsync(): number {
    const { pcpu } = this;
    let at = this.preemptionAt;
    if (pcpu !== undefined) {
      if (pcpu.interruptAt < at) at = pcpu.interruptAt;
      if (pcpu.notifiedAt < at) at = pcpu.notifiedAt;
    }
    this.processor.setAsync(at);
    return at;
  }

  // Exceptions.

  /** Queues #GP(0) (kvm_inject_gp). */
  injectGp(): void {
    this.queueException(GP_VECTOR, 0);
  }

  /** Finishes an instruction: skips it, or raises #GP(0) for it (kvm_complete_insn_gp). */
  complete(success: boolean): void {
    if (success) this.backend.skipInstruction();
    else this.injectGp();
  }

  /** Sets the MP state. A vCPU that becomes runnable has used up its kick. */
  setMpState(state: modes.MpState): void {
    this.mpState = state;
    if (state === MpState.Runnable) this.pvUnhalted = false;
  }

  /** The current privilege level. */
  get cpl(): number {
    return this.processor.cpl;
  }
}
