/**
 * The blocks of STORE SYSTEM INFORMATION that tell of the machine (1) and of the logical partition (2): up to the last field
 * that is used, of struct sysinfo_* in asm/sysinfo.h. Texts are in EBCDIC.
 *
 * @module
 */

import { type Layout, layout } from "../layout.ts";
import { SYSIB_SIZE } from "./sysib.ts";

const BLOCK = { endian: "big", size: SYSIB_SIZE, align: SYSIB_SIZE } as const;

/** Block 1.1.1: the machine. */
export const SYSIB_111: Layout<
  "head" | "manufacturer" | "type" | "reserved_1" | "model_capacity" | "sequence" | "plant"
> = layout("sysinfo_1_1_1", {
  head: ["u8", 32],
  manufacturer: ["u8", 16],
  type: ["u8", 4],
  reserved_1: ["u8", 12],
  model_capacity: ["u8", 16],
  sequence: ["u8", 16],
  plant: ["u8", 4],
}, BLOCK);

/** Block 1.2.1: the CPU that asks. */
export const SYSIB_121: Layout<"reserved_0" | "sequence" | "plant" | "reserved_1" | "cpu_address"> = layout(
  "sysinfo_1_2_1",
  {
    reserved_0: ["u8", 80],
    sequence: ["u8", 16],
    plant: ["u8", 4],
    reserved_1: ["u8", 2],
    cpu_address: "u16",
  },
  BLOCK,
);

/** Block 1.2.2: the machine's CPUs. */
export const SYSIB_122: Layout<
  "head" | "capability" | "cpus_total" | "cpus_configured" | "cpus_standby" | "cpus_reserved"
> = layout("sysinfo_1_2_2", {
  head: ["u8", 32],
  capability: "u32",
  cpus_total: "u16",
  cpus_configured: "u16",
  cpus_standby: "u16",
  cpus_reserved: "u16",
}, BLOCK);

/** Block 2.2.1: the CPU that asks, as the partition has it. */
export const SYSIB_221: Layout<"reserved_0" | "sequence" | "plant" | "cpu_id" | "cpu_address"> = layout(
  "sysinfo_2_2_1",
  { reserved_0: ["u8", 80], sequence: ["u8", 16], plant: ["u8", 4], cpu_id: "u16", cpu_address: "u16" },
  BLOCK,
);

/** Block 2.2.2: the partition's CPUs. */
export const SYSIB_222: Layout<
  | "reserved_0"
  | "lpar_number"
  | "reserved_1"
  | "characteristics"
  | "cpus_total"
  | "cpus_configured"
  | "cpus_standby"
  | "cpus_reserved"
  | "name"
  | "caf"
  | "reserved_2"
  | "cpus_dedicated"
  | "cpus_shared"
> = layout("sysinfo_2_2_2", {
  reserved_0: ["u8", 32],
  lpar_number: "u16",
  reserved_1: "u8",
  characteristics: "u8",
  cpus_total: "u16",
  cpus_configured: "u16",
  cpus_standby: "u16",
  cpus_reserved: "u16",
  name: ["u8", 8],
  caf: "u32",
  reserved_2: ["u8", 16],
  cpus_dedicated: "u16",
  cpus_shared: "u16",
}, BLOCK);

/** In 2.2.2's characteristics: its CPUs are nobody else's. */
export const LPAR_CHAR_DEDICATED = 0x80;
