/**
 * The reset by which a kernel stops all other CPUs and their devices before it goes into the next one, or into that which
 * takes the dump (_diag308_reset_amode31 in arch/s390/kernel/text_amode31.S, for kexec and kdump).
 *
 * @module
 */

import {
  DIAG308_RESET_LOAD_NORM,
  encodeShortPsw,
  KERNEL_PSW_MASK,
  layout,
  type S390Cpu,
  type S390Guest,
} from "../../abi/mod.ts";

/** What the reset takes, and this kernel uses. */
const SAVE = layout("reset save area", { cr0: "u64", prefix: "u32", prefix_zero: "u32" }, { endian: "big" });

/**
 * Has all CPUs reset and the others stopped, and goes on here, interruptions disabled: prefix and control register 0 are as
 * they were, the handshake about page faults is over. What it needs for that it keeps in 16 bytes at `save`, a multiple
 * of 8 outside of all lowcores.
 *
 * @example The other CPU stops
 * ```ts
 * import { diag308Reset, Machine, S390Kernel } from "@exitless/exitless";
 * import { assertEquals } from "@std/assert";
 *
 * const kernel = new S390Kernel({
 *   *main(cpu) {
 *     yield* diag308Reset(cpu, 0x8000);
 *   },
 * });
 * const spins = kernel.cpu(0x4000, function* spins(cpu) {
 *   for (;;) yield cpu.nop();
 * });
 * const vm = new Machine().createS390Vm({ vcpus: 2 });
 * vm.load(kernel.text);
 * vm.start(kernel.entry);
 * vm.vcpus[1].start(spins);
 * assertEquals(vm.machine.run().end, "finished");
 * assertEquals(vm.vcpus[1].phase, "ended");
 * ```
 */
export function* diag308Reset(cpu: S390Cpu, save: number): S390Guest {
  const { cr0, prefix, prefix_zero } = SAVE.fields;
  yield cpu.stctg0(save + cr0.offset);
  yield cpu.stpx(save + prefix.offset);
  // The PSW is loaded from absolute 0, which is real 0 without a prefix.
  yield cpu.store32(save + prefix_zero.offset, 0);
  yield cpu.spx(save + prefix_zero.offset);
  const psw = { mask: KERNEL_PSW_MASK, address: BigInt(cpu.behindDiag308) };
  yield cpu.store64(0, encodeShortPsw(psw));
  yield cpu.diag308(DIAG308_RESET_LOAD_NORM);
  yield cpu.lctlg0(save + cr0.offset);
  yield cpu.spx(save + prefix.offset);
}
