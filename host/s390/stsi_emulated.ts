/**
 * STORE SYSTEM INFORMATION of QEMU's emulator (HELPER(stsi) in its target/s390x/tcg/misc_helper.c): it has blocks of all three
 * levels, with the same CPUs on each.
 *
 * @module
 */

import { LPAR_CHAR_DEDICATED, SYSIB_111, SYSIB_121, SYSIB_122, SYSIB_221, SYSIB_222 } from "../../abi/mod.ts";
import {
  encodeSysib,
  nameVirtualMachine,
  type StsiBlocks,
  type VirtualMachine,
  virtualMachines,
} from "./stsi.ts";

/** The machine type of QEMU's own CPU model, a z15, since 7.0 (QEMU_MAX_CPU_TYPE). */
const TYPE = "8561";
const CAPABILITY = 0x443a_fc29;

/** The blocks that it has for a CPU. */
export function emulatedBlocks(machine: VirtualMachine, cpuAddress: number): StsiBlocks {
  const cpus = { cpus_total: machine.cpus, cpus_configured: machine.cpus };
  const cpu = { sequence: "QEMUQEMUQEMUQEMU", plant: "QEMU", cpu_address: cpuAddress };
  const blocks: Readonly<Record<string, () => Uint8Array>> = {
    "1.1.1": () =>
      encodeSysib(SYSIB_111, {
        manufacturer: "QEMU",
        type: TYPE,
        model_capacity: "QEMU",
        sequence: "QEMU",
        plant: "QEMU",
      }),
    "1.2.1": () => encodeSysib(SYSIB_121, cpu),
    "1.2.2": () => encodeSysib(SYSIB_122, { capability: CAPABILITY, ...cpus }),
    "2.2.1": () => encodeSysib(SYSIB_221, cpu),
    "2.2.2": () =>
      encodeSysib(SYSIB_222, {
        characteristics: LPAR_CHAR_DEDICATED,
        ...cpus,
        name: "QEMU",
        caf: 1000,
        cpus_dedicated: machine.cpus,
      }),
    "3.2.2": () => {
      const block = virtualMachines(machine);
      nameVirtualMachine(block, machine.name);
      return block;
    },
  };
  return (name) => blocks[name]?.();
}
