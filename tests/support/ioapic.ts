/**
 * The I/O APIC as a guest's driver reaches it.
 *
 * @module
 */

import { encodeRedirection, type RedirectionEntry, type X86Cpu } from "../../abi/mod.ts";
import type { Vm } from "../../host/mod.ts";
import type { Asking } from "./apic.ts";

/** Where the I/O APIC's page is. */
export const IOAPIC = 0xfec0_0000;

/** Reads an indirect register. */
export function* readIoapic(cpu: X86Cpu, register: number): Asking<number> {
  yield cpu.store32(IOAPIC, register);
  yield cpu.load32(IOAPIC + 0x10);
  return cpu.eax;
}

/** Writes an indirect register. */
export function* writeIoapic(cpu: X86Cpu, register: number, value: number): Asking<void> {
  yield cpu.store32(IOAPIC, register);
  yield cpu.store32(IOAPIC + 0x10, value);
}

/** Sets a pin's redirection entry, masked while its halves do not fit together. */
export function* route(cpu: X86Cpu, pin: number, entry: Partial<RedirectionEntry>): Asking<void> {
  const { low, high } = encodeRedirection(entry);
  yield* writeIoapic(cpu, 0x10 + 2 * pin, 0x1_0000);
  yield* writeIoapic(cpu, 0x11 + 2 * pin, high);
  yield* writeIoapic(cpu, 0x10 + 2 * pin, low);
}

/** Sets a pin's redirection entry as a guest does, from the bootstrap processor's thread. */
export function setEntry(vm: Vm, pin: number, entry: Partial<RedirectionEntry>): void {
  const { low, high } = encodeRedirection(entry);
  const { ioapic } = vm;
  for (const [register, value] of [[0x11 + 2 * pin, high], [0x10 + 2 * pin, low]]) {
    ioapic.write(IOAPIC, 4, BigInt(register));
    ioapic.write(IOAPIC + 0x10, 4, BigInt(value));
  }
  for (const vcpu of vm.vcpus) ioapic.scan(vcpu);
}
