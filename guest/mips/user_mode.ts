/**
 * User mode without a TLB: the low GiB of addresses leads to the low GiB of memory, whoever uses it. Processors with
 * segmentation control can have it so (Config3.SC: P5600 in QEMU's target/mips/cpu-defs.c.inc); KVM knows of it
 * (kvm_vz_gva_to_gpa).
 *
 * @module
 */

import {
  MIPS_SEGCFG_AM_SHIFT,
  MIPS_SEGCFG_UUSK,
  MIPS_SEGCTL2_CFG5_SHIFT,
  MIPS_SEGCTL2_RESET,
  MIPS_STATUS_ERL,
  MIPS_STATUS_EXL,
  MIPS_STATUS_UM,
  type MipsCpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";

/** Opens the low GiB to every mode. */
export function* mipsUnmapUseg(cpu: MipsCpu): GuestValue<void> {
  const cfg5 = MIPS_SEGCFG_UUSK << MIPS_SEGCFG_AM_SHIFT;
  yield cpu.mtc0SegCtl2((cfg5 << MIPS_SEGCTL2_CFG5_SHIFT) | (MIPS_SEGCTL2_RESET & 0xffff));
}

/**
 * The function goes on in user mode. Its text has to be in the low GiB: a program may begin there, as useg is unmapped while
 * Status.ERL is set, and then opens it.
 */
export function* mipsEnterUserMode(cpu: MipsCpu): GuestValue<void> {
  yield cpu.mfc0Status();
  yield cpu.mtc0Status((cpu.value32 & ~(MIPS_STATUS_ERL | MIPS_STATUS_EXL)) | MIPS_STATUS_UM);
}
