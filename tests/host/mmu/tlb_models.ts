/**
 * The obvious models that the TLB is held to: a list of entries, and each operation's rule as the manuals put it.
 *
 * @module
 */

import fc from "fast-check";
import {
  type CachedTranslation,
  COMBINED,
  GUEST_PHYSICAL,
  type Invalidation,
  type InvalidationName,
  INVALIDATIONS,
  LINEAR,
  NO_EPT,
  type Tlb,
  type TlbGeometry,
  type TlbTags,
  type TlbTranslation,
} from "../../../host/mmu/mod.ts";

/** One way for all: nothing is evicted while there are few entries. */
export const ROOMY: TlbGeometry = {
  linear: { small: { sets: 1, ways: 99 }, large: { sets: 1, ways: 99 }, huge: { sets: 1, ways: 99 } },
  guestPhysical: { small: { sets: 1, ways: 99 }, large: { sets: 1, ways: 99 }, huge: { sets: 1, ways: 99 } },
};

/** Much is evicted, and sets are told by bits of the page number. */
export const TINY: TlbGeometry = {
  linear: { small: { sets: 4, ways: 2 }, large: { sets: 2, ways: 1 }, huge: { sets: 2, ways: 1 } },
  guestPhysical: { small: { sets: 2, ways: 1 }, large: { sets: 2, ways: 2 }, huge: { sets: 1, ways: 1 } },
};

/** A translation of a page of 4 KiB that allows everything. */
export function translation(linear: number, fields: Partial<TlbTranslation> = {}): TlbTranslation {
  const rights = { writable: true, user: true, executable: true, global: false, dirty: true };
  return { linear, physical: 0x10_0000, shift: 12, ...rights, ...fields };
}

/** Whether two addresses lie in the same page. */
export function samePage(a: number, b: number, shift: number): boolean {
  return Math.floor(a / 2 ** shift) === Math.floor(b / 2 ** shift);
}

/** Whether an access with these tags may use an entry (SDM 3C 29.4.2). */
export function usable(entry: CachedTranslation, tags: TlbTags): boolean {
  if (entry.kind === GUEST_PHYSICAL) return entry.root === tags.root;
  return entry.root === tags.root && entry.vpid === tags.vpid && (entry.global || entry.pcid === tags.pcid);
}

/** What the manuals require, operation by operation, in their own order of words. */
export function mustGo(entry: CachedTranslation, invalidation: Invalidation, now: TlbTags): boolean {
  const { operation, vpid, pcid, root, address } = invalidation;
  const { global } = entry;
  const linearOrCombined = entry.kind === LINEAR || entry.kind === COMBINED;
  const guestPhysicalOrCombined = entry.kind === GUEST_PHYSICAL || entry.kind === COMBINED;
  const own = linearOrCombined && entry.vpid === now.vpid;
  // INVLPG and its like reach every piece of a page that the guest's tables specify (SDM 3A 4.10.4.1, footnote); the
  // others what would translate the very address.
  const inPage = () => samePage(entry.linear, address!, entry.span);
  const atAddress = () => samePage(entry.linear, address!, entry.shift);
  switch (operation) {
    case "MOV to CR0 that clears PG":
    case "MOV to CR4 that changes PGE":
    case "MOV to CR4 that clears PCIDE":
    case "INVPCID type 2":
      return own;
    case "MOV to CR3":
    case "INVPCID type 1":
      return own && entry.pcid === pcid && !global;
    case "task switch":
      return own && entry.pcid === 0 && !global;
    case "MOV to CR4 that changes PAE":
    case "MOV to CR4 that sets SMEP":
      return own && entry.pcid === now.pcid;
    case "INVLPG":
      return own && inPage() && (global || entry.pcid === now.pcid);
    case "page fault":
      return own && atAddress() && (global || entry.pcid === now.pcid);
    case "INVPCID type 0":
      return own && inPage() && entry.pcid === pcid && !global;
    case "INVPCID type 3":
      return own && !global;
    case "VM entry without VPID":
    case "VM exit without VPID":
      return linearOrCombined && entry.vpid === 0;
    case "INVVPID type 0":
      return linearOrCombined && entry.vpid === vpid && atAddress();
    case "INVVPID type 1":
      return linearOrCombined && entry.vpid === vpid;
    case "INVVPID type 2":
      return linearOrCombined && entry.vpid !== 0;
    case "INVVPID type 3":
      return linearOrCombined && entry.vpid === vpid && !global;
    case "INVEPT type 1":
      return guestPhysicalOrCombined && entry.root === root;
    case "INVEPT type 2":
      return guestPhysicalOrCombined;
    case "EPT violation":
      return entry.kind === GUEST_PHYSICAL && entry.root === now.root && atAddress();
    case "EPT violation's linear address":
      return entry.kind === COMBINED && usable(entry, now) && atAddress();
    case "reset":
    case "TLB_CONTROL 1":
      return true;
    case "TLB_CONTROL 3":
      return entry.vpid === vpid;
    case "TLB_CONTROL 7":
      return entry.vpid === vpid && !global;
    case "INVLPGA":
      return entry.kind === LINEAR && entry.vpid === vpid && inPage();
    case "MOV to CR3 with bit 63":
    case "VM entry with VPID":
    case "VM exit with VPID":
    case "VMXON":
    case "VMXOFF":
    case "TLB_CONTROL 0":
      return false;
  }
}

/** A few VPIDs, PCIDs and roots, so that they meet. */
export const TAGS: fc.Arbitrary<TlbTags> = fc.record({
  vpid: fc.constantFrom(0, 1, 2, 0xffff),
  pcid: fc.constantFrom(0, 1, 0xfff),
  root: fc.constantFrom(NO_EPT, 0x0, 0x1000, 0xf_ffff_ffff_f000),
});

/** Addresses that share pages of all sizes, in both halves. */
export const ADDRESSES: fc.Arbitrary<number> = fc.tuple(
  fc.constantFrom(0, 2 ** 30, 2 ** 46, -(2 ** 47), -(2 ** 31)),
  fc.constantFrom(0, 0x1000, 0x4000, 0x20_0000, 0x3fff_f000),
  fc.constantFrom(0, 0xfff),
).map(([base, page, offset]) => base + page + offset);

/** Translations of all sizes; a page may be a fragment of a larger one. */
export const TRANSLATIONS: fc.Arbitrary<TlbTranslation> = fc.record({
  address: ADDRESSES,
  shift: fc.constantFrom(12, 21, 30),
  span: fc.constantFrom(12, 21, 30),
  global: fc.boolean(),
  frame: fc.nat(9),
}).map(({ address, shift, span, global, frame }) =>
  translation(Math.floor(address / 2 ** shift) * 2 ** shift, {
    shift: shift as TlbTranslation["shift"],
    span: Math.max(shift, span) as TlbTranslation["shift"],
    global,
    physical: frame * 2 ** 30,
  })
);

/** Every operation of Intel's. */
export const VMX_OPERATIONS: InvalidationName[] = (Object.keys(INVALIDATIONS) as InvalidationName[])
  .filter((name) => !INVALIDATIONS[name].source.startsWith("APM"));
/** What AMD has of them, and its own. */
export const SVM_OPERATIONS: InvalidationName[] = (Object.keys(INVALIDATIONS) as InvalidationName[])
  .filter((name) => !/VM |VMX|INVVPID|EPT/.test(name));

/** An operation with operands of the same few values. */
export function operations(names: InvalidationName[]): fc.Arbitrary<Invalidation> {
  return fc.record({ operation: fc.constantFrom(...names), tags: TAGS, address: ADDRESSES })
    .map(({ operation, tags, address }) => ({ operation, ...tags, address }));
}

/** Fills as the array does by address: guest-physical addresses are not negative. */
export function fill(tlb: Tlb, found: TlbTranslation, array: "linear" | "guestPhysical"): number {
  if (array === "linear") return tlb.linear.insert(found);
  const { linear, physical, shift } = found;
  const guest = linear < 0 ? linear + 2 ** 47 : linear;
  return tlb.insertHostPage({
    guest,
    physical,
    shift,
    readable: true,
    writable: true,
    executable: true,
    dirty: true,
  });
}
