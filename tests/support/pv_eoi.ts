/**
 * What tests of PV EOI's host side share: a guest's driver in small, and the state as the host sees it.
 *
 * @module
 */

import { MSR_KVM_PV_EOI_EN, X2APIC_EOI, X2APIC_ICR, type X86Cpu } from "../../abi/mod.ts";
import type { Vm } from "../../host/mod.ts";
import { type Asking, enter } from "./apic.ts";
import { DATA } from "./guests.ts";

/** Where the flag is. */
export const FLAG = DATA + 0x100;
/** Vectors of three classes. */
export const LOW = 0x31;
/** Vectors of three classes. */
export const MIDDLE = 0x51;
/** Vectors of three classes. */
export const HIGH = 0x71;

/** What a handler's EOI was. */
export type Eoi = "flag" | "register";

/** Ends an interrupt as a driver does: by the flag where it is set, by the register otherwise (kvm_guest_apic_eoi_write). */
export function* endOfInterrupt(cpu: X86Cpu): Asking<Eoi> {
  yield cpu.btr(FLAG, 0);
  if (cpu.cf) return "flag";
  yield cpu.wrmsr(X2APIC_EOI, 0);
  return "register";
}

/** Enables the APIC and PV EOI. */
export function* enable(cpu: X86Cpu): Asking<void> {
  yield* enter(cpu, "x2apic");
  yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, FLAG | 1);
}

/** Interrupts itself. */
export function selfIpi(cpu: X86Cpu, vector: number): number {
  return cpu.wrmsr(X2APIC_ICR, 0x4_0000 | vector);
}

/** The state of PV EOI, as a host that looks at guest memory sees it (pv_eoi_set_pending): PENDING, and the flag. */
export function state({ bootstrap, memory }: Vm): [pending: boolean, bit: number] {
  return [bootstrap.pvEoi.pending, memory.byte(FLAG)];
}
