/**
 * The magic page: the supervisor registers that a PowerPC guest and KVM share
 * (arch/powerpc/include/uapi/asm/kvm_para.h, struct kvm_vcpu_arch_shared). The page has the byte order of the guest,
 * and the host takes it over when the page is mapped.
 *
 * @module
 */

import { type FieldSpec, type Layout, layout } from "../layout.ts";

/** Where Linux maps the page, in both senses of the word: effective and real address -4096. */
export const KVM_MAGIC_PAGE: number = -4096;
/** Bytes of the page. */
export const MAGIC_PAGE_BYTES = 4096;

/** The name of a field of the page. */
export type MagicField =
  | "scratch1"
  | "scratch2"
  | "scratch3"
  | "critical"
  | "sprg0"
  | "sprg1"
  | "sprg2"
  | "sprg3"
  | "srr0"
  | "srr1"
  | "dar"
  | "msr"
  | "dsisr"
  | "int_pending"
  | "sr"
  | "mas0"
  | "mas1"
  | "mas7_3"
  | "mas2"
  | "mas4"
  | "mas6"
  | "esr"
  | "pir"
  | "sprg4"
  | "sprg5"
  | "sprg6"
  | "sprg7";

const FIELDS: Readonly<Record<MagicField, FieldSpec>> = {
  scratch1: "u64",
  scratch2: "u64",
  scratch3: "u64",
  critical: "u64",
  sprg0: "u64",
  sprg1: "u64",
  sprg2: "u64",
  sprg3: "u64",
  srr0: "u64",
  srr1: "u64",
  dar: "u64",
  msr: "u64",
  dsisr: "u32",
  int_pending: "u32",
  sr: ["u32", 16],
  mas0: "u32",
  mas1: "u32",
  mas7_3: "u64",
  mas2: "u64",
  mas4: "u32",
  mas6: "u32",
  esr: "u32",
  pir: "u32",
  sprg4: "u64",
  sprg5: "u64",
  sprg6: "u64",
  sprg7: "u64",
};

/** struct kvm_vcpu_arch_shared, as a big-endian guest sees it: 240 bytes. */
export const KVM_VCPU_ARCH_SHARED: Layout<MagicField> = layout("kvm_vcpu_arch_shared", FIELDS, {
  align: 8,
  endian: "big",
});

/** The same for a little-endian guest. */
export const KVM_VCPU_ARCH_SHARED_LE: Layout<MagicField> = layout("kvm_vcpu_arch_shared", FIELDS, {
  align: 8,
});

/**
 * The fields that a host of Book3S exchanges the bytes of when it finds the guest in the other byte order
 * (kvmppc_swab_shared).
 */
export const SWABBED_FIELDS: readonly MagicField[] = [
  "sprg0",
  "sprg1",
  "sprg2",
  "sprg3",
  "srr0",
  "srr1",
  "dar",
  "msr",
  "dsisr",
  "int_pending",
  "sr",
];

/** Offset of a field. */
export function magicOffset(field: MagicField): number {
  return KVM_VCPU_ARCH_SHARED.fields[field].offset;
}

/**
 * The displacement from register 0 with which an instruction reaches a field: 64 bits of a u64 field where the guest
 * has 64 bits, else its low word, which stands behind the high one in a big-endian guest.
 */
export function magicDisplacement(field: MagicField, bits: 32 | 64): number {
  const { offset, type } = KVM_VCPU_ARCH_SHARED.fields[field];
  return KVM_MAGIC_PAGE + offset + (type === "u64" && bits === 32 ? 4 : 0);
}
