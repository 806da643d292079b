/**
 * How KVM emulates a privileged instruction that left guest mode (arch/powerpc/kvm/emulate.c, book3s_emulate.c,
 * booke_emulate.c, e500_emulate.c). Hosts whose guests have a privileged state of their own execute the same
 * instructions in hardware, with the same effect.
 *
 * @module
 */

import {
  MSR_DR,
  MSR_EE,
  MSR_HV,
  MSR_IR,
  MSR_LE,
  MSR_ME,
  MSR_PMM,
  MSR_PR,
  MSR_RI,
  MSR_UCLE,
  type PpcFamily,
  type PpcInstruction,
  type PpcMnemonic,
} from "../../abi/mod.ts";
import type { PpcProcessor } from "./processor.ts";
import { readSpr, writeSpr } from "./sprs.ts";
import type { PpcVcpu } from "./vcpu.ts";

/** What became of an instruction. */
export type Emulated =
  /** It was emulated; the program counter is where the guest goes on. */
  | "done"
  /** The guest has got an interrupt instead. */
  | "again"
  /** It is a call that user space finishes; the program counter is where the guest goes on. */
  | "user-space"
  /** KVM does not know it. */
  | "fail";

/** What KVM of the other family does not know. Of what its processors lack, KVM-PR knows more than they do. */
const FOREIGN: Readonly<Record<PpcFamily, ReadonlySet<PpcMnemonic>>> = {
  book3s: new Set<PpcMnemonic>(["wrtee", "wrteei"]),
  booke: new Set<PpcMnemonic>(["mtmsrd", "rfid", "mtsr", "mtsrin", "mfsr", "mfsrin"]),
};

/** Emulates a privileged instruction. */
export function emulate(vcpu: PpcVcpu, i: PpcInstruction): Emulated {
  const { processor: p } = vcpu;
  if (FOREIGN[vcpu.host.family].has(i.name)) return "fail";
  switch (i.name) {
    case "mfspr": {
      const value = readSpr(vcpu, i.SPR);
      if (typeof value === "bigint") p.setGpr(i.RT, value);
      else if (value !== "done") return value;
      break;
    }
    case "mtspr": {
      const outcome = writeSpr(vcpu, i.SPR, p.gpr(i.RS));
      if (outcome !== "done") return outcome;
      break;
    }
    case "mfmsr":
      p.setGpr(i.RT, p.shared.get("msr"));
      break;
    case "mtmsr":
      p.advance(4);
      setMsr(vcpu, p.gpr(i.RS), KEPT.mtmsr);
      return "done";
    case "mtmsrd": {
      p.advance(4);
      if (i.L15 === 0) {
        setMsr(vcpu, p.gpr(i.RS), KEPT.mtmsrd);
      } else {
        const safe = BigInt(MSR_EE | MSR_RI);
        p.shared.set("msr", (p.shared.get("msr") & ~safe) | (p.gpr(i.RS) & safe));
      }
      return "done";
    }
    case "wrtee":
      setEe(vcpu, p.gpr(i.RS));
      break;
    case "wrteei":
      setEe(vcpu, BigInt(i.E * MSR_EE));
      break;
    case "mtsr":
      setSegment(p, i.SR, i.RS);
      break;
    case "mtsrin":
      setSegment(p, p.low(i.RB) >>> 28, i.RS);
      break;
    case "mfsr":
      segment(p, i.SR, i.RT);
      break;
    case "mfsrin":
      segment(p, p.low(i.RB) >>> 28, i.RT);
      break;
    case "tlbsync":
      break;
    case "rfi":
    case "rfid":
      setMsr(vcpu, p.shared.get("srr1"), KEPT.rfid);
      p.context.pc = p.codeAddress(p.shared.get("srr0"));
      vcpu.code.settle(); // The handler has ended, and an interrupt may begin before the next instruction.
      return "done";
    default:
      return "fail";
  }
  p.advance(4);
  return "done";
}

/** Bits that keep their value on e500mc when its guest's kernel writes the MSR: KVM protects them by MSRP (e500mc.c). */
const PROTECTED = BigInt(MSR_UCLE | MSR_PMM);
/** The same on a server's processor, by instruction. */
const KEPT = {
  rfid: MSR_HV | BigInt(MSR_ME),
  mtmsrd: MSR_HV | BigInt(MSR_ME | MSR_LE),
  mtmsr: 0xffff_ffff_0000_0000n | BigInt(MSR_ME | MSR_LE),
} as const;

/**
 * Sets the MSR. A server's processor keeps some bits, and has problem state with translation and interrupts on alone
 * (Power ISA 2.07, III-S: mtmsr, mtmsrd, rfid). Where kernels run in problem state, KVM takes the value as it is.
 */
function setMsr(vcpu: PpcVcpu, value: bigint, kept: bigint): void {
  const { family, problemState } = vcpu.host;
  if (problemState) return vcpu.setMsr(value);
  const keeps = family === "booke" ? PROTECTED : kept;
  const msr = (vcpu.processor.shared.get("msr") & keeps) | (value & ~keeps);
  const programs = family === "book3s" && (msr & BigInt(MSR_PR)) !== 0n;
  vcpu.setMsr(programs ? msr | BigInt(MSR_EE | MSR_IR | MSR_DR) : msr);
}

/**
 * A guest of 64 bits has no segment registers. What it writes becomes an entry of its SLB, and what it reads leaves the
 * register as it was (book3s_64_mmu.c, kvmppc_mmu_book3s_64_init).
 */
function setSegment(p: PpcProcessor, segment: number, RS: number): void {
  if (p.core === "book3s-32") p.shared.set("sr", p.gpr(RS), segment);
}

function segment(p: PpcProcessor, segment: number, RT: number): void {
  if (p.core === "book3s-32") p.setGpr(RT, p.shared.get("sr", segment));
}

function setEe(vcpu: PpcVcpu, value: bigint): void {
  const { shared } = vcpu.processor;
  shared.set("msr", (shared.get("msr") & ~BigInt(MSR_EE)) | (value & BigInt(MSR_EE)));
}
