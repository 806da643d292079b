/**
 * Who the host is: STSI's current level, and the first control-program identification of block 3.2.2 (Linux'
 * detect_machine_type).
 *
 * @module
 */

import { hypervisorOf, type S390Cpu, SYSIB_322, SYSIB_322_ENTRY, SYSIB_322_VM } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";

/** What a guest runs on: a logical partition, a hypervisor that it knows, or another one. */
export type S390MachineType = "LPAR" | "KVM" | "z/VM" | "unknown";

/** Asks; `page` is 4 KiB of storage on such a boundary, for the block. */
export function* detectMachineType(cpu: S390Cpu, page: number): GuestValue<S390MachineType> {
  yield cpu.stsi(0, [0, 0], 0);
  if (cpu.register(0) >> 28n <= 2n) return "LPAR";
  yield cpu.stsi(3, [2, 2], page);
  if (cpu.cc !== 0) return "unknown";
  yield cpu.load8(page + SYSIB_322.fields.count.offset);
  if ((cpu.number & 15) === 0) return "unknown";
  const cpi = new Uint8Array(4);
  for (let i = 0; i < cpi.length; i++) {
    yield cpu.load8(page + SYSIB_322_VM + SYSIB_322_ENTRY.fields.cpi.offset + i);
    cpi[i] = cpu.number;
  }
  return hypervisorOf(cpi) ?? "unknown";
}
