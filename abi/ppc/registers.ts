/**
 * PowerPC registers: how a context keeps them, MSR and syndrome bits, special-purpose registers by number. Bits are
 * written as values; the Power ISA's own numbering (bit 0 is the most significant one) is used for instruction fields
 * alone.
 *
 * @module
 */

/** MSR: the processor is in 64-bit mode. Bit 63; a bigint, as no 32-bit word holds it. */
export const MSR_SF: bigint = 1n << 63n;
/** MSR, Book3S: hypervisor state. Bit 60. */
export const MSR_HV: bigint = 1n << 60n;
/** MSR, BookE with hypervisor state: a guest runs (reg_booke.h, MSR_GS). */
export const MSR_GS = 0x1000_0000;
/** MSR, BookE: user programs may lock lines of the cache (reg_booke.h, MSR_UCLE). */
export const MSR_UCLE = 0x400_0000;
/** MSR, Book3S: waits for an interrupt (arch/powerpc/include/asm/reg.h, MSR_POW). */
export const MSR_POW = 0x4_0000;
/** MSR, BookE: waits for an interrupt (reg.h, MSR_WE). */
export const MSR_WE = 0x4_0000;
/** MSR, BookE: critical interrupts are enabled. */
export const MSR_CE = 0x2_0000;
/** MSR: external interrupts are enabled. */
export const MSR_EE = 0x8000;
/** MSR: problem state, the mode of user programs. */
export const MSR_PR = 0x4000;
/** MSR: machine checks are enabled. */
export const MSR_ME = 0x1000;
/** MSR, BookE: debug interrupts are enabled. */
export const MSR_DE = 0x200;
/** MSR: instruction addresses are translated (BookE: address space 1). */
export const MSR_IR = 0x20;
/** MSR: data addresses are translated (BookE: address space 1). */
export const MSR_DR = 0x10;
/** MSR: the performance monitor counts what is marked (reg.h, MSR_PMM). */
export const MSR_PMM = 0x4;
/** MSR: interrupts are recoverable. */
export const MSR_RI = 0x2;
/** MSR: little-endian mode. */
export const MSR_LE = 0x1;

/** SRR1 of a program interrupt, Book3S: the instruction is illegal (reg.h, SRR1_PROGILL). */
export const SRR1_PROGILL = 0x8_0000;
/** The same: the instruction is privileged. */
export const SRR1_PROGPRIV = 0x4_0000;
/** The same: a trap instruction. */
export const SRR1_PROGTRAP = 0x2_0000;
/** The bits of SRR1 that an interrupt takes from the MSR; the others tell its cause (reg.h). */
export const SRR1_MSR_BITS: bigint = 0xffff_ffff_ffff_ffffn ^ 0x783f_0000n;

/** ESR of a program interrupt, BookE: the instruction is illegal (reg_booke.h). */
export const ESR_PIL = 0x800_0000;
/** The same: the instruction is privileged. */
export const ESR_PPR = 0x400_0000;
/** The same: a trap instruction. */
export const ESR_PTR = 0x200_0000;
/** ESR of a data storage interrupt: the access was a store. */
export const ESR_ST = 0x80_0000;

/** TSR, BookE: the decrementer has expired; a 1 that is written clears it (reg_booke.h). */
export const TSR_DIS = 0x800_0000;
/** TCR, BookE: the decrementer interrupts (reg_booke.h). */
export const TCR_DIE = 0x400_0000;

/** DSISR: no translation was found (reg.h). */
export const DSISR_NOHPTE = 0x4000_0000;
/** DSISR: the access was a store. */
export const DSISR_ISSTORE = 0x200_0000;

/** A CR field's four bits: less than. */
export const CR_LT = 8;
/** Greater than. */
export const CR_GT = 4;
/** Equal. */
export const CR_EQ = 2;
/** Summary overflow. */
export const CR_SO = 1;

/** XER: carry out of the last carrying addition or shift. */
export const XER_CA = 0x2000_0000;
/** XER: summary overflow, which comparisons copy into their CR field. */
export const XER_SO = 0x8000_0000;

/** Special-purpose registers by number (reg.h, reg_booke.h). Bit 4 of a number says: for the supervisor alone. */
export const SPRS = {
  XER: 1,
  LR: 8,
  CTR: 9,
  DSISR: 18,
  DAR: 19,
  DEC: 22,
  SRR0: 26,
  SRR1: 27,
  DEAR: 0x3d,
  ESR: 0x3e,
  IVPR: 0x3f,
  USPRG3: 0x103,
  SPRG4R: 0x104,
  SPRG5R: 0x105,
  SPRG6R: 0x106,
  SPRG7R: 0x107,
  TBRL: 0x10c,
  TBRU: 0x10d,
  SPRG0: 0x110,
  SPRG1: 0x111,
  SPRG2: 0x112,
  SPRG3: 0x113,
  SPRG4: 0x114,
  SPRG5: 0x115,
  SPRG6: 0x116,
  SPRG7: 0x117,
  TBWL: 0x11c,
  TBWU: 0x11d,
  BOOKE_PIR: 0x11e,
  PVR: 0x11f,
  HIOR: 0x137,
  TSR: 0x150,
  TCR: 0x154,
  IVOR0: 0x190,
  IVOR1: 0x191,
  IVOR2: 0x192,
  IVOR3: 0x193,
  IVOR4: 0x194,
  IVOR5: 0x195,
  IVOR6: 0x196,
  IVOR7: 0x197,
  IVOR8: 0x198,
  IVOR9: 0x199,
  IVOR10: 0x19a,
  IVOR11: 0x19b,
  IVOR12: 0x19c,
  IVOR13: 0x19d,
  IVOR14: 0x19e,
  IVOR15: 0x19f,
  MAS0: 0x270,
  MAS1: 0x271,
  MAS2: 0x272,
  MAS3: 0x273,
  MAS4: 0x274,
  MAS6: 0x276,
  MAS7: 0x3b0,
  PIR: 0x3ff,
} as const;

/** The name of a special-purpose register. */
export type SprName = keyof typeof SPRS;

const SPR_NAMES: ReadonlyMap<number, SprName> = new Map(
  Object.entries(SPRS).map(([name, number]) => [number, name as SprName]),
);

/** The name of a special-purpose register; `spr N` where there is none in {@linkcode SPRS}. */
export function sprName(number: number): string {
  return SPR_NAMES.get(number) ?? `spr ${number}`;
}

/** Whether a special-purpose register is for the supervisor alone: bit 4 of its number, spr[0] in the Power ISA. */
export function sprIsPrivileged(number: number): boolean {
  return (number & 0x10) !== 0;
}
