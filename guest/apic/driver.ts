/**
 * What every local-APIC driver of the kernel does, and how IPIs to several processors are made of IPIs to one
 * (arch/x86/kernel/apic/).
 *
 * @module
 */

import {
  APIC_DEST_ALLBUT,
  APIC_DEST_ALLINC,
  APIC_DEST_SELF,
  APIC_DM_NMI,
  APIC_EOI,
  type Guest,
  NMI_VECTOR,
  type X86Cpu,
} from "../../abi/mod.ts";
import { loadMask, removeFrom, takeFirst } from "../kernel/cpumask.ts";
import { data, percpu } from "../kernel/memory_map.ts";
import type { GuestBehaviour } from "../semantics.ts";

/** The drivers by name. */
export type ApicName = "xapic" | "x2apic-physical" | "x2apic-cluster";

/** What a driver must know of the machine. */
export interface ApicMachine {
  /** Processors, present or not (nr_cpu_ids). */
  readonly cpus: number;
  /** The kernel's year. */
  readonly behaviour: GuestBehaviour;
}

/** Sends an IPI to the processors of a mask in memory. */
export type SendIpiMask = (cpu: X86Cpu, mask: number, vector: number) => Guest;
/** Sends an IPI to processors that need not be named. */
export type SendIpiTo = (cpu: X86Cpu, vector: number) => Guest;

/** A driver. Paravirtual drivers replace some of its operations, as they do in the kernel. */
export abstract class ApicDriver {
  /** The driver's name. */
  abstract readonly name: ApicName;
  /** The highest APIC ID that it can send to. */
  abstract readonly maxApicId: number;
  /** What it must know. */
  protected readonly machine: ApicMachine;

  /** Signals the end of an interrupt: what handlers call (apic_eoi). */
  eoi: (cpu: X86Cpu) => Guest;
  /** Signals the end of an interrupt by a register write: what handlers called until v6.6 (apic->eoi_write). */
  eoiWrite: (cpu: X86Cpu, register: number, value: number) => Guest;
  /** Sends to the processors of a mask. */
  sendIpiMask: SendIpiMask;
  /** Sends to the processors of a mask except the sender. */
  sendIpiMaskAllButSelf: SendIpiMask;
  /** Sends to every online processor except the sender. */
  sendIpiAllButSelf: SendIpiTo;
  /** Sends to every online processor. */
  sendIpiAll: SendIpiTo;

  /** A driver with its native operations. */
  constructor(machine: ApicMachine) {
    this.machine = machine;
    this.eoi = (cpu) => this.nativeEoi(cpu);
    this.eoiWrite = (cpu, register, value) => this.write(cpu, register, value);
    this.sendIpiMask = (cpu, mask, vector) => this.sendMask(cpu, mask, vector, false);
    this.sendIpiMaskAllButSelf = (cpu, mask, vector) => this.sendMask(cpu, mask, vector, true);
    this.sendIpiAllButSelf = (cpu, vector) =>
      this.machine.behaviour.ipiShorthand
        ? this.sendShorthand(cpu, APIC_DEST_ALLBUT, vector)
        : this.sendIpiMaskAllButSelf(cpu, data("online"), vector);
    this.sendIpiAll = (cpu, vector) =>
      this.machine.behaviour.ipiShorthand
        ? this.sendShorthand(cpu, APIC_DEST_ALLINC, vector)
        : this.sendIpiMask(cpu, data("online"), vector);
  }

  /** Puts this processor's APIC into the driver's mode. */
  abstract enable(cpu: X86Cpu): Guest;
  /** Reads a register, by its offset in the APIC's page; the value is in EAX. */
  abstract read(cpu: X86Cpu, register: number): Guest;
  /** Writes a register, by its offset in the APIC's page. */
  abstract write(cpu: X86Cpu, register: number, value: number): Guest;
  /** Writes the interrupt command register. */
  abstract writeIcr(cpu: X86Cpu, low: number, destination: number): Guest;
  /** Signals the end of an interrupt as the hardware has it, whatever has replaced {@linkcode eoi} (native_eoi). */
  nativeEoi(cpu: X86Cpu): Guest {
    return this.write(cpu, APIC_EOI, 0);
  }

  /** Sends to one processor. Throws `RangeError` where there is none of that number, or no such vector. */
  *sendIpi(cpu: X86Cpu, target: number, vector: number): Guest {
    yield cpu.load32(this.apicIdAddress(target));
    yield* this.writeIcr(cpu, icrLow(vector), cpu.eax);
  }

  /** Where a processor's APIC ID is in memory. */
  protected apicIdAddress(target: number): number {
    const { cpus } = this.machine;
    if (target >= 0 && target < cpus && Number.isInteger(target)) return percpu(target, "apicId");
    throw new RangeError(`Cannot send an IPI to processor ${target}: allowed are 0 to ${cpus - 1}`);
  }

  /** Sends to the sender itself. */
  sendIpiSelf(cpu: X86Cpu, vector: number): Guest {
    return this.sendShorthand(cpu, APIC_DEST_SELF, vector);
  }

  /** Sends with one of the ICR's shorthands. */
  protected sendShorthand(cpu: X86Cpu, shorthand: number, vector: number): Guest {
    return this.writeIcr(cpu, shorthand | icrLow(vector), 0);
  }

  /** Sends to the processors of a mask, natively: one IPI each (default_send_IPI_mask_sequence_phys). */
  protected sendMask(cpu: X86Cpu, mask: number, vector: number, butSelf: boolean): Guest {
    return withInterruptsOff(cpu, this.#oneByOne(cpu, mask, vector, butSelf));
  }

  *#oneByOne(cpu: X86Cpu, mask: number, vector: number, butSelf: boolean): Guest {
    const words = yield* this.targets(cpu, mask, butSelf);
    for (let target = takeFirst(words); target >= 0; target = takeFirst(words)) {
      yield* this.sendIpi(cpu, target, vector);
    }
  }

  /** A mask in registers, for sending: without the sender where it is to be spared. */
  protected *targets(cpu: X86Cpu, mask: number, butSelf: boolean): Generator<number, Uint32Array, void> {
    const words = yield* loadMask(cpu, mask, this.machine.cpus);
    if (butSelf) {
      yield cpu.load32(cpu.gsBase);
      removeFrom(words, cpu.eax);
    }
    return words;
  }
}

/** The low half of an ICR for a vector, without destination mode: NMIs have a delivery mode of their own. */
export function icrLow(vector: number): number {
  if ((vector & 0xff) !== vector) throw new RangeError(`Cannot send vector ${vector}: allowed are 0 to 255`);
  return vector === NMI_VECTOR ? APIC_DM_NMI : vector;
}

/** Runs `body` with interrupts off, and turns them on again if they were on (local_irq_save, local_irq_restore). */
export function* withInterruptsOff(cpu: X86Cpu, body: Guest): Guest {
  yield cpu.pushf();
  const enabled = cpu.interruptsEnabled;
  yield cpu.cli();
  yield* body;
  if (enabled) yield cpu.sti();
}
