/**
 * MIPS' registers (MIPS Architecture for Programmers, volumes I and III): general ones by their o32 names (n64
 * calls 8 to 11 a4 to a7, and 12 to 15 t0 to t3), and those of coprocessor 0, numbered `8 * register + select`.
 *
 * @module
 */

/** The general registers' numbers. */
export const MIPS_GPR = {
  zero: 0,
  at: 1,
  v0: 2,
  v1: 3,
  a0: 4,
  a1: 5,
  a2: 6,
  a3: 7,
  t0: 8,
  t1: 9,
  t2: 10,
  t3: 11,
  t4: 12,
  t5: 13,
  t6: 14,
  t7: 15,
  s0: 16,
  s1: 17,
  s2: 18,
  s3: 19,
  s4: 20,
  s5: 21,
  s6: 22,
  s7: 23,
  t8: 24,
  t9: 25,
  k0: 26,
  k1: 27,
  gp: 28,
  sp: 29,
  fp: 30,
  ra: 31,
} as const;

/** The name of a general register. */
export type MipsGpr = keyof typeof MIPS_GPR;

/** The registers of coprocessor 0 that are here. */
export const MIPS_CP0 = {
  /** What the segments of useg are. */
  segCtl2: 8 * 5 + 4,
  /** The address of the last access that failed. */
  badVAddr: 8 * 8,
  /** The counter. */
  count: 8 * 9,
  /** When the counter interrupts. */
  compare: 8 * 11,
  /** Modes and interrupt masks. */
  status: 8 * 12,
  /** Why the last exception came. */
  cause: 8 * 13,
  /** Where ERET goes. */
  epc: 8 * 14,
  /** Which processor this is. */
  prid: 8 * 15,
  /** The base of the exception vectors. */
  ebase: 8 * 15 + 1,
  /** Where ERET goes while Status.ERL is set. */
  errorEpc: 8 * 30,
} as const;

/** One past the highest number of a coprocessor 0 register. */
export const MIPS_CP0_REGISTERS = 256;

/** Status: interrupts are enabled. */
export const MIPS_STATUS_IE: number = 1 << 0;
/** Status: an exception is being handled; kernel mode, no interrupts. */
export const MIPS_STATUS_EXL: number = 1 << 1;
/** Status: as after reset. */
export const MIPS_STATUS_ERL: number = 1 << 2;
/** Status: the mode where neither EXL nor ERL is set; 2 is user mode. */
export const MIPS_STATUS_KSU: number = 3 << 3;
/** Status.KSU: user mode. */
export const MIPS_STATUS_UM: number = 2 << 3;
/** Status: exception vectors are the boot ROM's. */
export const MIPS_STATUS_BEV: number = 1 << 22;
/** Status: coprocessor 0 may be used in any mode. */
export const MIPS_STATUS_CU0: number = 1 << 28;
/** Status: coprocessor 1 may be used. */
export const MIPS_STATUS_CU1: number = 1 << 29;

/** Cause: the exception's instruction stands in a branch delay slot. */
export const MIPS_CAUSE_BD: number = 1 << 31;
/** Cause: the lowest bit of the exception's code. */
export const MIPS_CAUSE_EXCCODE_SHIFT = 2;
/** Cause: the exception's code. */
export const MIPS_CAUSE_EXCCODE: number = 0x1f << MIPS_CAUSE_EXCCODE_SHIFT;
/** Cause: the lowest bit of the number of the coprocessor that was not usable. */
export const MIPS_CAUSE_CE_SHIFT = 28;
/** Cause: that number. */
export const MIPS_CAUSE_CE: number = 3 << MIPS_CAUSE_CE_SHIFT;

/** Exception codes, as Cause.ExcCode holds them. */
export const MIPS_EXCEPTIONS = {
  Int: { code: 0, meaning: "interrupt" },
  Mod: { code: 1, meaning: "a store to a page that is not dirty" },
  TLBL: { code: 2, meaning: "no translation for a load or fetch" },
  TLBS: { code: 3, meaning: "no translation for a store" },
  AdEL: { code: 4, meaning: "a load or fetch at an address that cannot be" },
  AdES: { code: 5, meaning: "a store to an address that cannot be" },
  IBE: { code: 6, meaning: "bus error on a fetch" },
  DBE: { code: 7, meaning: "bus error on a load or store" },
  Sys: { code: 8, meaning: "SYSCALL" },
  Bp: { code: 9, meaning: "BREAK" },
  RI: { code: 10, meaning: "reserved instruction" },
  CpU: { code: 11, meaning: "coprocessor unusable" },
} as const;

/** The name of an exception. */
export type MipsException = keyof typeof MIPS_EXCEPTIONS;

/** Where exception vectors are while Status.BEV is clear and EBase has its reset value: the start of kseg0. */
export const MIPS_EBASE = 0x8000_0000;
/** The vector of a TLB refill, from EBase. */
export const MIPS_VECTOR_REFILL = 0x000;
/** The vector of every other exception, from EBase. */
export const MIPS_VECTOR_GENERAL = 0x180;
