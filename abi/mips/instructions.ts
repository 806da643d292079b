/**
 * The MIPS instructions that guests yield, and the layout of a block of text. A RISC instruction names its registers: here
 * addresses are in t0, values in t1, and hypercalls have the convention's own.
 *
 * @module
 */

import { BlockLayout, MachineText, type SiteForm } from "../text_block.ts";
import { MIPS_HYPCALL } from "./convention.ts";
import type { MipsCpu } from "./cpu.ts";

/** HYPCALL 0, with v0 and a0 to a3 as they are. */
export const MIPS_OP_HYPCALL = 1;
/** The same in the delay slot of a branch. */
export const MIPS_OP_HYPCALL_IN_SLOT = 2;
/** JALR t9: calls words in memory, which return by JR ra. */
export const MIPS_OP_CALL = 3;
/** LBU t1, 0(t0). */
export const MIPS_OP_LBU = 4;
/** LW t1, 0(t0): sign-extended. */
export const MIPS_OP_LW = 5;
/** LD t1, 0(t0). */
export const MIPS_OP_LD = 6;
/** SB t1, 0(t0). */
export const MIPS_OP_SB = 7;
/** SW t1, 0(t0). */
export const MIPS_OP_SW = 8;
/** SD t1, 0(t0). */
export const MIPS_OP_SD = 9;
/** MFC0 t1, Count. */
export const MIPS_OP_MFC0_COUNT = 10;
/** MFC0 t1, Status. */
export const MIPS_OP_MFC0_STATUS = 11;
/** MTC0 t1, Status. */
export const MIPS_OP_MTC0_STATUS = 12;
/** MFC0 t1, Cause. */
export const MIPS_OP_MFC0_CAUSE = 13;
/** DMFC0 t1, EPC. */
export const MIPS_OP_DMFC0_EPC = 14;
/** DMTC0 t1, EPC. */
export const MIPS_OP_DMTC0_EPC = 15;
/** DMFC0 t1, BadVAddr. */
export const MIPS_OP_DMFC0_BADVADDR = 16;
/** SYSCALL. */
export const MIPS_OP_SYSCALL = 17;
/** BREAK. */
export const MIPS_OP_BREAK = 18;
/** ERET. A handler that returns has executed it. */
export const MIPS_OP_ERET = 19;
/** BGTZ to itself with a decrement in its delay slot: computation of two instructions a turn; t1 counts. */
export const MIPS_OP_WORK = 20;

/** MTC0 t1, SegCtl2. */
export const MIPS_OP_MTC0_SEGCTL2 = 21;

const NOP = 0x0000_0000;
/** BREAK 0: what a jump to nowhere meets. */
const BREAK = 0x0000_000d;

const FORMS: readonly SiteForm[] = [
  { opcode: MIPS_OP_HYPCALL, text: "hypcall", units: MIPS_HYPCALL.units },
  { opcode: MIPS_OP_HYPCALL_IN_SLOT, text: "b .+8; hypcall", units: [0x1000_0001, ...MIPS_HYPCALL.units] },
  { opcode: MIPS_OP_CALL, text: "jalr $t9; nop", units: [0x0320_f809, NOP] },
  { opcode: MIPS_OP_LBU, text: "lbu $t1, 0($t0)", units: [0x9109_0000] },
  { opcode: MIPS_OP_LW, text: "lw $t1, 0($t0)", units: [0x8d09_0000] },
  { opcode: MIPS_OP_LD, text: "ld $t1, 0($t0)", units: [0xdd09_0000] },
  { opcode: MIPS_OP_SB, text: "sb $t1, 0($t0)", units: [0xa109_0000] },
  { opcode: MIPS_OP_SW, text: "sw $t1, 0($t0)", units: [0xad09_0000] },
  { opcode: MIPS_OP_SD, text: "sd $t1, 0($t0)", units: [0xfd09_0000] },
  { opcode: MIPS_OP_MFC0_COUNT, text: "mfc0 $t1, $9", units: [0x4009_4800] },
  { opcode: MIPS_OP_MFC0_STATUS, text: "mfc0 $t1, $12", units: [0x4009_6000] },
  { opcode: MIPS_OP_MTC0_STATUS, text: "mtc0 $t1, $12", units: [0x4089_6000] },
  { opcode: MIPS_OP_MFC0_CAUSE, text: "mfc0 $t1, $13", units: [0x4009_6800] },
  { opcode: MIPS_OP_DMFC0_EPC, text: "dmfc0 $t1, $14", units: [0x4029_7000] },
  { opcode: MIPS_OP_DMTC0_EPC, text: "dmtc0 $t1, $14", units: [0x40a9_7000] },
  { opcode: MIPS_OP_DMFC0_BADVADDR, text: "dmfc0 $t1, $8", units: [0x4029_4000] },
  { opcode: MIPS_OP_SYSCALL, text: "syscall", units: [0x0000_000c] },
  { opcode: MIPS_OP_BREAK, text: "break", units: [BREAK] },
  { opcode: MIPS_OP_ERET, text: "eret", units: [0x4200_0018] },
  { opcode: MIPS_OP_MTC0_SEGCTL2, text: "mtc0 $t1, $5, 4", units: [0x4089_2804] },
  { opcode: MIPS_OP_WORK, text: "bgtz $t1, .; addiu $t1, $t1, -1", units: [0x1d20_ffff, 0x2529_ffff] },
];

/** The layout of a block of MIPS text. */
export const MIPS_BLOCK: BlockLayout = new BlockLayout({
  unitBytes: 4,
  size: 0x80,
  entry: [NOP],
  forms: FORMS,
  returns: MIPS_OP_ERET,
  pad: [BREAK],
});

/** Where functions are placed when nothing else is said: 1 MiB into kseg0, as a kernel is linked. */
export const MIPS_TEXT_BASE = 0x8010_0000;

/**
 * Text of a MIPS guest.
 *
 * @example A guest that calls a mainline host
 * ```ts
 * import { Machine, type MipsCpu, mipsHypercall, mipsText } from "@exitless/exitless";
 * import { assertEquals } from "@std/assert";
 *
 * let status = 0n;
 * const text = mipsText();
 * const entry = text.add(function* main(cpu: MipsCpu) {
 *   status = yield* mipsHypercall(cpu, "KVM_HC_MIPS_GET_CLOCK_FREQ", {});
 * });
 * const vm = new Machine().createMipsVm();
 * vm.load(text);
 * vm.start(entry);
 * assertEquals(vm.machine.run().end, "finished");
 * assertEquals(status, -1000n); // -KVM_ENOSYS
 * ```
 */
export function mipsText(base: number = MIPS_TEXT_BASE): MachineText<MipsCpu> {
  return new MachineText(MIPS_BLOCK, base);
}
