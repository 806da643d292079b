/**
 * A PowerPC vCPU: its state, its run loop, and what KVM traces of it.
 *
 * @module
 */

import {
  disassemblePpc,
  MachineFault,
  type MagicField,
  MSR_DR,
  MSR_GS,
  MSR_HV,
  MSR_IR,
  MSR_LE,
  MSR_ME,
  MSR_POW,
  MSR_PR,
  MSR_SF,
  MSR_WE,
  type PpcCore,
  PpcCpu,
  type PpcInterrupt,
  SPRS,
} from "../../abi/mod.ts";
import { ArchVcpu } from "../arch/mod.ts";
import { Decrementer } from "./decrementer.ts";
import type { Emulated } from "./emulate.ts";
import { handleExit, PPC_EXITS, type PpcExit, type ProgramCause } from "./exits.ts";
import { PpcGuestMode } from "./guest_mode.ts";
import type { PpcHost } from "./hosts.ts";
import { PpcInterrupts, type PpcPending } from "./interrupts.ts";
import type { MagicPlace } from "./places.ts";
import { PpcProcessor } from "./processor.ts";
import { SharedPage } from "./shared_page.ts";
import { noPpcStats, type PpcStats } from "./stats.ts";
import { PPC_TP } from "./tracepoints.ts";
import type { PpcVm } from "./vm.ts";

const EXIT_NUMBERS: Readonly<Record<string, number>> = Object.fromEntries(
  PPC_EXITS.map((name, number) => [name, number]),
);

/** Registers that problem state may read, and the fields of the page that KVM loads them from at each entry. */
const READABLE: Readonly<Record<PpcCore, readonly (readonly [spr: number, field: MagicField])[]>> = {
  "book3s-64": [[SPRS.USPRG3, "sprg3"]],
  "book3s-32": [],
  booke: [[SPRS.SPRG4R, "sprg4"], [SPRS.SPRG5R, "sprg5"], [SPRS.SPRG6R, "sprg6"], [SPRS.SPRG7R, "sprg7"]],
};

/** What kvm_ppc_instr says of an emulation (enum emulation_result). EMULATE_AGAIN is EMULATE_DONE to whoever traces. */
const EMULATION_RESULTS: Readonly<Record<Emulated, number>> = {
  done: 0,
  again: 0,
  fail: 2,
  "user-space": 4,
};

/** What kvm_book3s_reenter says: KVM has emulated an instruction, which may set nonvolatile registers (asm/kvm_asm.h). */
const RESUME_FLAG_NV = 1;
/** The same: user space goes on, not the guest. */
const RESUME_FLAG_HOST = 2;

/** What kvm_booke_queue_irqprio says (arch/powerpc/kvm/booke.h). */
const IRQPRIO: Readonly<Record<PpcPending, number>> = {
  DATA_STORAGE: 0,
  INST_STORAGE: 1,
  PROGRAM: 3,
  SYSCALL: 8,
  EXTERNAL: 16,
  DECREMENTER: 18,
  EXTERNAL_LEVEL: 20,
};

/** A vCPU. */
export class PpcVcpu extends ArchVcpu<PpcCpu> {
  /** Its virtual machine. */
  declare readonly vm: PpcVm;
  /** Its host. */
  readonly host: PpcHost;
  /** Its registers and addresses. */
  readonly processor: PpcProcessor;
  /** What runs its guest. */
  readonly guestMode: PpcGuestMode = new PpcGuestMode(this);
  /** Its interrupts. */
  readonly interrupts: PpcInterrupts;
  /** Its decrementer. */
  readonly decrementer: Decrementer;
  /** What KVM counts. */
  readonly stats: PpcStats = noPpcStats();
  /** Whether interrupts of its guest begin in little-endian mode. */
  readonly interruptsLittle: boolean;
  /** The word of the last instruction that left guest mode. */
  lastInstruction = 0;
  /** Why it did. */
  programCause: ProgramCause = "illegal";
  /** Whether what KVM has done about that was to emulate it. */
  emulated = false;
  /** KVM_HC_PPC_MAP_MAGIC_PAGE came without the flag: no page of the guest's kernel is no-execute any more. */
  disableKernelNx = false;
  #kicked: PpcExit | undefined = undefined;
  /**
   * Whether the last exit was dealt with in real mode, where KVM-HV takes it, and neither statistics nor tracepoints
   * hear of it: on POWER8 a user program's `sc 1` (book3s_hv_rmhandlers.S, sc_1_fast_return).
   */
  #unheard = false;
  /** Whether KVM_RUN is under way. */
  #inKvmRun = false;

  /** A vCPU that is not started. */
  constructor(vm: PpcVm, index: number) {
    super(vm, index, new PpcCpu(vm.host.core));
    this.host = vm.host;
    this.interruptsLittle = vm.order === "little";
    // KVM starts the page in the host's own byte order, and learns the guest's when it maps the page.
    const shared = new SharedPage(vm.host.core === "book3s-64" ? vm.hostOrder : "big");
    this.processor = new PpcProcessor(vm.host.core, this.context, shared, vm.memory);
    this.interrupts = new PpcInterrupts(this);
    this.decrementer = new Decrementer(this);
    if (vm.host.family === "booke") shared.set("pir", BigInt(index));
    const booke = vm.host.family === "booke";
    this.setMsr(
      (vm.host.core === "book3s-64" ? MSR_SF : 0n) |
        BigInt(MSR_ME | (booke ? 0 : MSR_IR | MSR_DR) | (this.interruptsLittle ? MSR_LE : 0)),
    );
  }

  /** The guest's MSR says that a user program runs. */
  get userMode(): boolean {
    return (this.processor.shared.get("msr") & BigInt(MSR_PR)) !== 0n;
  }

  /** Sets the guest's MSR and all that follows from it (kvmppc_set_msr). */
  setMsr(msr: bigint): void {
    const { shared } = this.processor;
    let value = BigInt.asUintN(this.processor.bits, msr);
    // KVM-PR has a guest of PAPR's see that it has a hypervisor (book3s_pr.c, kvmppc_set_msr_pr).
    if (this.host.papr && this.host.problemState) value = (value & ~MSR_HV) | BigInt(MSR_ME);
    // BookE's with hypervisor state sees that it is a guest (booke.c, kvmppc_set_msr).
    if (this.host.family === "booke" && !this.host.problemState) value |= BigInt(MSR_GS);
    shared.set("msr", value);
    this.processor.takeMode(value);
    // KVM-PR waits for a guest of any processor; POWER8, which has instructions to wait, ignores the bit. BookE's KVM
    // waits where it enters.
    if ((value & BigInt(MSR_POW)) === 0n || !this.host.problemState || this.host.family === "booke") return;
    // The bit stays where something is pending already.
    if (!this.interrupts.pending) shared.set("msr", value & ~BigInt(MSR_POW));
    this.halt();
  }

  /**
   * Whether a guest of e500v2 waits: MSR[WE] is set, and no interrupt began, which would have taken it away (booke.c,
   * kvmppc_core_prepare_to_enter). Where one is pending that may not begin, KVM looks again and again; here it sleeps.
   */
  get #waits(): boolean {
    const { family, problemState } = this.host;
    return family === "booke" && problemState && (this.processor.shared.get("msr") & BigInt(MSR_WE)) !== 0n;
  }

  /** Maps the magic page (kvmppc_kvm_pv). */
  mapMagicPage(place: MagicPlace, { guestCaresForNx }: { readonly guestCaresForNx: boolean }): void {
    const { processor, host } = this;
    if (host.core === "book3s-64") processor.shared.takeOver(this.interruptsLittle ? "little" : "big");
    if (!guestCaresForNx) this.disableKernelNx = true;
    // With hypervisor state the calls exist, and nobody looks at what they left.
    if (!host.problemState) return;
    processor.magic = place;
    processor.magicMapped = false;
  }

  /** Waits until an interrupt is pending (kvm_vcpu_halt). */
  halt(): void {
    if (this.interrupts.pending) return;
    this.charge(this.vm.cost.halt);
    this.block();
  }

  /**
   * Has it look at its pending interrupts: wakes it, or makes it leave guest mode (kvm_vcpu_kick), for an interrupt
   * of the host by which it was told.
   */
  kick(exit: "EXTERNAL" | "DECREMENTER" = "EXTERNAL"): void {
    if (this.phase === "blocked") {
      this.wake();
      return;
    }
    if (!this.#isHardwares(exit)) this.#kicked = exit;
    const { now } = this.engine;
    if (this === this.engine.running || !this.guestMode.takeBack(now)) return;
    this.engine.wake(this, now);
  }

  /**
   * Whether an interrupt reaches the guest without its host: all of a machine without one, and decrementers of guests
   * of KVM-HV, which are the processor's own.
   */
  #isHardwares(exit: "EXTERNAL" | "DECREMENTER"): boolean {
    return this.host.hypervisor === undefined || (exit === "DECREMENTER" && this.#isHv);
  }

  /** User space raises the external interrupt: until it lowers it, or for one delivery (KVM_INTERRUPT). */
  raise(how: "level" | "once" = "level"): void {
    this.interrupts.raise(how);
    this.kick();
  }

  /** User space lowers the external interrupt. */
  lower(): void {
    this.interrupts.lower();
  }

  /** What a handler of an interrupt may send to the fixup of the instruction that left guest mode last. */
  faultOf(interrupt: PpcInterrupt): MachineFault {
    const { pc } = this.processor.context;
    return new MachineFault(
      interrupt,
      this.interrupts.number(interrupt),
      disassemblePpc(this.lastInstruction, pc),
    );
  }

  // Guest mode.

  /** Fetches, decodes and executes the word at the program counter. */
  protected override instruction(): void {
    this.guestMode.instruction();
  }

  /** Leaves guest mode. */
  leave(exit: PpcExit): void {
    this.#unheard = this.#isHv && exit === "SYSCALL" && this.userMode;
    // BookE has it too, and counts nothing there.
    if (this.host.family === "book3s" && !this.#unheard) this.stats.sum_exits++;
    this.exit(EXIT_NUMBERS[exit]);
  }

  // The run loop.

  /** A kick leaves guest mode; what hardware held back begins. */
  protected override boundary(): boolean {
    if (this.#kicked !== undefined) {
      this.leave(this.#kicked);
      this.#kicked = undefined;
      return true;
    }
    if (this.host.problemState || !this.interrupts.deliverable) return false;
    // What was held back may begin: BookE's hardware rings, Book3S' begins it.
    if (this.host.family === "booke") this.leave("GUEST_DBELL");
    else this.interrupts.deliver();
    return true;
  }

  /** KVM handles an exit. */
  protected override handleExit(reason: number): void {
    this.emulated = false;
    handleExit(this, PPC_EXITS[reason]);
  }

  /** Interrupts begin; registers that problem state reads are loaded. */
  protected override beforeEntry(): boolean {
    this.#kicked = undefined;
    this.interrupts.deliver();
    if (this.#waits) {
      this.charge(this.vm.cost.halt);
      this.block();
      return false;
    }
    this.loadReadable();
    return true;
  }

  /** Loads the registers that problem state reads. */
  loadReadable(): void {
    const { readable, shared } = this.processor;
    for (const [spr, field] of READABLE[this.host.core]) readable.set(spr, shared.get(field));
  }

  // Tracing.

  /** Emits kvm_book3s_reenter, where KVM_RUN goes on; KVM-HV's kvm_guest_enter. */
  protected override traceEntry(): void {
    const { pc } = this.processor.context;
    if (this.#isHv) {
      if (!this.#unheard) this.trace(PPC_TP.kvm_guest_enter, pc);
    } else if (this.#inKvmRun) this.#traceReenter(0);
    this.#inKvmRun = true;
  }

  /** Emits kvm_book3s_reenter, which KVM-PR does after each exit, whoever goes on. */
  #traceReenter(resume: number): void {
    const { host, emulated, processor } = this;
    if (host.family !== "book3s" || !host.problemState) return;
    this.trace(PPC_TP.kvm_book3s_reenter, resume | (emulated ? RESUME_FLAG_NV : 0), processor.context.pc);
  }

  /** Emits kvm_exit; KVM-HV's kvm_guest_exit. */
  protected override traceExit(): void {
    const { context, shared } = this.processor;
    const msr = shared.get("msr");
    const args = [context.pc, Number(BigInt.asUintN(32, msr)), Number(msr >> 32n)] as const;
    if (!this.#isHv) this.trace(PPC_TP.kvm_exit, this.exitReason, ...args, this.lastInstruction);
    else if (!this.#unheard) this.trace(PPC_TP.kvm_guest_exit, this.exitReason, ...args);
  }

  get #isHv(): boolean {
    const { family, problemState, hypervisor } = this.host;
    return family === "book3s" && !problemState && hypervisor !== undefined;
  }

  /** Emits kvm_userspace_exit. */
  protected override traceUserspaceExit(reason: number): void {
    this.#traceReenter(RESUME_FLAG_HOST);
    this.#inKvmRun = false;
    this.trace(PPC_TP.kvm_userspace_exit, reason);
  }

  /** Emits kvm_ppc_instr. */
  traceInstruction(pc: number, emulated: Emulated): void {
    this.trace(PPC_TP.kvm_ppc_instr, this.lastInstruction, pc, EMULATION_RESULTS[emulated]);
  }

  /** Emits kvm_booke_queue_irqprio. */
  traceQueued(interrupt: PpcPending): void {
    if (this.host.family === "booke") this.trace(PPC_TP.kvm_booke_queue_irqprio, IRQPRIO[interrupt]);
  }
}
