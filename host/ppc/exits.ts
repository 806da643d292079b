/**
 * Exits: why a vCPU left guest mode, and what KVM does about it (arch/powerpc/kvm/book3s_pr.c, kvmppc_handle_exit_pr;
 * booke.c, kvmppc_handle_exit).
 *
 * @module
 */

import {
  decodePpc,
  DSISR_ISSTORE,
  DSISR_NOHPTE,
  ESR_PIL,
  ESR_PPR,
  ESR_PTR,
  ESR_ST,
  EV_STATUS,
  hex,
  KVM_SC_MAGIC_R0,
  MSR_LE,
  PPC_SC,
  PPC_SC1,
  type PpcInstruction,
  SRR1_PROGILL,
  SRR1_PROGPRIV,
  SRR1_PROGTRAP,
} from "../../abi/mod.ts";
import { byteSwapped } from "../arch/mod.ts";
import { emulate, type Emulated } from "./emulate.ts";
import { hypercall } from "./hypercall.ts";
import type { PpcVcpu } from "./vcpu.ts";

/** The exits of this host, by the names that both families' kvm_exit prints; an exit's number is its place. */
export const PPC_EXITS = [
  "PROGRAM",
  "SYSCALL",
  "EXTERNAL",
  "DECREMENTER",
  "DATA_STORAGE",
  "INST_STORAGE",
  "DTLB_MISS",
  "HV_SYSCALL",
  "HV_PRIV",
  "GUEST_DBELL",
  "ITLB_MISS",
  "H_EMUL_ASSIST",
] as const;

/** The name of an exit. */
export type PpcExit = (typeof PPC_EXITS)[number];

/** Why an instruction is a program exit. */
export type ProgramCause = "illegal" | "privileged" | "trap";

const SRR1_CAUSES: Readonly<Record<ProgramCause, number>> = {
  illegal: SRR1_PROGILL,
  privileged: SRR1_PROGPRIV,
  trap: SRR1_PROGTRAP,
};
const ESR_CAUSES: Readonly<Record<ProgramCause, number>> = {
  illegal: ESR_PIL,
  privileged: ESR_PPR,
  trap: ESR_PTR,
};

/** What hardware tells of a program interrupt's cause. */
export function programCause(vcpu: PpcVcpu, cause: ProgramCause): number {
  return (vcpu.host.family === "book3s" ? SRR1_CAUSES : ESR_CAUSES)[cause];
}

/** What hardware tells of an access without a translation, in DSISR or ESR. */
export function storageCause(vcpu: PpcVcpu, store: boolean): number {
  if (vcpu.host.family === "booke") return store ? ESR_ST : 0;
  return DSISR_NOHPTE | (store ? DSISR_ISSTORE : 0);
}

/** Handles an exit. */
export function handleExit(vcpu: PpcVcpu, exit: PpcExit): void {
  switch (exit) {
    case "PROGRAM":
    case "H_EMUL_ASSIST":
      return programExit(vcpu);
    case "HV_PRIV":
      return emulationExit(vcpu);
    case "SYSCALL":
      return systemCall(vcpu);
    case "HV_SYSCALL":
      if (vcpu.userMode) vcpu.interrupts.program(ESR_PPR, vcpu.faultOf("PROGRAM"));
      else hypercall(vcpu);
      return;
    case "DATA_STORAGE":
      vcpu.stats.pf_storage++;
      return dataStorage(vcpu);
    case "DTLB_MISS":
      // The guest's own handler of misses, which would find nothing, is left out: its kernel has the storage interrupt.
      vcpu.stats[vcpu.processor.fault!.magic ? "dtlb_virt_miss_exits" : "dtlb_real_miss_exits"]++;
      return dataStorage(vcpu);
    case "INST_STORAGE":
      vcpu.stats.pf_instruc++;
      if (!mapsMagicPage(vcpu)) vcpu.interrupts.instStorage();
      return;
    case "ITLB_MISS":
      vcpu.stats.itlb_real_miss_exits++;
      return vcpu.interrupts.instStorage();
    case "EXTERNAL":
      // The host merely wanted the CPU; what is pending is delivered at the entry.
      vcpu.stats.ext_intr_exits++;
      return;
    case "DECREMENTER":
      // So did its timer, which may have been the guest's.
      vcpu.stats.dec_exits++;
      return;
    case "GUEST_DBELL":
      vcpu.stats.gdbell_exits++;
      return;
  }
}

function programExit(vcpu: PpcVcpu): void {
  // A user program's problem is its kernel's, and so is what remains for a kernel with a state of its own.
  if (!vcpu.userMode && vcpu.host.problemState) return emulationExit(vcpu);
  vcpu.interrupts.program(programCause(vcpu, vcpu.programCause), vcpu.faultOf("PROGRAM"));
}

/** kvmppc_exit_pr_progint, and BookE's emulation_exit. */
function emulationExit(vcpu: PpcVcpu): void {
  vcpu.charge(vcpu.vm.cost.emulate);
  const { pc } = vcpu.processor.context;
  const emulated = emulateInstruction(vcpu);
  vcpu.traceInstruction(tracedPc(vcpu, emulated), emulated);
  if (vcpu.host.family === "book3s" || emulated === "done") vcpu.stats.emulated_inst_exits++;
  vcpu.emulated = emulated !== "fail";
  if (emulated === "user-space") paprCall(vcpu);
  if (emulated !== "fail") return;
  if (vcpu.host.family === "book3s") {
    vcpu.interrupts.program(programCause(vcpu, vcpu.programCause), vcpu.faultOf("PROGRAM"));
    return;
  }
  // BookE tells user space too, which gives up.
  vcpu.interrupts.program(ESR_PIL, vcpu.faultOf("PROGRAM"));
  vcpu.toUserspace("KVM_EXIT_UNKNOWN");
  vcpu.vm.shutDown(`it cannot emulate ${hex(vcpu.lastInstruction)} at ${hex(pc)}`);
}

/** Instructions that KVM does not step over: they lead elsewhere. */
const ELSEWHERE: ReadonlySet<string | undefined> = new Set(["rfi", "rfid", "tw", "twi", "tdi"]);

/**
 * What kvm_ppc_instr shows of the program counter: KVM has not yet stepped over the instruction, but where it led to or
 * which interrupt has begun is done.
 */
function tracedPc({ processor: p, lastInstruction }: PpcVcpu, emulated: Emulated): number {
  const { pc } = p.context;
  const steps = (emulated === "done" || emulated === "user-space") &&
    !ELSEWHERE.has(decodePpc(lastInstruction)?.name);
  return steps ? p.wrapped(pc - 4) : pc;
}

function emulateInstruction(vcpu: PpcVcpu): Emulated {
  const { processor: p, lastInstruction: word } = vcpu;
  if (isReversedSystemCall(vcpu, word)) {
    // An early little-endian Linux that wrote the stub without exchanging its bytes: its calls always fail. The
    // emulation leaves the instruction behind, and its caller does so once more: the word that follows is skipped.
    p.setGpr(3, BigInt(EV_STATUS.EV_UNIMPLEMENTED));
    p.advance(8);
    return "done";
  }
  if (isFakeSystemCall(word) && vcpu.host.papr) {
    p.advance(4);
    return "user-space";
  }
  const instruction = decodePpc(word);
  if (instruction === undefined) return "fail";
  if (!isTrap(vcpu, instruction)) return emulate(vcpu, instruction);
  // On BookE, what ESR holds of an earlier interrupt stays (emulate.c, kvmppc_emulate_instruction).
  const esr = vcpu.host.family === "booke" ? Number(p.shared.get("esr")) : 0;
  vcpu.interrupts.program(esr | programCause(vcpu, "trap"), vcpu.faultOf("PROGRAM"));
  return "done";
}

/** Whether KVM takes an instruction for a trap: Book3S' does tdi, even where the processor has no such word. */
function isTrap(vcpu: PpcVcpu, { name }: PpcInstruction): boolean {
  return name === "tw" || name === "twi" || (name === "tdi" && vcpu.host.family === "book3s");
}

function isReversedSystemCall(vcpu: PpcVcpu, word: number): boolean {
  if (vcpu.host.family !== "book3s" || (vcpu.processor.shared.get("msr") & BigInt(MSR_LE)) === 0n) {
    return false;
  }
  return byteSwapped(BigInt(word), 4) === BigInt(PPC_SC);
}

/** The word that guests put in place of `sc 1` where that does not trap (book3s_emulate.c, OP_31_XOP_FAKE_SC1). */
function isFakeSystemCall(word: number): boolean {
  return (word & 0xfc00_07fe) >>> 0 === 0x7c00_0268;
}

/** PAPR: no such call (asm/hvcall.h). */
const H_FUNCTION = -2n;

/** A call of PAPR's, which user space does not know: none of them is modelled. */
function paprCall(vcpu: PpcVcpu): void {
  vcpu.toUserspace("KVM_EXIT_PAPR_HCALL");
  vcpu.processor.setGpr(3, H_FUNCTION);
}

/**
 * A system call: PAPR's where it is `sc 1` of a guest's kernel and user space has enabled that; KVM's hypercall where a
 * kernel made it with the magic in r0; else the guest's own. r3 and r4 may hold OSI's magic (KVM_CAP_PPC_OSI), which
 * user space never enables here (book3s_pr.c, kvmppc_handle_exit_pr).
 */
function systemCall(vcpu: PpcVcpu): void {
  const { processor: p, host } = vcpu;
  if (!host.problemState) {
    // `sc 1` of a guest of KVM-HV.
    if (vcpu.userMode) {
      // Its hash guests may run KVM-PR themselves, whose guest's call this may be: their kernels get it as a system call
      // (book3s_hv_rmhandlers.S, sc_1_fast_return). This host's POWER8 has no guests of radix translation, which get a
      // program interrupt with SRR1_PROGPRIV (book3s_hv.c, kvmppc_handle_exit_hv). SRR0 is behind the instruction.
      vcpu.interrupts.inject("SYSCALL");
      return;
    }
    paprCall(vcpu);
    return;
  }
  if (host.papr && vcpu.lastInstruction === PPC_SC1 && !vcpu.userMode) {
    paprCall(vcpu);
    return;
  }
  if (host.family === "booke") vcpu.stats.syscall_exits++;
  if (!vcpu.userMode && p.low(0) === KVM_SC_MAGIC_R0) {
    hypercall(vcpu);
    return;
  }
  if (host.family === "book3s") vcpu.stats.syscall_exits++;
  vcpu.interrupts.queue("SYSCALL");
}

function dataStorage(vcpu: PpcVcpu): void {
  const { address, store } = vcpu.processor.fault!;
  if (mapsMagicPage(vcpu)) return;
  vcpu.interrupts.dataStorage(address, storageCause(vcpu, store), vcpu.faultOf("DATA_STORAGE"));
}

/** Makes the translation of the magic page, where its lack was why: the access is made again, and meets the page. */
function mapsMagicPage(vcpu: PpcVcpu): boolean {
  const { processor: p } = vcpu;
  if (!p.fault!.magic) return false;
  vcpu.charge(vcpu.vm.cost.tdpFault);
  p.magicMapped = true;
  return true;
}
