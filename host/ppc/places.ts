/**
 * What an effective address of a guest means: memory, the magic page, or nothing.
 *
 * The guest's own translation is not modelled. With translation on, an effective address means the real address that
 * is left without its top four bits, where memory is; other addresses have no translation. So it is as though the
 * guest's tables mapped all memory where it is, and in the linear mapping at 0xc000000000000000 again.
 * KVM's shadow translations are taken to be there, but for that of the magic page, which the first access makes.
 *
 * @module
 */

import type { PpcProcessor } from "./processor.ts";

/** Address bits that reach real memory (arch/powerpc/include/asm/kvm_host.h, KVM_PAM). */
const KVM_PAM = 0x0fff_ffff_ffff_ffffn;

const PAGE = ~0xfffn;

/** Where the guest has the magic page; zeros where it has not. */
export interface MagicPlace {
  /** Its real address. */
  readonly real: bigint;
  /** Its effective address. */
  readonly effective: bigint;
}

/** No magic page. */
export const NO_MAGIC: MagicPlace = { real: 0n, effective: 0n };

/** What an address means. */
export type Place =
  /** Bytes of memory. */
  | { readonly kind: "memory"; readonly address: number }
  /** Bytes of the magic page. */
  | { readonly kind: "magic"; readonly offset: number }
  /** The magic page, which has no translation for the processor yet. */
  | { readonly kind: "magic-miss" }
  /** Nothing. */
  | { readonly kind: "none" };

/** What an effective address means to a processor, for a fetch or for an access to data of some bytes in one page. */
export function placeOf(p: PpcProcessor, effective: bigint, fetch: boolean, bytes: number): Place {
  const { real, effective: virtual } = p.magic;
  const named = !p.user && virtual !== 0n && (effective & PAGE) === virtual;
  if (p.core === "booke") {
    // BookE translates always; the two bits of its MSR choose an address space. The page is mapped for data alone
    // (e500_mmu_host.c, kvmppc_map_magic), whatever its real address.
    return named && !fetch ? magic(p, effective) : memory(p, effective & KVM_PAM, bytes);
  }
  // Book3S knows the page by its real address. KVM's own translation to that comes before the guest's tables
  // (book3s_64_mmu.c, kvmppc_mmu_book3s_64_xlate); these, or the lack of translation, may lead there too.
  const translated = fetch ? p.ir : p.dr;
  const mapped = named && translated;
  const address = (mapped ? real | (effective & ~PAGE) : effective) & KVM_PAM;
  const page = (p.sf ? real : BigInt.asUintN(32, real)) & KVM_PAM; // book3s.c, kvmppc_gpa_to_pfn
  const place = memory(p, address, bytes);
  const reached = mapped || !translated || place.kind === "memory";
  return reached && page !== 0n && page === (address & PAGE) ? magic(p, effective) : place;
}

function memory(p: PpcProcessor, address: bigint, bytes: number): Place {
  const number = Number(address);
  return address <= BigInt(Number.MAX_SAFE_INTEGER) && p.memory.backed(number, bytes)
    ? { kind: "memory", address: number }
    : { kind: "none" };
}

function magic(p: PpcProcessor, effective: bigint): Place {
  return p.magicMapped ? { kind: "magic", offset: Number(effective & 0xfffn) } : { kind: "magic-miss" };
}
