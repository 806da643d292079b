/**
 * The lowcore: the 8 KiB at real address 0, which each CPU finds at its prefix. Interruptions leave the old PSW and
 * their codes here, and go on at the new PSW. The fields that are used (asm/lowcore.h); all big-endian.
 *
 * @module
 */

import { type Layout, layout } from "../layout.ts";

/** Bytes of the prefix area. */
export const LOWCORE_SIZE = 0x2000;

/** The assigned storage locations. PSWs are arrays of mask and address. */
export const LOWCORE: Layout<
  | "pad_0x0000"
  | "ext_params"
  | "ext_cpu_addr"
  | "ext_int_code"
  | "svc_ilc"
  | "svc_code"
  | "pgm_ilc"
  | "pgm_code"
  | "pad_0x0090"
  | "restart_old_psw"
  | "external_old_psw"
  | "svc_old_psw"
  | "program_old_psw"
  | "mcck_old_psw"
  | "io_old_psw"
  | "pad_0x0180"
  | "restart_psw"
  | "external_new_psw"
  | "svc_new_psw"
  | "program_new_psw"
  | "mcck_new_psw"
  | "io_new_psw"
  | "pad_0x0200"
  | "ext_params2"
> = layout("lowcore", {
  pad_0x0000: ["u8", 0x80],
  ext_params: "u32",
  ext_cpu_addr: "u16",
  ext_int_code: "u16",
  svc_ilc: "u16",
  svc_code: "u16",
  pgm_ilc: "u16",
  pgm_code: "u16",
  pad_0x0090: ["u8", 0x120 - 0x90],
  restart_old_psw: ["u64", 2],
  external_old_psw: ["u64", 2],
  svc_old_psw: ["u64", 2],
  program_old_psw: ["u64", 2],
  mcck_old_psw: ["u64", 2],
  io_old_psw: ["u64", 2],
  pad_0x0180: ["u8", 0x1a0 - 0x180],
  restart_psw: ["u64", 2],
  external_new_psw: ["u64", 2],
  svc_new_psw: ["u64", 2],
  program_new_psw: ["u64", 2],
  mcck_new_psw: ["u64", 2],
  io_new_psw: ["u64", 2],
  pad_0x0200: ["u8", 0x11b8 - 0x200],
  ext_params2: "u64",
}, { endian: "big", align: LOWCORE_SIZE, size: LOWCORE_SIZE });
