/**
 * Special-purpose registers as KVM emulates them (arch/powerpc/kvm/emulate.c, book3s_emulate.c, booke_emulate.c,
 * e500_emulate.c): fields of the shared page, the decrementer, vectors, and those that KVM does not know.
 *
 * @module
 */

import { type MagicField, sprIsPrivileged, SPRS, SRR1_PROGILL, SRR1_PROGPRIV } from "../../abi/mod.ts";
import type { Emulated } from "./emulate.ts";
import type { PpcVcpu } from "./vcpu.ts";

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
/**
 * BookE's SPRG4 to SPRG7. They are written by these numbers, and read by others that do not trap; e500mc itself reads
 * them by these too, as its KVM does (bookehv_interrupts.S).
 */
const BOOKE_SPRGS: ReadonlyMap<number, MagicField> = new Map<number, MagicField>([
  [SPRS.SPRG4, "sprg4"],
  [SPRS.SPRG5, "sprg5"],
  [SPRS.SPRG6, "sprg6"],
  [SPRS.SPRG7, "sprg7"],
]);

/** Numbers that a kernel of Book3S cannot read from, where there is no register: reads of others do nothing. */
export const ILLEGAL_READS: readonly number[] = [0, 4, 5, 6];
/** The same of writes. */
export const ILLEGAL_WRITES: readonly number[] = [0];

/** Whether a register is one of BookE's that say where vectors are. */
export function isIvor(spr: number): boolean {
  return spr >= SPRS.IVOR0 && spr <= SPRS.IVOR15;
}

function fieldOf(vcpu: PpcVcpu, spr: number): MagicField | undefined {
  const own = vcpu.host.family === "book3s" ? BOOK3S_FIELDS : BOOKE_FIELDS;
  return FIELDS.get(spr) ?? own.get(spr);
}

/** Reads a register; what became of it instead where it has no value, "done" where nothing did. */
export function readSpr(vcpu: PpcVcpu, spr: number): bigint | Emulated {
  const { shared } = vcpu.processor;
  const { problemState } = vcpu.host;
  const book3s = vcpu.host.family === "book3s";
  const field = fieldOf(vcpu, spr) ?? (book3s || problemState ? undefined : BOOKE_SPRGS.get(spr));
  if (field !== undefined) return shared.get(field);
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
  if (book3s && spr === SPRS.HIOR && problemState) return BigInt(vcpu.interrupts.hior);
  if (book3s) return unknownSpr(vcpu, spr, ILLEGAL_READS) ?? (problemState ? 0n : "done");
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
      return isIvor(spr) ? BigInt(vcpu.interrupts.ivor[spr - SPRS.IVOR0]) : "fail";
  }
}

/** Writes a register. */
export function writeSpr(vcpu: PpcVcpu, spr: number, value: bigint): Emulated {
  const { shared } = vcpu.processor;
  const low = Number(BigInt.asUintN(32, value));
  const book3s = vcpu.host.family === "book3s";
  const field = fieldOf(vcpu, spr) ?? (book3s ? undefined : BOOKE_SPRGS.get(spr));
  if (field !== undefined) {
    shared.set(field, value);
    if (!vcpu.host.problemState) vcpu.loadReadable(); // It is the processor's own register.
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
  if (book3s && spr === SPRS.HIOR && vcpu.host.problemState) {
    vcpu.interrupts.hior = Number(value);
    return "done";
  }
  if (book3s) return unknownSpr(vcpu, spr, ILLEGAL_WRITES) ?? "done";
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
  if (!isIvor(spr)) return "fail";
  vcpu.interrupts.ivor[spr - SPRS.IVOR0] = low;
  return "done";
}

/**
 * A register that KVM does not know on Book3S. The guest's kernel reads 0 from it (nothing on POWER8 itself) and writes
 * nothing; its user programs, and kernels too for some numbers, get a program interrupt. Those that KVM-PR only keeps
 * for its guests (HID0, SDR1, BATs) are left out, and count as unknown.
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
