/**
 * What each operation invalidates, as far as the architecture requires and no farther: processors may drop more, which
 * hides the flushes that software forgets.
 *
 * On AMD the rules for linear mappings are read with the ASID for the VPID: what flushes, flushes the current ASID's
 * entries, and a global entry is global within its ASID (APM 2 15.16, 15.16.1). VMRUN and #VMEXIT flush nothing of
 * themselves. That AMD flushes also where CR0.PG is set and CR4.PSE is changed (15.16.1) is left out: Intel requires
 * neither. Paging-structure caches are not modelled (see tlb.ts), so that their part of each rule is left out.
 *
 * @module
 */

import { CR0_PG, CR3_NO_FLUSH_HIGH, CR3_PCID, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_SMEP } from "../../abi/mod.ts";
import { ANY, COMBINED, GUEST_PHYSICAL, LINEAR, type Scope } from "./tlb_entry.ts";
import type { Tlb, TlbTags } from "./tlb.ts";

/** One row: what an operation has to invalidate. */
export interface InvalidationRule {
  /** LINEAR, GUEST_PHYSICAL, COMBINED or several; 0 where nothing has to go. */
  readonly kinds: number;
  /** Entries of the current VPID or ASID, of the operand's, of VPID 0, of all but VPID 0, of all. */
  readonly vpid: "current" | "operand" | "zero" | "not zero" | "any";
  /** Entries of the current PCID, of the operand's, of PCID 0, of all. */
  readonly pcid: "current" | "operand" | "zero" | "any";
  /** Entries of the current EPT root, of the operand's, of all and none. */
  readonly root: "current" | "operand" | "any";
  /** Global entries: kept; dropped where the PCID matches, like others; dropped whatever their PCID. */
  readonly globals: "kept" | "dropped" | "any PCID";
  /**
   * Entries of the page that the operand lies in, as the guest's tables specify it, whatever pieces of it the TLB holds
   * (SDM 3A 4.10.4.1, footnote to INVLPG); those that translate the operand alone; of all pages.
   */
  readonly pages: "operand" | "address" | "all";
  /** The manual's section. */
  readonly source: string;
}

/** The operations that the table has. */
export type InvalidationName =
  | "MOV to CR0 that clears PG"
  | `MOV to CR3${"" | " with bit 63"}`
  | `MOV to CR4 that ${"changes PGE" | "clears PCIDE" | "changes PAE" | "sets SMEP"}`
  | `VM ${"entry" | "exit"} ${"with" | "without"} VPID`
  | `INVPCID type ${0 | 1 | 2 | 3}`
  | `INVVPID type ${0 | 1 | 2 | 3}`
  | `INVEPT type ${1 | 2}`
  | `EPT violation${"" | "'s linear address"}`
  | `TLB_CONTROL ${0 | 1 | 3 | 7}`
  | "INVLPG"
  | "INVLPGA"
  | "page fault"
  | "task switch"
  | "VMXON"
  | "VMXOFF"
  | "reset";

const ALL = LINEAR | COMBINED | GUEST_PHYSICAL;

/** What an operation of the paging architecture reaches at most: the current VPID, with or without EPT. */
const PAGING = {
  kinds: LINEAR | COMBINED,
  vpid: "current",
  pcid: "any",
  root: "any",
  globals: "dropped",
  pages: "all",
  source: "SDM 3A 4.10.4.1, 3C 29.4.3.1",
} as const;
const VPID = { ...PAGING, vpid: "operand", source: "SDM 3C 29.4.3.1" } as const;
const EPT = { ...VPID, kinds: COMBINED | GUEST_PHYSICAL, vpid: "any" } as const;
const NEED_NOT = { ...PAGING, kinds: 0, source: "SDM 3C 29.4.3.2" } as const;
const ASID = { ...VPID, kinds: ALL, source: "APM 2 15.16.1, table 15-9" } as const;

/** The table: one row an operation. */
// deno-fmt-ignore
export const INVALIDATIONS: Readonly<Record<InvalidationName, InvalidationRule>> = {
  "MOV to CR0 that clears PG":      { ...PAGING },
  "MOV to CR3":                     { ...PAGING, pcid: "operand", globals: "kept" },
  "MOV to CR3 with bit 63":         { ...PAGING, kinds: 0 },
  "MOV to CR4 that changes PGE":    { ...PAGING },
  "MOV to CR4 that clears PCIDE":   { ...PAGING },
  // The SDM excepts no global entries here, as it does for CR3. Those that another PCID made need not go.
  "MOV to CR4 that changes PAE":    { ...PAGING, pcid: "current" },
  "MOV to CR4 that sets SMEP":      { ...PAGING, pcid: "current" },
  "task switch":                    { ...PAGING, pcid: "zero", globals: "kept" },
  "INVLPG":                         { ...PAGING, pcid: "current", globals: "any PCID", pages: "operand" },
  "INVPCID type 0":                 { ...PAGING, pcid: "operand", globals: "kept", pages: "operand" },
  "INVPCID type 1":                 { ...PAGING, pcid: "operand", globals: "kept" },
  "INVPCID type 2":                 { ...PAGING },
  "INVPCID type 3":                 { ...PAGING, globals: "kept" },
  // A global entry counts as one of the current PCID, which it is used with: else the fault would recur, which the
  // SDM rules out.
  "page fault":                     { ...PAGING, pcid: "current", globals: "any PCID", pages: "address" },

  "VM entry without VPID":          { ...VPID, vpid: "zero" },
  "VM exit without VPID":           { ...VPID, vpid: "zero" },
  "VM entry with VPID":             { ...NEED_NOT },
  "VM exit with VPID":              { ...NEED_NOT },
  "VMXON":                          { ...NEED_NOT },
  "VMXOFF":                         { ...NEED_NOT },
  "INVVPID type 0":                 { ...VPID, pages: "address" },
  "INVVPID type 1":                 { ...VPID },
  "INVVPID type 2":                 { ...VPID, vpid: "not zero" },
  "INVVPID type 3":                 { ...VPID, globals: "kept" },
  "INVEPT type 1":                  { ...EPT, root: "operand" },
  "INVEPT type 2":                  { ...EPT },
  "EPT violation":                  { ...EPT, kinds: GUEST_PHYSICAL, root: "current", pages: "address" },
  // Global entries as for a page fault.
  "EPT violation's linear address": { ...EPT, kinds: COMBINED, vpid: "current", pcid: "current", root: "current",
                                      globals: "any PCID", pages: "address" },
  "reset":                          { ...EPT, kinds: ALL },

  "TLB_CONTROL 0":                  { ...ASID, kinds: 0 },
  "TLB_CONTROL 1":                  { ...ASID, vpid: "any" },
  "TLB_CONTROL 3":                  { ...ASID },
  // Not confirmed: that 7 reaches guest-physical entries, which are not global. After a change of nested tables the APM
  // has the host use 1 or 3.
  "TLB_CONTROL 7":                  { ...ASID, globals: "kept" },
  // A guest virtual page: no nested translation goes. Not confirmed: that global entries go, and those of all PCIDs,
  // neither of which the APM mentions; KVM counts on it for global ones (svm_flush_tlb_gva).
  "INVLPGA":                        { ...ASID, kinds: LINEAR, pages: "operand", source: "APM 2 15.16.2" },
};

/** An operation that is executed, with the operands that its rule names. */
export interface Invalidation {
  /** The row. */
  readonly operation: InvalidationName;
  /** VPID or ASID. */
  readonly vpid?: number;
  /** PCID. */
  readonly pcid?: number;
  /** Address of the EPT root: bits 51:12 of the EPTP. */
  readonly root?: number;
  /** Linear address; guest-physical for an EPT violation. */
  readonly address?: number;
}

/** What an operation invalidates on a processor whose accesses have these tags. Throws `TypeError` where an operand is missing. */
export function scopeOf(invalidation: Invalidation, current: TlbTags): Scope {
  return scopeBy(RULES.get(invalidation.operation)!, invalidation, current);
}

/** The table again: a lookup of a property among so many is a slow one. */
const RULES = new Map<string, InvalidationRule>(Object.entries(INVALIDATIONS));

function scopeBy(rule: InvalidationRule, invalidation: Invalidation, current: TlbTags): Scope {
  const { vpid, pcid, root, address } = invalidation;
  return {
    kinds: rule.kinds,
    vpid: rule.vpid === "current"
      ? current.vpid
      : rule.vpid === "operand"
      ? operand(vpid, "VPID or ASID", invalidation)
      : rule.vpid === "zero"
      ? 0
      : ANY,
    exceptVpid0: rule.vpid === "not zero",
    pcid: rule.pcid === "current"
      ? current.pcid
      : rule.pcid === "operand"
      ? operand(pcid, "PCID", invalidation)
      : rule.pcid === "zero"
      ? 0
      : ANY,
    root: rule.root === "current"
      ? current.root
      : rule.root === "operand"
      ? operand(root, "root", invalidation)
      : ANY,
    globals: rule.globals,
    address: rule.pages === "all" ? undefined : operand(address, "address", invalidation),
    piece: rule.pages === "address",
  };
}

/** Executes an operation on a TLB with the tags that it has now. Returns how many entries went. */
export function invalidate(tlb: Tlb, invalidation: Invalidation): number {
  const rule = RULES.get(invalidation.operation)!;
  return rule.kinds === 0 ? 0 : tlb.drop(scopeBy(rule, invalidation, tlb));
}

/** What MOV to CR0 invalidates. Only clearing PG does (SDM 3A 4.10.4.1). */
export function movToCr0(before: number, after: number): Invalidation | undefined {
  return (before & ~after & CR0_PG) !== 0 ? { operation: "MOV to CR0 that clears PG" } : undefined;
}

/** What MOV to CR3 invalidates: `high` and `low` are the halves of its operand. */
export function movToCr3(high: number, low: number, cr4: number): Invalidation {
  if ((cr4 & CR4_PCIDE) === 0) return { operation: "MOV to CR3", pcid: 0 };
  const keep = (high & CR3_NO_FLUSH_HIGH) !== 0;
  return { operation: keep ? "MOV to CR3 with bit 63" : "MOV to CR3", pcid: low & CR3_PCID };
}

/** What MOV to CR4 invalidates: the farthest-reaching of the rules that apply. */
export function movToCr4(before: number, after: number): Invalidation | undefined {
  const changed = before ^ after;
  if ((changed & CR4_PGE) !== 0) return { operation: "MOV to CR4 that changes PGE" };
  if ((before & ~after & CR4_PCIDE) !== 0) return { operation: "MOV to CR4 that clears PCIDE" };
  if ((changed & CR4_PAE) !== 0) return { operation: "MOV to CR4 that changes PAE" };
  if ((~before & after & CR4_SMEP) !== 0) return { operation: "MOV to CR4 that sets SMEP" };
  return undefined;
}

/** What an EPT violation invalidates; `linear` where the guest-physical address translates a linear one. */
export function eptViolation(guestPhysical: number, linear?: number): Invalidation[] {
  const own: Invalidation = { operation: "EPT violation", address: guestPhysical };
  return linear === undefined
    ? [own]
    : [own, { operation: "EPT violation's linear address", address: linear }];
}

function operand(value: number | undefined, name: string, { operation }: Invalidation): number {
  if (value === undefined) throw new TypeError(`Cannot execute ${operation}: its ${name} is missing`);
  return value;
}
