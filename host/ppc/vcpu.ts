/**
 * A PowerPC vCPU: fetches words, decodes and executes them, leaves guest mode where its host must help.
 *
 * @module
 */

import {
  BO_COUNT,
  decodePpc,
  disassemblePpc,
  hasPpcInstruction,
  isPrivilegedPpc,
  MachineFault,
  type MagicField,
  MSR_DR,
  MSR_IR,
  MSR_LE,
  MSR_ME,
  MSR_POW,
  MSR_PR,
  MSR_SF,
  PPC_CTR,
  PpcCpu,
  type PpcFamily,
  type PpcInstruction,
  type PpcInterrupt,
  SPRS,
} from "../../abi/mod.ts";
import { ArchVcpu } from "../arch/mod.ts";
import { Decrementer } from "./decrementer.ts";
import { emulate, type Emulated } from "./emulate.ts";
import { execute } from "./execute.ts";
import {
  handleExit,
  PPC_EXITS,
  type PpcExit,
  type ProgramCause,
  programCause,
  storageCause,
} from "./exits.ts";
import type { PpcHost } from "./hosts.ts";
import { PpcInterrupts } from "./interrupts.ts";
import { type MagicPlace, PpcProcessor } from "./processor.ts";
import { SharedPage } from "./shared_page.ts";
import { PPC_TP } from "./tracepoints.ts";
import type { PpcVm } from "./vm.ts";

/** What KVM counts of a vCPU, by the names of its statistics (arch/powerpc/kvm/book3s.c). */
export interface PpcStats {
  /** Exits. */
  sum_exits: number;
  /** Emulated instructions. */
  emulated_inst_exits: number;
  /** System calls of the guest; on BookE hypercalls too. */
  syscall_exits: number;
  /** The host wanted the CPU. */
  ext_intr_exits: number;
  /** A guest doorbell: an interrupt is pending that the guest has just allowed. */
  gdbell_exits: number;
  /** Accesses to memory without a translation. */
  pf_storage: number;
  /** Fetches from memory without a translation. */
  pf_instruc: number;
}

const EXIT_NUMBERS: Readonly<Record<string, number>> = Object.fromEntries(
  PPC_EXITS.map((name, number) => [name, number]),
);

/** The most cycles of computation at a time: less than clocks may move at once. */
const COMPUTATION: number = 2 ** 28;

/** On BookE with hypervisor state: registers that are the hypervisor's, though its guests name them. */
const HYPERVISOR_SPRS: readonly number[] = [SPRS.DEC, SPRS.TSR, SPRS.TCR];

/** Registers that problem state may read, and the fields of the page that KVM loads them from at each entry. */
const READABLE: Readonly<Record<PpcFamily, readonly (readonly [spr: number, field: MagicField])[]>> = {
  book3s: [[SPRS.USPRG3, "sprg3"]],
  booke: [[SPRS.SPRG4R, "sprg4"], [SPRS.SPRG5R, "sprg5"], [SPRS.SPRG6R, "sprg6"], [SPRS.SPRG7R, "sprg7"]],
};

/** What kvm_ppc_instr says of an emulation (enum emulation_result). */
const EMULATION_RESULTS: Readonly<Record<Emulated, number>> = { done: 0, fail: 2, again: 3 };

/** What kvm_booke_queue_irqprio says (arch/powerpc/kvm/booke.h). */
const IRQPRIO: Readonly<Record<PpcInterrupt, number>> = {
  DATA_STORAGE: 0,
  INST_STORAGE: 1,
  PROGRAM: 3,
  SYSCALL: 8,
  EXTERNAL: 16,
  DECREMENTER: 18,
};

/** A vCPU. */
export class PpcVcpu extends ArchVcpu<PpcCpu> {
  /** Its virtual machine. */
  declare readonly vm: PpcVm;
  /** Its host. */
  readonly host: PpcHost;
  /** Its registers and addresses. */
  readonly processor: PpcProcessor;
  /** Its interrupts. */
  readonly interrupts: PpcInterrupts;
  /** Its decrementer. */
  readonly decrementer: Decrementer;
  /** What KVM counts. */
  readonly stats: PpcStats = {
    sum_exits: 0,
    emulated_inst_exits: 0,
    syscall_exits: 0,
    ext_intr_exits: 0,
    gdbell_exits: 0,
    pf_storage: 0,
    pf_instruc: 0,
  };
  /** Whether interrupts of its guest begin in little-endian mode. */
  readonly interruptsLittle: boolean;
  /** The word of the last instruction that left guest mode. */
  lastInstruction = 0;
  /** Why it did. */
  programCause: ProgramCause = "illegal";
  /** KVM_HC_PPC_MAP_MAGIC_PAGE came without the flag: no page of the guest's kernel is no-execute any more. */
  disableKernelNx = false;
  #kicked = false;
  /** Cycles of computation that the clock is ahead by. */
  #computing = 0;
  /** Whether KVM_RUN is under way. */
  #inKvmRun = false;
  readonly #decoded = new Map<number, PpcInstruction | undefined>();
  readonly #timeBase = (): bigint => BigInt(this.clock);

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
    const value = BigInt.asUintN(this.processor.bits, msr);
    shared.set("msr", value);
    this.processor.takeMode(value);
    if ((value & BigInt(MSR_POW)) !== 0n && !this.interrupts.pending) {
      shared.set("msr", value & ~BigInt(MSR_POW));
      this.halt();
    }
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

  /** Has it look at its pending interrupts: wakes it, or makes it leave guest mode (kvm_vcpu_kick). */
  kick(): void {
    if (this.phase === "blocked") {
      this.wake();
      return;
    }
    this.#kicked = true;
    const { now } = this.engine;
    const left = Math.min(this.clock - now, this.#computing);
    if (left <= 0 || this === this.engine.running) return;
    this.#computing = 0;
    this.processor.setGpr(PPC_CTR, this.processor.gpr(PPC_CTR) + BigInt(left));
    this.engine.wake(this, now);
  }

  /** User space raises the external interrupt: until it lowers it, or for one delivery (KVM_INTERRUPT). */
  raise(how: "level" | "once" = "level"): void {
    this.interrupts.externalOnce = how === "once";
    this.interrupts.queue("EXTERNAL");
    this.kick();
  }

  /** User space lowers the external interrupt. */
  lower(): void {
    this.interrupts.dequeue("EXTERNAL");
  }

  /** A handler begins at the program counter. */
  beginHandler(fault?: MachineFault): void {
    this.enterHandler(fault);
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

  // Instructions.

  /** Fetches, decodes and executes the word at the program counter. */
  protected override instruction(): void {
    const { processor: p } = this;
    const word = p.fetch();
    if (word === undefined) {
      this.#hostMustHelp("INST_STORAGE", () => this.interrupts.instStorage());
      return;
    }
    this.lastInstruction = word;
    const instruction = this.#decode(word);
    if (instruction === undefined) this.#program("illegal");
    else if (isPrivilegedPpc(instruction)) this.#privileged(instruction);
    else if (!this.#work(instruction)) this.#execute(instruction);
  }

  #decode(word: number): PpcInstruction | undefined {
    if (this.#decoded.has(word)) return this.#decoded.get(word);
    const found = decodePpc(word);
    const instruction = found !== undefined && hasPpcInstruction(this.host.core, found.name)
      ? found
      : undefined;
    this.#decoded.set(word, instruction);
    return instruction;
  }

  #execute(instruction: PpcInstruction): void {
    this.charge(this.vm.cost.insn);
    switch (execute(this.processor, instruction, this.#timeBase)) {
      case "done":
        return;
      case "syscall":
        return this.#systemCall(instruction);
      case "trap":
        return this.#program("trap");
      case "illegal":
        return this.#program("illegal");
      case "data-fault":
        return this.#dataFault();
    }
  }

  /** `bdnz .` is computation: all rounds but the last at once. A kick gives back those that were not done by then. */
  #work(i: PpcInstruction): boolean {
    this.#computing = 0;
    if (i.name !== "bc" || i.BO !== BO_COUNT || i.BD !== 0 || i.AA === 1 || i.LK === 1) return false;
    const { processor: p } = this;
    const rounds = Math.min(Number(p.gpr(PPC_CTR)) - 1, COMPUTATION);
    if (rounds < 1) return false;
    p.setGpr(PPC_CTR, p.gpr(PPC_CTR) - BigInt(rounds));
    // In explored runs computation takes no time.
    if (this.engine.explores) return true;
    this.#computing = rounds;
    this.charge(rounds);
    return true;
  }

  #privileged(instruction: PpcInstruction): void {
    const { host } = this;
    if (host.problemState || this.processor.user) {
      this.#program("privileged");
    } else if (host.family === "booke" && isHypervisors(instruction)) {
      this.#leave("HV_PRIV");
    } else {
      // Registers are moved like others; a new mode is waited for.
      const moves = instruction.name === "mfspr" || instruction.name === "mtspr" ||
        instruction.name === "mfmsr";
      this.charge(moves ? this.vm.cost.insn : this.vm.cost.system);
      if (emulate(this, instruction) === "fail") this.#program("illegal");
    }
  }

  #program(cause: ProgramCause): void {
    this.programCause = cause;
    this.#hostMustHelp(
      "PROGRAM",
      () => this.interrupts.program(programCause(this, cause), this.faultOf("PROGRAM")),
    );
  }

  #systemCall(instruction: PpcInstruction): void {
    const { host } = this;
    const level = instruction.name === "sc" ? instruction.LEV : 0;
    if (host.problemState) this.#leave("SYSCALL");
    else if (level === 1) this.#leave(host.family === "booke" ? "HV_SYSCALL" : "SYSCALL");
    else this.interrupts.inject("SYSCALL");
  }

  #dataFault(): void {
    const { fault } = this.processor;
    const { address, store } = fault!;
    const booke = this.host.family === "booke";
    this.#hostMustHelp(booke ? "DTLB_MISS" : "DATA_STORAGE", () => {
      this.interrupts.dataStorage(address, storageCause(this, store), this.faultOf("DATA_STORAGE"));
    });
  }

  /** Leaves guest mode, where the guest's interrupts are the host's; else the guest gets its interrupt from hardware. */
  #hostMustHelp(exit: PpcExit, directly: () => void): void {
    if (this.host.problemState) {
      this.#leave(exit);
      return;
    }
    directly();
    if (this.interrupts.deliverable) this.interrupts.deliver();
  }

  #leave(exit: PpcExit): void {
    this.stats.sum_exits++;
    this.exit(EXIT_NUMBERS[exit]);
  }

  // The run loop.

  /** A kick leaves guest mode; what hardware held back begins. */
  protected override boundary(): boolean {
    if (this.#kicked) {
      this.#kicked = false;
      this.#leave("EXTERNAL");
      return true;
    }
    if (this.host.problemState || !this.interrupts.deliverable) return false;
    // What was held back may begin: BookE's hardware rings, Book3S' begins it.
    if (this.host.family === "booke") this.#leave("GUEST_DBELL");
    else this.interrupts.deliver();
    return true;
  }

  /** KVM handles an exit. */
  protected override handleExit(reason: number): void {
    handleExit(this, PPC_EXITS[reason]);
  }

  /** Interrupts begin; registers that problem state reads are loaded. */
  protected override beforeEntry(): boolean {
    this.#kicked = false;
    this.interrupts.deliver();
    const { readable, shared } = this.processor;
    for (const [spr, field] of READABLE[this.host.family]) readable.set(spr, shared.get(field));
    return true;
  }

  // Tracing.

  /** Emits kvm_book3s_reenter, where KVM_RUN goes on. */
  protected override traceEntry(): void {
    if (this.#inKvmRun && this.host.family === "book3s" && this.host.problemState) {
      this.trace(PPC_TP.kvm_book3s_reenter, 1, this.processor.context.pc);
    }
    this.#inKvmRun = true;
  }

  /** Emits kvm_exit. */
  protected override traceExit(): void {
    const { context, shared } = this.processor;
    const msr = shared.get("msr");
    this.trace(
      PPC_TP.kvm_exit,
      this.exitReason,
      context.pc,
      Number(BigInt.asUintN(32, msr)),
      Number(msr >> 32n),
      this.lastInstruction,
    );
  }

  /** Emits kvm_userspace_exit. */
  protected override traceUserspaceExit(reason: number): void {
    this.#inKvmRun = false;
    this.trace(PPC_TP.kvm_userspace_exit, reason);
  }

  /** Emits kvm_ppc_instr. */
  traceInstruction(pc: number, emulated: Emulated): void {
    this.trace(PPC_TP.kvm_ppc_instr, this.lastInstruction, pc, EMULATION_RESULTS[emulated]);
  }

  /** Emits kvm_booke_queue_irqprio. */
  traceQueued(interrupt: PpcInterrupt): void {
    if (this.host.family === "booke") this.trace(PPC_TP.kvm_booke_queue_irqprio, IRQPRIO[interrupt]);
  }
}

/** Whether an instruction of a BookE guest is the hypervisor's. */
function isHypervisors(i: PpcInstruction): boolean {
  if (i.name === "mfspr" || i.name === "mtspr") return HYPERVISOR_SPRS.includes(i.SPR);
  return i.name === "tlbsync";
}
