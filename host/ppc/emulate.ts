/**
 * How KVM emulates a privileged instruction that left guest mode (arch/powerpc/kvm/emulate.c, book3s_emulate.c,
 * booke_emulate.c, e500_emulate.c). Hosts whose guests have a privileged state of their own execute the same
 * instructions in hardware, with the same effect.
 *
 * @module
 */

import {
  type MagicField,
  MSR_DR,
  MSR_EE,
  MSR_HV,
  MSR_IR,
  MSR_LE,
  MSR_ME,
  MSR_PR,
  MSR_RI,
  type PpcFamily,
  type PpcInstruction,
  type PpcMnemonic,
  sprIsPrivileged,
  SPRS,
  SRR1_PROGILL,
  SRR1_PROGPRIV,
} from "../../abi/mod.ts";
import type { PpcProcessor } from "./processor.ts";
import type { PpcVcpu } from "./vcpu.ts";

/** What became of an instruction. */
export type Emulated =
  /** It was emulated; the program counter is where the guest goes on. */
  | "done"
  /** The guest has got an interrupt instead. */
  | "again"
  /** User space has finished it; the program counter is where the guest goes on. */
  | "user-space"
  /** KVM does not know it. */
  | "fail";

/** Registers that are fields of the shared page, and nothing more. */
const FIELDS: ReadonlyMap<number, MagicField> = new Map<number, MagicField>([
  [SPRS.SRR0, "srr0"],
  [SPRS.SRR1, "srr1"],
  [SPRS.SPRG0, "sprg0"],
  [SPRS.SPRG1, "sprg1"],
  [SPRS.SPRG2, "sprg2"],
  [SPRS.SPRG3, "sprg3"],
]);
const BOOK3S_FIELDS: ReadonlyMap<number, MagicField> = new Map<number, MagicField>([
  [SPRS.DAR, "dar"],
  [SPRS.DSISR, "dsisr"],
]);
const BOOKE_FIELDS: ReadonlyMap<number, MagicField> = new Map<number, MagicField>([
  [SPRS.DEAR, "dar"],
  [SPRS.ESR, "esr"],
  [SPRS.MAS0, "mas0"],
  [SPRS.MAS1, "mas1"],
  [SPRS.MAS2, "mas2"],
  [SPRS.MAS4, "mas4"],
  [SPRS.MAS6, "mas6"],
]);
/** BookE's SPRG4 to SPRG7 are written by these numbers, and read by others that do not trap. */
const BOOKE_WRITTEN: ReadonlyMap<number, MagicField> = new Map<number, MagicField>([
  [SPRS.SPRG4, "sprg4"],
  [SPRS.SPRG5, "sprg5"],
  [SPRS.SPRG6, "sprg6"],
  [SPRS.SPRG7, "sprg7"],
]);
const IVORS: readonly number[] = [SPRS.IVOR2, SPRS.IVOR3, SPRS.IVOR4, SPRS.IVOR6, SPRS.IVOR8, SPRS.IVOR10];

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
      if (typeof value !== "bigint") return value;
      p.setGpr(i.RT, value);
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

/** Bits that keep their value on a server's processor when its kernel writes the MSR. */
const KEPT = {
  rfid: MSR_HV | BigInt(MSR_ME),
  mtmsrd: MSR_HV | BigInt(MSR_ME | MSR_LE),
  mtmsr: 0xffff_ffff_0000_0000n | BigInt(MSR_ME | MSR_LE),
} as const;

/**
 * Sets the MSR. A server's processor keeps some bits, and has problem state with translation and interrupts on alone
 * (Power ISA 2.07, III-S: mtmsr, mtmsrd, rfid). KVM-PR takes the value as it is, and other processors do.
 */
function setMsr(vcpu: PpcVcpu, value: bigint, kept: bigint): void {
  const { core, problemState } = vcpu.host;
  if (problemState || core !== "book3s-64") return vcpu.setMsr(value);
  const msr = (vcpu.processor.shared.get("msr") & kept) | (value & ~kept);
  vcpu.setMsr((msr & BigInt(MSR_PR)) === 0n ? msr : msr | BigInt(MSR_EE | MSR_IR | MSR_DR));
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

function fieldOf(vcpu: PpcVcpu, spr: number): MagicField | undefined {
  const own = vcpu.host.family === "book3s" ? BOOK3S_FIELDS : BOOKE_FIELDS;
  return FIELDS.get(spr) ?? own.get(spr);
}

function readSpr(vcpu: PpcVcpu, spr: number): bigint | Emulated {
  const { shared } = vcpu.processor;
  const field = fieldOf(vcpu, spr);
  if (field !== undefined) return shared.get(field);
  const book3s = vcpu.host.family === "book3s";
  switch (spr) {
    case SPRS.PVR:
      return BigInt(vcpu.host.pvr);
    case SPRS.DEC:
      return BigInt(vcpu.decrementer.value);
    case book3s ? SPRS.PIR : SPRS.BOOKE_PIR:
      // KVM does not read it from the page, which on Book3S it never fills in.
      return BigInt(vcpu.index);
    case SPRS.TBWL: // The halves are exchanged there.
      return BigInt(vcpu.clock) >> 32n;
    case SPRS.TBWU:
      return BigInt(vcpu.clock);
  }
  if (book3s) return unknownSpr(vcpu, spr, [0, 4, 5, 6]) ?? 0n;
  switch (spr) {
    case SPRS.MAS3:
      return BigInt.asUintN(32, shared.get("mas7_3"));
    case SPRS.MAS7:
      return shared.get("mas7_3") >> 32n;
    case SPRS.TSR:
      return BigInt(vcpu.decrementer.tsr);
    case SPRS.TCR:
      return BigInt(vcpu.decrementer.tcr);
    case SPRS.IVPR:
      return BigInt(vcpu.interrupts.ivpr);
    default:
      return IVORS.includes(spr) ? BigInt(vcpu.interrupts.ivor[spr - 0x190]) : "fail";
  }
}

function writeSpr(vcpu: PpcVcpu, spr: number, value: bigint): Emulated {
  const { shared } = vcpu.processor;
  const low = Number(BigInt.asUintN(32, value));
  const book3s = vcpu.host.family === "book3s";
  const field = fieldOf(vcpu, spr) ?? (book3s ? undefined : BOOKE_WRITTEN.get(spr));
  if (field !== undefined) {
    shared.set(field, value);
    return "done";
  }
  switch (spr) {
    case SPRS.DEC:
      vcpu.decrementer.write(low);
      return "done";
    case book3s ? SPRS.PIR : SPRS.BOOKE_PIR:
    case SPRS.TBWL:
    case SPRS.TBWU:
      return "done"; // KVM ignores them: the time base is the host's.
  }
  if (book3s) return unknownSpr(vcpu, spr, [0]) ?? "done";
  const whole = shared.get("mas7_3");
  switch (spr) {
    case SPRS.MAS3:
      shared.set("mas7_3", (whole & ~0xffff_ffffn) | BigInt(low));
      return "done";
    case SPRS.MAS7:
      shared.set("mas7_3", (whole & 0xffff_ffffn) | (BigInt(low) << 32n));
      return "done";
    case SPRS.TSR:
      vcpu.decrementer.clearStatus(low);
      return "done";
    case SPRS.TCR:
      vcpu.decrementer.setControl(low);
      return "done";
    case SPRS.IVPR:
      vcpu.interrupts.ivpr = low;
      return "done";
  }
  if (!IVORS.includes(spr)) return "fail";
  vcpu.interrupts.ivor[spr - 0x190] = low;
  return "done";
}

/**
 * A register that KVM does not know on Book3S. The guest's kernel reads 0 from it and writes nothing; its user
 * programs, and kernels too for some numbers, get a program interrupt.
 */
function unknownSpr(vcpu: PpcVcpu, spr: number, illegal: readonly number[]): "again" | undefined {
  const user = vcpu.userMode;
  if (sprIsPrivileged(spr)) {
    if (!user) return undefined;
    vcpu.interrupts.program(SRR1_PROGPRIV, vcpu.faultOf("PROGRAM"));
  } else {
    if (!user && !illegal.includes(spr)) return undefined;
    vcpu.interrupts.program(SRR1_PROGILL, vcpu.faultOf("PROGRAM"));
  }
  return "again";
}
