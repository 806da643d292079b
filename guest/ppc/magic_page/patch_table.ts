/**
 * Which words a guest rewrites once it has the magic page, and into what (arch/powerpc/kernel/kvm.c, kvm_check_ins).
 * Most become one load or store at a negative displacement from nothing: `ld r3,-4008(0)`. Those that must look at
 * more than one field become branches to a template.
 *
 * @module
 */

import {
  decodePpc,
  encodePpc,
  KVM_MAGIC_FEAT_MAS0_TO_SPRG7,
  KVM_MAGIC_FEAT_SR,
  KVM_MAGIC_PAGE,
  KVM_VCPU_ARCH_SHARED,
  magicDisplacement,
  type MagicField,
  magicOffset,
  PPC_NOP,
  type PpcCore,
  type SprName,
  SPRS,
} from "../../../abi/mod.ts";
import type { TemplateName } from "./templates.ts";

/** A privileged register and the field that stands for it. */
export interface PatchRow {
  /** The register. */
  readonly spr: SprName;
  /** The field. */
  readonly field: MagicField;
  /** Bytes behind the field's first one, where the register is the low half of a field of two. */
  readonly half?: 0 | 4;
  /** Which accesses are rewritten. */
  readonly access: "r" | "rw";
  /** Which kernels do it. */
  readonly kernels: "all" | "book3s" | "booke";
  /** The feature of the page that it needs; 0 for none. */
  readonly feature: number;
}

const LATE = KVM_MAGIC_FEAT_MAS0_TO_SPRG7;

function row(
  spr: SprName,
  field: MagicField,
  access: PatchRow["access"],
  kernels: PatchRow["kernels"],
  feature: number = 0,
  half?: 0 | 4,
): PatchRow {
  return half === undefined
    ? { spr, field, access, kernels, feature }
    : { spr, field, access, kernels, feature, half };
}

/** Every register that has a field. */
export const PATCH_ROWS: readonly PatchRow[] = [
  row("SPRG0", "sprg0", "rw", "all"),
  row("SPRG1", "sprg1", "rw", "all"),
  row("SPRG2", "sprg2", "rw", "all"),
  row("SPRG3", "sprg3", "rw", "all"),
  row("SRR0", "srr0", "rw", "all"),
  row("SRR1", "srr1", "rw", "all"),
  row("DAR", "dar", "rw", "book3s"),
  row("DEAR", "dar", "rw", "booke"),
  row("DSISR", "dsisr", "rw", "all"),
  row("MAS0", "mas0", "rw", "booke", LATE),
  row("MAS1", "mas1", "rw", "booke", LATE),
  row("MAS2", "mas2", "rw", "booke", LATE),
  row("MAS3", "mas7_3", "rw", "booke", LATE, 4),
  row("MAS4", "mas4", "rw", "booke", LATE),
  row("MAS6", "mas6", "rw", "booke", LATE),
  row("MAS7", "mas7_3", "rw", "booke", LATE, 0),
  row("SPRG4", "sprg4", "rw", "all", LATE),
  row("SPRG5", "sprg5", "rw", "all", LATE),
  row("SPRG6", "sprg6", "rw", "all", LATE),
  row("SPRG7", "sprg7", "rw", "all", LATE),
  row("SPRG4R", "sprg4", "r", "booke", LATE),
  row("SPRG5R", "sprg5", "r", "booke", LATE),
  row("SPRG6R", "sprg6", "r", "booke", LATE),
  row("SPRG7R", "sprg7", "r", "booke", LATE),
  row("ESR", "esr", "rw", "booke", LATE),
  row("PIR", "pir", "r", "book3s", LATE),
  row("BOOKE_PIR", "pir", "r", "booke", LATE),
];

/** What a guest's kernel is, and what its page has. */
export interface PatchEnvironment {
  /** The core that the kernel was built for. */
  readonly core: PpcCore;
  /** The features of the page: what KVM_HC_PPC_MAP_MAGIC_PAGE answered. */
  readonly features: number;
}

/** What becomes of a word. */
export type Patch =
  /** Another word. */
  | { readonly kind: "word"; readonly word: number }
  /** A branch to a copy of a template, made for these registers. */
  | {
    readonly kind: "template";
    readonly template: TemplateName;
    /** The register that the instruction reads. */
    readonly source: number;
    /** Its second one, of mtsrin. */
    readonly index: number;
  };

/** What becomes of a word; undefined where it stays. */
export function patchFor(word: number, { core, features }: PatchEnvironment): Patch | undefined {
  const i = decodePpc(word);
  if (i === undefined) return undefined;
  switch (i.name) {
    case "mfmsr":
      return { kind: "word", word: access(core, "msr", i.RT, true) };
    case "mfspr":
    case "mtspr": {
      const load = i.name === "mfspr";
      const found = PATCH_ROWS.find((row) =>
        SPRS[row.spr] === i.SPR && (load || row.access === "rw") && isFor(row.kernels, core)
      );
      if (found === undefined || (features & found.feature) !== found.feature) return undefined;
      const register = i.name === "mfspr" ? i.RT : i.RS;
      return { kind: "word", word: access(core, found.field, register, load, found.half) };
    }
    case "tlbsync":
      return { kind: "word", word: PPC_NOP };
    case "mtmsrd":
      return { kind: "template", template: i.L15 === 1 ? "mtmsrd" : "mtmsr", source: i.RS, index: 0 };
    case "mtmsr":
      return { kind: "template", template: "mtmsr", source: i.RS, index: 0 };
    case "wrtee":
      return core === "booke" ? { kind: "template", template: "wrtee", source: i.RS, index: 0 } : undefined;
    case "wrteei":
      if (core !== "booke") return undefined;
      return { kind: "template", template: i.E === 1 ? "wrteei 1" : "wrteei 0", source: 0, index: 0 };
    case "mtsrin":
      return core === "book3s-32" && (features & KVM_MAGIC_FEAT_SR) !== 0
        ? { kind: "template", template: "mtsrin", source: i.RS, index: i.RB }
        : undefined;
    default:
      return undefined;
  }
}

function isFor(kernels: PatchRow["kernels"], core: PpcCore): boolean {
  return kernels === "all" || (kernels === "booke") === (core === "booke");
}

/** The load or store of a field: all of a 64-bit one on a 64-bit core, else its low word. */
function access(core: PpcCore, field: MagicField, register: number, load: boolean, half?: 0 | 4): number {
  const bits = core === "book3s-64" ? 64 : 32;
  const { type } = KVM_VCPU_ARCH_SHARED.fields[field];
  const wide = half === undefined && type === "u64" && bits === 64;
  const D = half === undefined ? magicDisplacement(field, bits) : KVM_MAGIC_PAGE + magicOffset(field) + half;
  if (wide) {
    return load
      ? encodePpc("ld", { RT: register, DS: D, RA: 0 })
      : encodePpc("std", { RS: register, DS: D, RA: 0 });
  }
  return load ? encodePpc("lwz", { RT: register, D, RA: 0 }) : encodePpc("stw", { RS: register, D, RA: 0 });
}
