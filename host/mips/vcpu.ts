/**
 * A MIPS vCPU with the Virtualization Module: guest instructions, exits, and what KVM does about them
 * (arch/mips/kvm/{mips,vz,emulate}.c).
 *
 * @module
 */

import {
  type CallOutcome,
  decodeCall,
  disassembleInstruction,
  encodeResults,
  hex,
  highOf,
  lowOf,
  MIPS_CONVENTION,
  MIPS_CP0,
  MIPS_EBASE,
  MIPS_GPR,
  MIPS_HYPCALL,
  MIPS_SEGCTL2_RESET,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  MipsCpu,
  type MipsGpr,
  mipsRegisterAddress,
  unitsToBytes,
} from "../../abi/mod.ts";
import { ArchVcpu, type KvmSystemEvent } from "../arch/mod.ts";
import { NotModelled } from "../cpu/errors.ts";
import { branchOf, type BranchRegisters, floatingPointBranchOf } from "./branches.ts";
import { deliverException } from "./exceptions.ts";
import { executeMips } from "./execute.ts";
import { MIPS_HOSTS, mipsHypercallOutcome } from "./hypercall.ts";
import {
  MIPS_EXIT_GUEST_EXIT,
  MIPS_EXIT_HC,
  MIPS_EXIT_TLBL,
  MIPS_EXIT_TLBS,
  MIPS_TP,
} from "./tracepoints.ts";
import type { KvmRunHypercall } from "./userspace.ts";
import type { MipsVm } from "./vm.ts";

/** What the processor tells the host of an exit. */
interface Exit {
  /** The root's EPC: the instruction, or the branch whose delay slot it stands in. */
  readonly epc: number;
  /** The root's Cause.BD. */
  readonly bd: boolean;
  /** BadInstr. */
  readonly badInstr: number;
  /** BadInstrP: with BD, the branch. */
  readonly badInstrP: number;
  /** BadVAddr. */
  readonly badVAddr: bigint;
  /** What the access was for. */
  readonly access: MipsAccess;
}

/** What an access to memory is for. */
export type MipsAccess = "fetch" | "load" | "store";

/** A vCPU. */
export class MipsVcpu extends ArchVcpu<MipsCpu> {
  /** Its virtual machine. */
  declare readonly vm: MipsVm;
  /** While the program counter is at a delay slot: where it goes then. */
  branchTarget: number | undefined = undefined;
  /** The branch in front of that. */
  previousWord = 0;
  /** The general registers, for instructions: register 0 is 0. */
  readonly registers: BranchRegisters = {
    get: (number) => number === 0 ? 0n : this.context.register(number),
    set: (number, value) => {
      if (number !== 0) this.context.setRegister(number, value);
    },
  };
  #exit: Exit | undefined = undefined;
  #inKvmRun = false;
  #countBias = 0;

  /** A vCPU as kvmtool sets it up: at the entry, Status.ERL and EXL set. */
  constructor(vm: MipsVm, index: number) {
    super(vm, index, new MipsCpu(vm.mode));
    this.context.setSystem(MIPS_CP0.status, MIPS_STATUS_ERL | MIPS_STATUS_EXL);
    this.context.setSystem(MIPS_CP0.segCtl2, MIPS_SEGCTL2_RESET);
    this.context.setSystem(MIPS_CP0.ebase, mipsRegisterAddress(MIPS_EBASE));
  }

  // The processor.

  /** Executes the instruction at the program counter. */
  protected override instruction(): void {
    executeMips(this);
  }

  /** Count: it runs with the host's clock. */
  count(): number {
    const { countHz, clockKhz } = this.vm;
    const ticks = BigInt(this.clock) * BigInt(countHz) / (1000n * BigInt(clockKhz));
    return (Number(ticks & 0xffff_ffffn) + this.#countBias) >>> 0;
  }

  /** Sets Count. */
  setCount(value: number): void {
    this.#countBias = 0;
    this.#countBias = (value - this.count()) | 0;
  }

  /** HYPCALL: a guest exit with GExcCode 2. */
  leaveForHypercall(word: number): void {
    this.#leave(MIPS_EXIT_HC, { badInstr: word });
  }

  /** There is no memory slot where the guest fetches, loads or stores; without a host that is a bus error. */
  leaveForMemory(address: bigint, access: MipsAccess): void {
    if (this.vm.host === "none") return deliverException(this, access === "fetch" ? "IBE" : "DBE");
    this.#leave(access === "store" ? MIPS_EXIT_TLBS : MIPS_EXIT_TLBL, { badVAddr: address, access });
  }

  #leave(reason: number, { badInstr = 0, badVAddr = 0n, access = "fetch" }: Partial<Exit>): void {
    const { pc } = this.context;
    const bd = this.branchTarget !== undefined;
    this.#exit = {
      epc: bd ? pc - 4 : pc,
      bd,
      badInstr,
      badInstrP: bd ? this.previousWord : 0,
      badVAddr,
      access,
    };
    this.exit(reason);
  }

  // KVM.

  /** Counts an event of KVM's, where there is one. */
  override trace(event: number, a = 0, b = 0, c = 0, d = 0, e = 0): void {
    if (this.vm.host !== "none") super.trace(event, a, b, c, d, e);
  }

  /** kvm_enter where KVM_RUN begins, kvm_reenter where the kernel has handled the exit. */
  protected override traceEntry(): void {
    this.#tracePc(this.#inKvmRun ? MIPS_TP.kvm_reenter : MIPS_TP.kvm_enter);
    this.#inKvmRun = true;
  }

  /** kvm_exit, of a guest exit twice. */
  protected override traceExit(): void {
    const { epc } = this.#exit!;
    // The hardware's exception first, then what a guest exit is about (kvm_trap_vz_handle_guest_exit).
    if (this.exitReason >= 64) this.#traceKvmExit(MIPS_EXIT_GUEST_EXIT, epc);
    this.#traceKvmExit(this.exitReason, epc);
  }

  #traceKvmExit(reason: number, pc: number): void {
    const address = mipsRegisterAddress(pc);
    this.trace(MIPS_TP.kvm_exit, reason, lowOf(address), highOf(address));
  }

  #tracePc(event: number): void {
    const address = mipsRegisterAddress(this.context.pc);
    this.trace(event, lowOf(address), highOf(address));
  }

  /** kvm_out, then kvm_userspace_exit. */
  protected override traceUserspaceExit(reason: number): void {
    this.#tracePc(MIPS_TP.kvm_out);
    this.trace(MIPS_TP.kvm_userspace_exit, reason);
    this.#inKvmRun = false;
  }

  /** kvm_mips_handle_exit. */
  protected override handleExit(reason: number): void {
    const exit = this.#exit!;
    if (reason === MIPS_EXIT_HC) this.#handleHypercall(exit);
    else this.#handleMemory(exit);
  }

  /** A code fetch does not count as MMIO (kvm_trap_vz_handle_tlb_ld_miss), and this user space has no devices. */
  #handleMemory({ access, badVAddr }: Exit): void {
    if (access === "fetch") return this.#giveUp("KVM_EXIT_INTERNAL_ERROR", `a fetch from ${hex(badVAddr)}`);
    throw new NotModelled(`a MIPS guest's MMIO ${access} at ${hex(badVAddr)}`, "arch/mips/kvm/emulate.c");
  }

  /** The program counter behind the exiting instruction (update_pc); undefined where KVM cannot tell. */
  #updatedPc({ epc, bd, badInstrP }: Exit): number | undefined {
    if (!bd) return epc + 4;
    const branch = branchOf(badInstrP, epc, this.registers);
    if (branch !== undefined || !MIPS_HOSTS[this.vm.host].followsConditions) return branch?.target;
    return floatingPointBranchOf(badInstrP, epc)?.target;
  }

  /** kvm_trap_vz_handle_hc, and what follows where the code is KVM's. */
  #handleHypercall(exit: Exit): void {
    const { vm } = this;
    this.charge(vm.cost.hypercall);
    const next = this.#updatedPc(exit);
    const bytes = unitsToBytes([exit.badInstr], 4, "big");
    const { code } = disassembleInstruction(MIPS_HYPCALL, "big", bytes)!;
    this.context.pc = next ?? exit.epc;
    this.branchTarget = undefined;
    if (next === undefined) {
      const branch = exit.badInstrP.toString(16);
      return this.#giveUp("KVM_EXIT_INTERNAL_ERROR", `HYPCALL in the delay slot of ${branch}`);
    }
    if (MIPS_HOSTS[vm.host].looksAtCode && code !== 0) {
      this.context.pc = exit.epc;
      return this.#giveUp("KVM_EXIT_INTERNAL_ERROR", `HYPCALL with code ${code}`);
    }
    const read = (name: MipsGpr) => this.context.gpr(name);
    const call = decodeCall(MIPS_CONVENTION, read, this.context.mode);
    this.#callEnds(mipsHypercallOutcome(vm.host, call, vm));
  }

  /** A call has come to something. */
  #callEnds(outcome: CallOutcome): void {
    this.lastOutcome = outcome;
    if (outcome.kind === "registers") {
      this.#setResults(outcome.values);
    } else if (outcome.kind === "user-space") {
      if (outcome.exit === "KVM_EXIT_HYPERCALL") this.#exitHypercall();
      else if (outcome.exit === "KVM_EXIT_SYSTEM_EVENT") this.#exitSystemEvent("KVM_SYSTEM_EVENT_SHUTDOWN");
      else this.#giveUp(outcome.exit as "KVM_EXIT_SHUTDOWN");
    }
  }

  #exitSystemEvent(type: KvmSystemEvent): void {
    this.vm.systemEvent = type;
    this.#giveUp("KVM_EXIT_SYSTEM_EVENT", type);
  }

  /** KVM_RUN comes back with the call; when user space runs the vCPU again, its result is there. */
  #exitHypercall(): void {
    const { userspaceArguments, presetResult } = MIPS_HOSTS[this.vm.host];
    const { a0, v0 } = MIPS_GPR;
    const { context } = this;
    const args = Array.from({ length: userspaceArguments }, (_, i) => context.register(a0 + i));
    const run: KvmRunHypercall = { nr: context.register(v0), args, ret: presetResult };
    this.toUserspace("KVM_EXIT_HYPERCALL");
    const problem = this.vm.userspace.hypercall(run);
    if (problem !== undefined) this.vm.shutDown(problem);
    else if (run.ret !== undefined) this.#setResults([run.ret]);
  }

  #setResults(values: readonly bigint[]): void {
    // Hosts store a long: what a 32-bit guest finds is sign-extended where the host's value is.
    for (const [name, value] of Object.entries(encodeResults(MIPS_CONVENTION, values, "wide"))) {
      this.context.setRegister(MIPS_GPR[name as MipsGpr], value);
    }
  }

  #giveUp(
    exit: "KVM_EXIT_INTERNAL_ERROR" | "KVM_EXIT_SHUTDOWN" | "KVM_EXIT_SYSTEM_EVENT",
    why?: string,
  ): void {
    this.toUserspace(exit);
    this.vm.shutDown(why === undefined ? exit : `${exit}: ${why}`);
  }
}
