/**
 * `exitless features`: every way to call a host, every hypercall and every paravirtual feature, by architecture. All of it
 * comes from the tables that guests and hosts are built on.
 *
 * @module
 */

import {
  assembleInstruction,
  type CallOutcome,
  type Convention,
  DIAGNOSES,
  type DiagSpec,
  evStatusName,
  hex,
  HYPERCALLS,
  type HypercallSpec,
  KVM_ERRORS,
  KVM_FEATURE_MAGIC_PAGE,
  KVM_FEATURES,
  KVM_HINTS,
  KVM_MAGIC_FEAT_MAS0_TO_SPRG7,
  KVM_MAGIC_FEAT_SR,
  type KvmFeatureSpec,
  MAGIC_PAGE_FLAG_NOT_MAPPED_NX,
  MIPS_CONVENTION,
  PPC_HYPERCALLS,
  type PpcHypercallName,
  type PpcHypercallSpec,
  ppcHypercallToken,
  S390_CONVENTION,
  S390_HYPERCALLS,
  type S390HypercallSpec,
  X86_CONVENTION,
} from "../abi/mod.ts";
import { MIPS_HOSTS, PPC_HOSTS } from "../host/mod.ts";

/** The architectures, in the order in which they are shown. */
export const ARCHITECTURES = ["x86", "s390", "ppc", "mips"] as const;
/** An architecture. */
export type ArchName = (typeof ARCHITECTURES)[number];

/** A way to call the host. */
export interface CallingConvention {
  /** The hosts that are called so; none where all are. */
  readonly hosts: readonly string[];
  /** The instructions: as an assembler spells them, and their bytes by byte order, in hexadecimal. */
  readonly instructions: readonly {
    readonly text: string;
    readonly bytes: Readonly<Record<string, string>>;
  }[];
  /** The register of the call's number. */
  readonly number: string;
  /** Those of the arguments. */
  readonly arguments: readonly string[];
  /** Those of the results. */
  readonly results: readonly string[];
  /** What counts of them. */
  readonly widths: string;
  /** How the first result tells of a failure. */
  readonly status: string;
  /** What a number gets that no call has. */
  readonly unknown: string;
  /** What a call from user mode gets. */
  readonly fromUserMode: string;
  /** Who moves the program counter on. */
  readonly advance: string;
  /** How a guest finds its host. */
  readonly discovery: string;
}

/** A call to the host. */
export interface CallFacts {
  /** What its number register holds, or which function of the instruction it is. */
  readonly number: string;
  /** Its name. */
  readonly name: string;
  /** Its arguments, by name. */
  readonly arguments: readonly string[];
  /** What it answers. */
  readonly result: string;
  /** Who has it, or what offers it. */
  readonly offered: string;
  /** Its purpose. */
  readonly meaning: string;
}

/** A feature that a host tells its guest of. */
export interface FeatureFacts {
  /** Where it stands: a register of an answer. */
  readonly where: string;
  /** Its bit. */
  readonly bit: number;
  /** Its name. */
  readonly name: string;
  /** Who sets it. */
  readonly offered: string;
  /** What a guest may do. */
  readonly meaning: string;
}

/** What an architecture has. */
export interface ArchFeatures {
  /** The architecture. */
  readonly arch: ArchName;
  /** Its conventions: one for each kind of host. */
  readonly conventions: readonly CallingConvention[];
  /** Its hypercalls. */
  readonly calls: readonly CallFacts[];
  /** What else the instruction of its hypercalls does. */
  readonly functions: readonly CallFacts[];
  /** Its features; none where hosts tell of none. */
  readonly features: readonly FeatureFacts[];
}

/** What an architecture has. */
export function featuresOf(arch: ArchName): ArchFeatures {
  return TABLES[arch]();
}

const TABLES: Readonly<Record<ArchName, () => ArchFeatures>> = {
  x86: () => ({
    arch: "x86",
    conventions: [facts(X86_CONVENTION)],
    calls: kvmCalls(
      "x86",
      ({ feature }, name) => feature === null ? HOSTS[name] ?? "every host" : `feature ${feature}`,
    ),
    functions: [],
    features: [
      ...Object.values(KVM_FEATURES).map((spec) => kvmFeature("EAX of CPUID 0x40000001", spec)),
      ...Object.values(KVM_HINTS).map((spec) => kvmFeature("EDX of CPUID 0x40000001, hints", spec)),
    ],
  }),
  s390: () => ({
    arch: "s390",
    conventions: [facts(S390_CONVENTION)],
    calls: Object.entries<S390HypercallSpec>(S390_HYPERCALLS).map(([name, spec]) => ({
      number: String(spec.nr),
      name,
      arguments: spec.args.map((arg) => arg.name),
      result: spec.result,
      offered: SERVED_BY[spec.servedBy],
      meaning: spec.meaning,
    })),
    functions: Object.entries<DiagSpec>(DIAGNOSES).map(([name, spec]) => ({
      number: hex(spec.code),
      name,
      arguments: [spec.r1, spec.r3].filter((operand) => operand !== null).map((operand) => operand.name),
      result: spec.result,
      offered: SERVED_BY[spec.servedBy],
      meaning: spec.meaning,
    })),
    features: [],
  }),
  ppc: () => ({
    arch: "ppc",
    conventions: [...Map.groupBy(Object.entries(PPC_HOSTS), ([, { convention }]) => convention)].flatMap(
      ([convention, hosts]) => convention === undefined ? [] : facts(convention, hosts.map(([name]) => name)),
    ),
    calls: Object.entries<PpcHypercallSpec>(PPC_HYPERCALLS).map(([name, spec]) => ({
      number: hex(ppcHypercallToken(name as PpcHypercallName)),
      name,
      arguments: spec.args,
      result: ["status", ...spec.results].join(", "),
      offered: spec.kvm ? "KVM" : "other hypervisors; KVM answers EV_UNIMPLEMENTED",
      meaning: spec.meaning,
    })),
    functions: [],
    features: [
      {
        where: "r4 of KVM_HC_FEATURES",
        bit: KVM_FEATURE_MAGIC_PAGE,
        name: "MAGIC_PAGE",
        offered: "KVM-PR, and KVM on e500v2",
        meaning: "the guest may map the page of its supervisor registers",
      },
      {
        where: "r4 of KVM_HC_PPC_MAP_MAGIC_PAGE",
        bit: Math.log2(KVM_MAGIC_FEAT_SR),
        name: "SR",
        offered: "KVM",
        meaning: "the page has the segment registers",
      },
      {
        where: "r4 of KVM_HC_PPC_MAP_MAGIC_PAGE",
        bit: Math.log2(KVM_MAGIC_FEAT_MAS0_TO_SPRG7),
        name: "MAS0_TO_SPRG7",
        offered: "KVM",
        meaning: "the page has MAS0 to SPRG7",
      },
      {
        where: "flags for KVM_HC_PPC_MAP_MAGIC_PAGE, in r4",
        bit: Math.log2(MAGIC_PAGE_FLAG_NOT_MAPPED_NX),
        name: "NOT_MAPPED_NX",
        offered: "the guest",
        meaning: "the guest itself keeps trampolines executable",
      },
    ],
  }),
  mips: () => ({
    arch: "mips",
    conventions: [facts(MIPS_CONVENTION)],
    calls: kvmCalls("mips", (_, name) => {
      const hosts = Object.entries(MIPS_HOSTS).filter(([, { calls }]) => name in calls).map(([host]) => host);
      return `hosts ${hosts.join(", ")}; mainline has none`;
    }),
    functions: [],
    features: [],
  }),
};

/** Who has calls of x86 that no feature tells of, where not every host does. */
const HOSTS: Readonly<Record<string, string>> = {
  // arch/x86/kvm/x86.c has it under CONFIG_X86_64. A guest of 32 bits may call such a host.
  KVM_HC_CLOCK_PAIRING: "64-bit hosts since v4.11",
};

const SERVED_BY: Readonly<Record<DiagSpec["servedBy"] | S390HypercallSpec["servedBy"], string>> = {
  kernel: "KVM",
  both: "KVM where it can, else user space",
  "user space": "user space",
  legacy: "user space of s390-virtio times",
};

function kvmCalls(
  arch: "x86" | "mips",
  offered: (spec: HypercallSpec, name: string) => string,
): CallFacts[] {
  const all: [string, HypercallSpec][] = Object.entries(HYPERCALLS);
  return all.filter(([, spec]) => spec.arch.includes(arch)).map(([name, spec]) => ({
    number: String(spec.nr),
    name,
    arguments: spec.args.map((arg) => arg.name),
    result: spec.result,
    offered: offered(spec, name),
    meaning: spec.meaning,
  }));
}

const OFFERED: Readonly<Record<KvmFeatureSpec["offered"], string>> = {
  kvm: "KVM",
  steal: "KVM with scheduler statistics",
  "user-space": "user space",
  no: "nobody",
};

function kvmFeature(where: string, { bit, name, offered, meaning }: KvmFeatureSpec): FeatureFacts {
  return { where, bit, name, offered: OFFERED[offered], meaning };
}

const STATUS: Readonly<Record<Convention["errors"]["status"], string>> = {
  "negative-kvm-error": "below 0 a negated KVM_E*",
  "value-or-negative-errno": "below 0 a negated errno, else the call's own value",
  "ev-status": "0, or EV_* above it; -1 from a stub that was not patched",
};

const ADVANCE: Readonly<Record<Convention["advance"], string>> = {
  hardware: "hardware has already gone on behind the instruction",
  host: "the host skips the instruction",
  "host-with-delay-slot":
    "the host skips the instruction, or follows the branch in whose delay slot it stands",
};

function facts(convention: Convention, hosts: readonly string[] = []): CallingConvention {
  const { widths, errors } = convention;
  const orders = convention.byteOrder === "guest" ? ["big", "little"] as const : [convention.byteOrder];
  const narrow = { u64: "whole registers", u32: "their low halves", s32: "sign-extended low halves" };
  return {
    hosts,
    instructions: convention.instructions.map((format) => ({
      text: format.text,
      bytes: Object.fromEntries(
        orders.map((order) => [order, spaced(assembleInstruction(format, order), format.unitBytes)]),
      ),
    })),
    number: convention.number,
    arguments: convention.arguments,
    results: convention.results,
    widths: [
      "whole registers",
      ...widths.narrowMode === null ? [] : [`${widths.narrowMode}: ${narrow[widths.arguments.narrow]}`],
      ...widths.number.wide === "u64" ? [] : ["of the number always the low half"],
    ].join("; "),
    status: STATUS[errors.status],
    unknown: outcomeText(convention, errors.unknown),
    fromUserMode: outcomeText(convention, errors.fromUserMode),
    advance: ADVANCE[convention.advance],
    discovery: convention.discovery,
  };
}

/** Bytes in hexadecimal: those of a word together, those of a string of bytes apart. */
export function spaced(bytes: Readonly<Uint8Array>, unitBytes: number): string {
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"));
  const units = Array.from(
    { length: digits.length / unitBytes },
    (_, index) => digits.slice(index * unitBytes, (index + 1) * unitBytes).join(""),
  );
  return units.join(" ");
}

/** What becomes of a call, in words. */
export function outcomeText(convention: Convention, outcome: CallOutcome): string {
  switch (outcome.kind) {
    case "registers": {
      if (outcome.values.length === 0) return "returns; no register changes";
      return outcome.values.map((value, index) =>
        `${convention.results[index]} = ${value}${index === 0 ? errorName(convention, value) : ""}`
      ).join(", ");
    }
    case "exception":
      return `${outcome.name} (${hex(outcome.code)})`;
    case "user-space":
      return outcome.exit;
  }
}

function errorName(convention: Convention, value: bigint): string {
  const { status } = convention.errors;
  if (status === "ev-status") return ` (${evStatusName(value) ?? "no status"})`;
  if (status !== "negative-kvm-error" || value >= 0n) return "";
  const found = Object.entries(KVM_ERRORS).find(([, error]) => BigInt(-error) === value);
  return found === undefined ? "" : ` (-${found[0]})`;
}
