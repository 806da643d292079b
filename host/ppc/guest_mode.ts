/**
 * Guest mode: a vCPU fetches words from guest memory, decodes them and executes them, up to one that its host must
 * see.
 *
 * @module
 */

import {
  BO_COUNT,
  decodePpc,
  hasPpcInstruction,
  isPrivilegedPpc,
  PPC_CTR,
  type PpcFamily,
  type PpcInstruction,
  SPRS,
} from "../../abi/mod.ts";
import { emulate } from "./emulate.ts";
import { execute } from "./execute.ts";
import { type PpcExit, type ProgramCause, programCause, storageCause } from "./exits.ts";
import { ILLEGAL_READS, ILLEGAL_WRITES, isIvor } from "./sprs.ts";
import type { PpcVcpu } from "./vcpu.ts";

/** The most cycles of computation at a time: less than clocks may move at once. */
const COMPUTATION: number = 2 ** 28;

/** On BookE with hypervisor state: registers that are the hypervisor's, though its guests name them. */
const HYPERVISOR_SPRS: readonly number[] = [
  SPRS.DEC,
  SPRS.TSR,
  SPRS.TCR,
  SPRS.TBWL,
  SPRS.TBWU,
  SPRS.IVPR,
];

/** The part of a vCPU that runs its guest. */
export class PpcGuestMode {
  readonly #vcpu: PpcVcpu;
  readonly #decoded = new Map<number, PpcInstruction | undefined>();
  readonly #timeBase = (): bigint => BigInt(this.#vcpu.clock);
  /** Cycles of computation that the clock is ahead by. */
  #ahead = 0;

  /** That of `vcpu`. */
  constructor(vcpu: PpcVcpu) {
    this.#vcpu = vcpu;
  }

  /** Executes the word at the program counter. */
  instruction(): void {
    this.#ahead = 0;
    const { processor: p, interrupts, host } = this.#vcpu;
    const word = p.fetch();
    if (word === undefined) {
      const exit = host.family === "booke" ? "ITLB_MISS" : "INST_STORAGE";
      this.#interrupt(exit, () => interrupts.instStorage());
      return;
    }
    this.#vcpu.lastInstruction = word;
    const instruction = this.#decode(word);
    if (instruction === undefined) this.#program("illegal");
    else if (isPrivilegedPpc(instruction)) this.#privileged(instruction);
    else if (!this.#compute(instruction)) this.#execute(instruction);
  }

  #decode(word: number): PpcInstruction | undefined {
    if (this.#decoded.has(word)) return this.#decoded.get(word);
    const found = decodePpc(word);
    const known = found !== undefined && hasPpcInstruction(this.#vcpu.host.core, found.name);
    this.#decoded.set(word, known ? found : undefined);
    return known ? found : undefined;
  }

  #execute(instruction: PpcInstruction): void {
    const { vm, processor } = this.#vcpu;
    this.#vcpu.charge(vm.cost.insn);
    switch (execute(processor, instruction, this.#timeBase)) {
      case "done":
        return;
      case "syscall":
        return this.#systemCall(instruction);
      case "trap":
        return this.#program("trap");
      case "illegal":
        if (this.#ignores(instruction)) return processor.advance(4);
        return this.#program("illegal");
      case "data-fault":
        return this.#dataFault();
    }
  }

  /** `bdnz .` is computation: all rounds but the last are done at once. */
  #compute(i: PpcInstruction): boolean {
    if (i.name !== "bc" || i.BO !== BO_COUNT || i.BD !== 0 || i.AA === 1 || i.LK === 1) return false;
    const { processor: p, engine } = this.#vcpu;
    const count = p.gpr(PPC_CTR);
    const rounds = Math.min(Number(BigInt.asUintN(p.sf ? 64 : 32, count)) - 1, COMPUTATION);
    if (rounds < 1) return false;
    p.setGpr(PPC_CTR, count - BigInt(rounds));
    if (engine.explores) return true; // It takes no time there.
    this.#ahead = rounds;
    this.#vcpu.charge(rounds);
    return true;
  }

  /** Takes a computation back to `now`, where somebody wants to come between. false where none is under way. */
  takeBack(now: number): boolean {
    const { clock, processor: p } = this.#vcpu;
    const left = Math.min(clock - now, this.#ahead);
    if (left <= 0) return false;
    this.#ahead = 0;
    p.setGpr(PPC_CTR, p.gpr(PPC_CTR) + BigInt(left));
    return true;
  }

  #privileged(instruction: PpcInstruction): void {
    const { host, processor, vm } = this.#vcpu;
    const hypervisors = host.hypervisor !== undefined && isHypervisors(host.family, instruction);
    if (host.problemState || processor.user || (hypervisors && host.family === "book3s")) {
      this.#program("privileged");
    } else if (hypervisors) {
      this.#vcpu.leave("HV_PRIV");
    } else {
      this.#vcpu.charge(isMove(instruction) ? vm.cost.insn : vm.cost.system);
      if (emulate(this.#vcpu, instruction) === "fail") this.#program("illegal");
    }
  }

  /**
   * Whether nothing happens: a kernel on POWER8 itself names a register that there is not (QEMU, target/ppc/translate.c,
   * gen_op_mfspr and gen_mtspr).
   */
  #ignores(i: PpcInstruction): boolean {
    const { host, processor } = this.#vcpu;
    if (host.core !== "book3s-64" || host.problemState || processor.user) return false;
    return (i.name === "mfspr" && !ILLEGAL_READS.includes(i.SPR)) ||
      (i.name === "mtspr" && !ILLEGAL_WRITES.includes(i.SPR));
  }

  #program(cause: ProgramCause): void {
    const vcpu = this.#vcpu;
    vcpu.programCause = cause;
    const { core, hypervisor } = vcpu.host;
    if (cause === "illegal" && core === "book3s-64" && hypervisor !== undefined) {
      // POWER8 asks the hypervisor, which may know better. Where there is none it asks the kernel, by this interrupt of
      // its own (0xe40): that is left out, and the kernel has a program interrupt.
      vcpu.leave("H_EMUL_ASSIST");
      return;
    }
    this.#interrupt(
      "PROGRAM",
      () => vcpu.interrupts.program(programCause(vcpu, cause), vcpu.faultOf("PROGRAM")),
    );
  }

  #systemCall(instruction: PpcInstruction): void {
    const { host, interrupts } = this.#vcpu;
    // Only the last bit of LEV counts, the others are reserved (QEMU, target/ppc/translate.c, gen_sc).
    const level = instruction.name === "sc" ? instruction.LEV & 1 : 0;
    if (host.problemState) this.#vcpu.leave("SYSCALL");
    else if (level === 1 && host.hypervisor !== undefined) {
      this.#vcpu.leave(host.family === "booke" ? "HV_SYSCALL" : "SYSCALL");
    } else interrupts.inject("SYSCALL");
  }

  #dataFault(): void {
    const vcpu = this.#vcpu;
    const { address, store } = vcpu.processor.fault!;
    this.#interrupt(vcpu.host.family === "booke" ? "DTLB_MISS" : "DATA_STORAGE", () => {
      vcpu.interrupts.dataStorage(address, storageCause(vcpu, store), vcpu.faultOf("DATA_STORAGE"));
    });
  }

  /**
   * In problem state every interrupt is the host's, and on BookE all that are not told in EPCR: KVM tells of data
   * storage alone (e500mc.c), and an access without translation misses in the TLB. Else hardware gives it to the guest.
   */
  #interrupt(exit: PpcExit, toGuest: () => void): void {
    const { host, interrupts } = this.#vcpu;
    if (host.problemState || host.family === "booke") {
      this.#vcpu.leave(exit);
      return;
    }
    toGuest();
    if (interrupts.deliverable) interrupts.deliver();
  }
}

/** Whether an instruction is the hypervisor's: on POWER8 only tlbsync (QEMU, target/ppc/translate.c, gen_tlbsync). */
function isHypervisors(family: PpcFamily, i: PpcInstruction): boolean {
  if (i.name !== "mfspr" && i.name !== "mtspr") return i.name === "tlbsync";
  return family === "booke" && (HYPERVISOR_SPRS.includes(i.SPR) || isIvor(i.SPR));
}

/** Whether an instruction only moves a register; the others change the mode, and are waited for. */
function isMove({ name }: PpcInstruction): boolean {
  return name === "mfspr" || name === "mtspr" || name === "mfmsr";
}
