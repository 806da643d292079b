/**
 * The paravirtual MIPS platform, as Linux had it until 5.10 (arch/mips/paravirt/{setup,serial}.c): its clock, its console
 * and its end are hypercalls. No result is ever looked at.
 *
 * @module
 */

import { type MipsCpu, mipsRegisterAddress } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { mipsHypercall } from "./hypercall.ts";

/** How a kernel was built. */
export interface MipsKernelConfig {
  /** CONFIG_MIPS_PARAVIRT. */
  readonly paravirt: boolean;
  /** CONFIG_HZ: ticks in a second; 250 is MIPS' default. */
  readonly hz: number;
}

/** The platform's own configuration. */
export const MIPS_PARAVIRT: MipsKernelConfig = { paravirt: true, hz: 250 };

/** Whether there is a KVM underneath (kvm_para_available): the kernel's builder decided it. */
export function mipsKvmParaAvailable(config: MipsKernelConfig): boolean {
  return config.paravirt;
}

/** KVM's features, as bits (kvm_arch_para_features): there are none. */
export function mipsKvmParaFeatures(): number {
  return 0;
}

/** What a kernel knows of its clock. */
export interface MipsClock {
  /** mips_hpt_frequency: Count's, in Hz. */
  readonly hptFrequency: number;
  /** preset_lpj: loops of two instructions in a tick, which saves calibrating the delay loop. */
  readonly presetLpj: number;
}

/** Asks the host for the clock's frequency (plat_time_init). An error becomes a frequency like any other. */
export function* mipsPlatTimeInit(
  cpu: MipsCpu,
  config: MipsKernelConfig = MIPS_PARAVIRT,
): GuestValue<MipsClock> {
  const status = yield* mipsHypercall(cpu, "KVM_HC_MIPS_GET_CLOCK_FREQ", {});
  const hptFrequency = Number(BigInt.asUintN(32, status)); // an unsigned int
  return { hptFrequency, presetLpj: Math.floor(hptFrequency / (2 * config.hz)) };
}

/** Where the early console's character is: on the boot stack. */
export const MIPS_BOOT_STACK = 0x8000_7ff0;

/** Writes one byte to terminal 0 (prom_putchar). */
export function* mipsPromPutchar(cpu: MipsCpu, character: number): GuestValue<void> {
  yield cpu.sb(MIPS_BOOT_STACK, character);
  yield* mipsHypercall(cpu, "KVM_HC_MIPS_CONSOLE_OUTPUT", {
    port: 0,
    buffer: mipsRegisterAddress(MIPS_BOOT_STACK),
    length: 1,
  });
}

/** A buffer for a console: in kseg0, kseg1 or xkphys, which need no page tables. */
export interface MipsConsoleBuffer {
  /** Its virtual address, as a register holds it. */
  readonly address: bigint;
  /** Bytes. */
  readonly count: number;
}

/** Writes a buffer to a terminal, and says that all of it was written (paravirt_put_chars). */
export function* mipsPutChars(cpu: MipsCpu, terminal: number, buffer: MipsConsoleBuffer): GuestValue<number> {
  const { address, count } = buffer;
  yield* mipsHypercall(cpu, "KVM_HC_MIPS_CONSOLE_OUTPUT", { port: terminal, buffer: address, length: count });
  return count;
}

/** Ends the virtual machine (pv_machine_halt); comes back where the host does not know the call. */
export function* mipsMachineHalt(cpu: MipsCpu): GuestValue<void> {
  yield* mipsHypercall(cpu, "KVM_HC_MIPS_EXIT_VM", {});
}
