/**
 * An s390 vCPU: a CPU under SIE, and what KVM does when it leaves guest mode (arch/s390/kvm/{kvm-s390,intercept}.c). Under
 * QEMU's emulator the same CPU calls a helper function where it would leave.
 *
 * @module
 */

import {
  type DiagField,
  type FieldValues,
  highOf,
  instructionBytes,
  KERNEL_PSW_MASK,
  KVM_S390_INTERRUPTS,
  KVM_S390_RESETS,
  lowOf,
  type Psw,
  PSW_MASK_EXT,
  PSW_MASK_IO,
  PSW_MASK_MCHECK,
  S390_FORMATS,
  S390_SYS_PSW_MASK,
  S390Cpu,
  type S390Instruction,
  s390InstructionLength,
} from "../../abi/mod.ts";
import { ArchVcpu, type KvmExit } from "../arch/mod.ts";
import { DIAG_LENGTH, kernelDiag } from "./diag.ts";
import { executeS390, waits, withConditionCode } from "./execute.ts";
import {
  S390_EXIT_EXTINT,
  S390_EXIT_EXTREQ,
  S390_EXIT_FAULT,
  S390_EXIT_HELPER,
  S390_EXIT_INST,
  S390_EXIT_WAIT,
} from "./exits.ts";
import { handleFault } from "./fault.ts";
import type { HostCpu, S390HostThread } from "./host_cpus.ts";
import { deliverable, deliverPending, LocalInterrupts } from "./interrupts.ts";
import { Pfault, type PfaultMemory } from "./pfault.ts";
import { carryOut } from "./privileged.ts";
import { clearReset } from "./reset.ts";
import { type S390Stats, s390Stats } from "./stats.ts";
import { RealStorage, type StorageFault } from "./storage.ts";
import { S390_TP } from "./tracepoints.ts";
import { emulatedDiag, userSpaceDiag } from "./userspace.ts";
import type { S390Vm } from "./vm.ts";

/** Bytes of BRANCH ON COUNT, which guests compute by. */
const BRCTG_LENGTH = instructionBytes(S390_FORMATS.BRCTG);

/** A vCPU. */
export class S390Vcpu extends ArchVcpu<S390Cpu> implements S390HostThread, PfaultMemory {
  /** Its virtual machine. */
  declare readonly vm: S390Vm;
  /** Its storage. */
  readonly storage: RealStorage;
  /** Its own interruptions. */
  readonly interrupts: LocalInterrupts = new LocalInterrupts();
  /** Its handshake about page faults. */
  readonly pfault: Pfault = new Pfault();
  /** What KVM counts. */
  readonly stats: S390Stats = s390Stats();
  /** Pages that are on their way and that the guest was told of. */
  readonly asyncPages: Set<object> = new Set();
  /** The host CPU that it runs on. */
  hostCpu: HostCpu | undefined = undefined;
  /** When its turn on that ends, in cycles. */
  turnEnd = 0;
  /** Cycles that are left of a computation that it is in the middle of. */
  computing = 0;
  /** The flags of the reset that it asked for (kvm_run's s390_reset_flags). */
  resetFlags = 0;
  #instruction: S390Instruction | undefined = undefined;
  #fault: StorageFault | undefined = undefined;

  /** A vCPU after a clear reset. */
  constructor(vm: S390Vm, index: number) {
    super(vm, index, new S390Cpu());
    this.storage = new RealStorage(vm.words);
    clearReset(this);
  }

  // The CPU.

  /** The mask of the PSW. */
  get pswMask(): bigint {
    return this.context.system(S390_SYS_PSW_MASK);
  }

  /** Sets the mask of the PSW. */
  setMask(mask: bigint): void {
    this.context.setSystem(S390_SYS_PSW_MASK, mask);
  }

  /** Loads a PSW. */
  setPsw({ mask, address }: Psw): void {
    this.setMask(mask);
    this.context.pc = Number(address);
  }

  /** Sets the condition code. */
  setConditionCode(cc: number): void {
    this.setMask(withConditionCode(this.pswMask, cc));
  }

  /** Whether an access can be; if not, the vCPU has left guest mode, with the PSW at the instruction. */
  reaches(address: bigint, bytes: number): boolean {
    this.#fault = this.storage.fault(address, bytes);
    if (this.#fault === undefined) return true;
    this.exit(S390_EXIT_FAULT);
    return false;
  }

  /** The length of the instruction at the PSW's address; 2 where it cannot be fetched. */
  fetchLength(): number {
    const byte = this.storage.bytes(this.context.pc, 1);
    return byte === undefined ? 2 : s390InstructionLength(byte[0]);
  }

  /** An instruction that is left to the host; the PSW is behind it. */
  intercept(instruction: S390Instruction): void {
    this.#instruction = instruction;
    this.exit(this.vm.behaviour.kvm ? S390_EXIT_INST : S390_EXIT_HELPER);
  }

  /** Executes an instruction. */
  protected override instruction(): void {
    executeS390(this);
  }

  /** What leaves guest mode between two instructions. */
  protected override boundary(): boolean {
    if (waits(this.pswMask)) this.exit(S390_EXIT_WAIT);
    else if (this.vm.hostCpus.contended && this.clock >= this.turnEnd) this.exit(S390_EXIT_EXTINT);
    else if (deliverable(this)) this.exit(S390_EXIT_EXTREQ);
    else return false;
    return true;
  }

  /** Cycles until it looks for something that has come up, or another thread may do something that it notices. */
  undisturbed(): number {
    return Math.min(this.engine.quiet(), this.#turnEndTime()) - this.time;
  }

  /** A computation goes on to its end, or to that of the turn. */
  override get quietUntil(): number {
    if (this.phase !== "guest" || this.computing === 0 || deliverable(this)) return this.time;
    if (this.storage.fault(BigInt(this.context.pc), BRCTG_LENGTH) !== undefined) return this.time; // Its page has gone.
    return Math.min(this.time + this.computing, Math.max(this.time, this.#turnEndTime()));
  }

  /** When its turn on a host CPU ends, counted from the epoch; never where nobody else waits for one. */
  #turnEndTime(): number {
    return this.vm.hostCpus.contended ? this.turnEnd - this.engine.epoch : Infinity;
  }

  // KVM.

  /** Handles an exit. */
  protected override handleExit(reason: number): void {
    switch (reason) {
      case S390_EXIT_INST:
      case S390_EXIT_HELPER:
        this.#handleInstruction(this.#instruction!);
        return;
      case S390_EXIT_FAULT:
        handleFault(this, this.#fault!);
        return;
      case S390_EXIT_WAIT:
        this.#handleWait();
        return;
      case S390_EXIT_EXTINT:
        this.vm.hostCpus.yield(this);
        return;
      default: // S390_EXIT_EXTREQ: what can be taken now is given before the entry.
    }
  }

  /** Gives the guest its interruptions. */
  protected override beforeEntry(): boolean {
    this.computing = 0;
    deliverPending(this);
    return this.phase === "host";
  }

  #handleInstruction(instruction: S390Instruction): void {
    if (instruction.name === "DIAG") {
      this.#handleDiag(instruction.fields as FieldValues<DiagField>);
      return;
    }
    this.charge(this.vm.cost.emulate);
    const code = carryOut(this, instruction);
    if (code !== undefined) this.injectProgram(code, instruction.length);
  }

  #handleDiag(diag: FieldValues<DiagField>): void {
    let outcome = this.vm.behaviour.kvm ? kernelDiag(this, diag) : emulatedDiag(this, diag);
    if (outcome.kind === "user-space") {
      const reset = outcome.exit === "KVM_EXIT_S390_RESET";
      this.toUserspace(reset ? "KVM_EXIT_S390_RESET" : "KVM_EXIT_S390_SIEIC");
      this.lastOutcome = outcome;
      if (reset) {
        const clears = (this.resetFlags & KVM_S390_RESETS.KVM_S390_RESET_CLEAR) !== 0;
        this.vm.reIpl(clears ? "load clear" : "load normal, dump");
        return;
      }
      outcome = userSpaceDiag(this, diag);
    }
    this.lastOutcome = outcome;
    if (outcome.kind === "exception") this.injectProgram(outcome.code, DIAG_LENGTH);
  }

  /** Queues a program interruption, of an instruction so many bytes long (kvm_s390_inject_program_int). */
  injectProgram(code: number, length: number): void {
    this.interrupts.program = { code, length };
    this.traceInterruption(S390_TP.kvm_s390_inject_vcpu, KVM_S390_INTERRUPTS.KVM_S390_PROGRAM_INT, code);
  }

  /** kvm_s390_handle_wait: nothing would end a wait that is disabled, so user space hears of it. */
  #handleWait(): void {
    if ((this.pswMask & (PSW_MASK_EXT | PSW_MASK_IO | PSW_MASK_MCHECK)) === 0n) {
      this.toUserspace("KVM_EXIT_S390_SIEIC");
      this.vm.panic(`disabled wait on CPU ${this.index}, PSW address 0x${this.context.pc.toString(16)}`);
      return;
    }
    if (!deliverable(this)) this.block();
  }

  /** Whether it sleeps because its guest waits, and not for a page. */
  get idle(): boolean {
    return this.phase === "blocked" && waits(this.pswMask);
  }

  /** An interruption was queued: a CPU that waits looks. */
  kick(): void {
    if (this.idle && deliverable(this)) this.wake();
    else if (this.phase === "guest") this.engine.look();
  }

  // PfaultMemory.

  /** Bytes at a real address; undefined where there is no memory. */
  readReal(address: bigint, bytes: number): Uint8Array | undefined {
    if (this.storage.fault(address, bytes)?.kind === "addressing") return undefined;
    return this.storage.bytes(Number(address), bytes);
  }

  /** Whether a memory slot has an absolute address. */
  backed(address: bigint): boolean {
    return address < 2n ** 52n && this.vm.memory.backed(Number(address), 1);
  }

  // The host's scheduler.

  /** Begins to run at an entry, as soon as a host CPU is free. */
  override start(entry: number, time: number = this.engine.now): void {
    this.context.pc = entry;
    this.phase = "host";
    this.traceState(true);
    this.vm.hostCpus.ready(this, Math.max(time, this.clock));
  }

  /** Sleeps, and leaves its host CPU to others. */
  override block(): void {
    super.block();
    this.vm.hostCpus.release(this);
  }

  /** Goes on, if it is blocked. */
  override wake(time: number = this.engine.now): void {
    if (this.phase !== "blocked") return;
    this.phase = "host";
    this.vm.hostCpus.ready(this, Math.max(time, this.clock) + this.vm.cost.wake);
  }

  /** The stopped state: nothing goes on here; it may be started anew, in kernel code. */
  stop(): void {
    if (this.phase !== "ended") this.traceState(false);
    this.end();
    this.code.clear();
    this.setMask(KERNEL_PSW_MASK);
  }

  /** Stops for good. */
  override end(): void {
    super.end();
    this.vm.hostCpus.release(this);
  }

  /** KVM_RUN comes back; an emulator is in user space anyway. */
  override toUserspace(exit: KvmExit): void {
    if (this.vm.behaviour.kvm) super.toUserspace(exit);
  }

  // Tracing.

  /** Counts an event of KVM's; an emulator has none. */
  override trace(event: number, a = 0, b = 0, c = 0, d = 0, e = 0): void {
    if (this.vm.behaviour.kvm) super.trace(event, a, b, c, d, e);
  }

  /** Emits that user space has told KVM whether the CPU operates, or is stopped. */
  traceState(operates: boolean): void {
    this.trace(S390_TP.kvm_s390_vcpu_start_stop, this.index, operates ? 1 : 0);
  }

  /** Emits an event about an interruption. */
  traceInterruption(event: number, type: number, parameter: number, wide: bigint = 0n): void {
    this.trace(event, type, parameter, lowOf(wide), highOf(wide));
  }

  /** kvm_s390_sie_enter. */
  protected override traceEntry(): void {
    this.trace(S390_TP.kvm_s390_sie_enter, this.context.pc);
  }

  /** kvm_s390_sie_exit, and what was intercepted. */
  protected override traceExit(): void {
    this.trace(S390_TP.kvm_s390_sie_exit, this.exitReason, this.context.pc);
    if (this.exitReason !== S390_EXIT_INST) return;
    const { length } = this.#instruction!;
    const [b0, b1, b2, b3] = this.storage.bytes(this.context.pc - length, length)!;
    this.trace(S390_TP.kvm_s390_intercept_instruction, (b0 << 8) | b1, ((b2 << 24) | (b3 << 16)) >>> 0);
  }

  /** kvm_userspace_exit. */
  protected override traceUserspaceExit(reason: number): void {
    this.trace(S390_TP.kvm_userspace_exit, reason);
  }
}
