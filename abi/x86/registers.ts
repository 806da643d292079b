/**
 * The x86-64 register file as u32 words, least significant half first. What every event reads or writes stands first,
 * and fills the 64 bytes of a cache line. Behind it stand R11, which SYSCALL fills, and the other general registers in
 * the order in which instructions encode them (SDM 2A, table 3-1).
 *
 *     word  0 RAX   2 RCX   4 RDX   6 RBX   8 RSI  10 RDI  12 RFLAGS  13 CS  14 error code  15 vector
 *          16 R11  18 RSP  20 RBP  22 R8   24 R9   26 R10  28 R12  30 R13  32 R14  34 R15  36 RIP  38, 39 unused
 *
 * RFLAGS, the code segment, and what delivered it belong to an activation. Each activation of a guest has such a window
 * of its own.
 *
 * @module
 */

/** Word of RAX. */
export const RAX = 0;
/** Word of RCX. */
export const RCX = 2;
/** Word of RDX. */
export const RDX = 4;
/** Word of RBX. */
export const RBX = 6;
/** Word of RSI. */
export const RSI = 8;
/** Word of RDI. */
export const RDI = 10;
/** Word of RFLAGS; its upper half is reserved and not kept. */
export const RFLAGS = 12;
/** Word of the CS selector; bits 1:0 are the current privilege level. */
export const CS = 13;
/** Word of the error code that delivered this activation; 0 where there was none. */
export const ERROR_CODE = 14;
/** Word of the vector that delivered this activation; {@linkcode NO_VECTOR} for a program. */
export const VECTOR = 15;
/** Word of R11. */
export const R11 = 16;
/** Word of RSP. */
export const RSP = 18;
/** Word of RBP. */
export const RBP = 20;
/** Word of R8. */
export const R8 = 22;
/** Word of R9. */
export const R9 = 24;
/** Word of R10. */
export const R10 = 26;
/** Word of R12. */
export const R12 = 28;
/** Word of R13. */
export const R13 = 30;
/** Word of R14. */
export const R14 = 32;
/** Word of R15. */
export const R15 = 34;
/** Word of RIP. */
export const RIP = 36;
/** Words of one window. */
export const WINDOW = 40;

/** What stands in {@linkcode VECTOR} when no event delivered the activation. */
export const NO_VECTOR = 0xffff_ffff;
/** What stands in {@linkcode VECTOR} of an activation that SYSCALL began. */
export const SYSCALL_ENTRY = 0xffff_fffe;

/** The general registers by name, with their words. */
export const GENERAL_REGISTERS: Readonly<Record<string, number>> = {
  rax: RAX,
  rcx: RCX,
  rdx: RDX,
  rbx: RBX,
  rsp: RSP,
  rbp: RBP,
  rsi: RSI,
  rdi: RDI,
  r8: R8,
  r9: R9,
  r10: R10,
  r11: R11,
  r12: R12,
  r13: R13,
  r14: R14,
  r15: R15,
};

/** RFLAGS.CF: carry; what BT, BTS and BTR report in. */
export const FLAG_CF = 1 << 0;
/** RFLAGS bit 1: always set. */
export const FLAG_FIXED = 1 << 1;
/** RFLAGS.PF: parity. */
export const FLAG_PF = 1 << 2;
/** RFLAGS.AF: auxiliary carry. */
export const FLAG_AF = 1 << 4;
/** RFLAGS.ZF: zero; what CMPXCHG reports in. */
export const FLAG_ZF = 1 << 6;
/** RFLAGS.SF: sign. */
export const FLAG_SF = 1 << 7;
/** RFLAGS.IF: maskable interrupts are recognized. */
export const FLAG_IF = 1 << 9;
/** RFLAGS.OF: overflow. */
export const FLAG_OF = 1 << 11;
/** RFLAGS.IOPL: the privilege level that I/O instructions need. */
export const FLAG_IOPL = 3 << 12;

/**
 * Code segment selectors: those of Linux's GDT (arch/x86/include/asm/segment.h), and real mode's paragraph segments.
 * The descriptor table itself is not modelled: a selector stands for its flat segment.
 */
export const KERNEL32_CS = 0x08;
/** Flat 64-bit code, CPL 0. */
export const KERNEL_CS = 0x10;
/** Flat 32-bit code, CPL 3. */
export const USER32_CS = 0x23;
/** Flat 64-bit code, CPL 3. */
export const USER_CS = 0x33;

/** CR0.PE: protected mode. */
export const CR0_PE = 1;
/** CR0.ET: hardwired to 1. */
export const CR0_ET = 1 << 4;
/** CR0.NE: native x87 errors. */
export const CR0_NE = 1 << 5;
/** CR0.WP: supervisor writes honour read-only pages. */
export const CR0_WP = 1 << 16;
/** CR0.NW: not write-through. */
export const CR0_NW = 1 << 29;
/** CR0.CD: cache disable. */
export const CR0_CD = 1 << 30;
/** CR0.PG: paging. */
export const CR0_PG = 0x8000_0000;

/** CR4.PAE: physical-address extension, which long mode needs. */
export const CR4_PAE = 1 << 5;
/** CR4.PGE: global pages. */
export const CR4_PGE = 1 << 7;

/** IA32_EFER.SCE: SYSCALL and SYSRET are enabled. */
export const EFER_SCE = 1 << 0;
/** IA32_EFER.LME: long mode is enabled; it is active once paging is. */
export const EFER_LME = 1 << 8;
/** IA32_EFER.LMA: long mode is active. */
export const EFER_LMA = 1 << 10;
/** IA32_EFER.NXE: no-execute pages. */
export const EFER_NX = 1 << 11;

/**
 * The system registers of one processor as u32 words: they stay with the processor when it switches tasks.
 *
 *     word 0 CR0   2 IA32_EFER   4 IDTR base   6 IDTR limit   8 GS base   10 FS base   12 kernel GS base
 *         14 CR2   16 CR3   18 CR4   20 IA32_STAR  22 IA32_LSTAR  24 IA32_CSTAR  26 IA32_FMASK  28 IA32_TSC_AUX
 */
export const SYS_CR0 = 0;
/** Word of IA32_EFER. */
export const SYS_EFER = 2;
/** Word of the IDTR's base. */
export const SYS_IDT_BASE = 4;
/** Word of the IDTR's limit. */
export const SYS_IDT_LIMIT = 6;
/** Word of IA32_GS_BASE. */
export const SYS_GS_BASE = 8;
/** Word of IA32_FS_BASE. */
export const SYS_FS_BASE = 10;
/** Word of IA32_KERNEL_GS_BASE. */
export const SYS_KERNEL_GS_BASE = 12;
/** Word of CR2. */
export const SYS_CR2 = 14;
/** Word of CR3. */
export const SYS_CR3 = 16;
/** Word of CR4. */
export const SYS_CR4 = 18;
/** Word of IA32_STAR. */
export const SYS_STAR = 20;
/** Word of IA32_LSTAR. */
export const SYS_LSTAR = 22;
/** Word of IA32_CSTAR. */
export const SYS_CSTAR = 24;
/** Word of IA32_FMASK. */
export const SYS_FMASK = 26;
/** Word of IA32_TSC_AUX. */
export const SYS_TSC_AUX = 28;
/** Words of the system registers. */
export const SYS_WORDS = 32;
