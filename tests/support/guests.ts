/**
 * Small guests for tests: a rig is a virtual machine, an image of text and an IDT, and runs one program.
 *
 *     0x00_0000  IDT: where the IDTR points after reset, so that nobody need load it
 *     0x00_8000  where application processors start: SIPI vector 8
 *     0x01_0000  how many application processors are up
 *     0x02_0000  DATA: the test's own, up to the text
 *     0x10_0000  text
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import {
  CR0_PE,
  CR0_PG,
  CR4_PAE,
  EFER_LME,
  GATE_INTERRUPT,
  GP_VECTOR,
  type Guest,
  type GuestFunction,
  type Gva,
  HIGH,
  IA32_APICBASE,
  IA32_EFER,
  IDT_GATE32,
  IDT_GATE64,
  KERNEL32_CS,
  KERNEL_CS,
  Text,
  X2APIC_ICR,
  X2APIC_MSR_BASE,
  type X86Cpu,
} from "../../abi/mod.ts";
import { Machine, type MachineOptions, type RunResult, type Vm, type VmOptions } from "../../host/mod.ts";

/** Where the IDT is. */
export const IDT = 0;
/** Where application processors start. */
export const AP_START = 0x8000 as Gva;
/** A counter: application processors that are up. */
export const ONLINE = 0x1_0000;
/** Memory that tests may use as they like, up to 1 MiB. */
export const DATA = 0x2_0000;

/** How a rig is made. */
export interface RigOptions {
  /** The machine. */
  readonly machine?: MachineOptions;
  /** The virtual machine; 2 MiB of memory unless it says otherwise. */
  readonly vm?: VmOptions;
  /** The mode in which the program starts, and for which gates are written. */
  readonly mode?: "64-bit" | "32-bit";
}

/** How a gate is written. */
export interface GateOptions {
  /** Type, DPL and present bit; a present interrupt gate by default. */
  readonly type?: number;
  /** The code segment; the mode's kernel segment by default. */
  readonly selector?: number;
}

/** A virtual machine under test. */
export class Rig {
  /** The virtual machine. */
  readonly vm: Vm;
  /** Its image. */
  readonly text: Text = new Text();
  /** The mode in which the program starts. */
  readonly mode: "64-bit" | "32-bit";

  /** A rig without handlers: every exception is a triple fault. */
  constructor(options: RigOptions = {}) {
    this.vm = new Machine(options.machine).createVm({ memory: 2 ** 21, ...options.vm });
    this.mode = options.mode ?? "64-bit";
  }

  /** Handles a vector with a function. */
  on(vector: number, handler: GuestFunction, gate: GateOptions = {}): this {
    this.gate(vector, this.text.add(handler, handler.name || `handler_${vector}`), gate);
    return this;
  }

  /** Writes a vector's gate. */
  gate(vector: number, address: number, { type = GATE_INTERRUPT, selector }: GateOptions = {}): void {
    const long = this.mode === "64-bit";
    const layout = long ? IDT_GATE64 : IDT_GATE32;
    const at = IDT + layout.size * vector;
    const write = (field: { offset: number; size: number }, value: number) =>
      void this.vm.memory.write(at + field.offset, field.size, BigInt(value));
    write(layout.fields.offsetLow, address & 0xffff);
    write(layout.fields.selector, selector ?? (long ? KERNEL_CS : KERNEL32_CS));
    write(layout.fields.type, type);
    if (long) {
      write(IDT_GATE64.fields.offsetMiddle, (address >>> 16) & 0xffff);
      write(IDT_GATE64.fields.offsetHigh, Math.floor(address / HIGH));
    } else {
      write(IDT_GATE32.fields.offsetHigh, address >>> 16);
    }
  }

  /** What application processors run, in 64-bit mode, once {@linkcode startAps} has started them. */
  aps(code: GuestFunction): this {
    this.text.addAt(AP_START, function* trampoline(cpu) {
      yield* longMode(cpu);
      yield cpu.xadd32(ONLINE, 1);
      yield* code(cpu);
    }, code.name);
    return this;
  }

  /** Loads the image and starts the program; what runs it is `vm.machine.run()`. */
  start(program: GuestFunction): Vm {
    const entry = this.text.add(program);
    this.vm.load(this.text);
    this.vm.start(entry, this.mode);
    return this.vm;
  }

  /** Runs a program until nothing can go on, or simulated time passes `deadline`. */
  run(program: GuestFunction, deadline: number = 1e9): RunResult {
    return this.start(program).machine.run(deadline);
  }

  /** Runs a program that must return: what it asserts has been looked at. */
  finish(program: GuestFunction, deadline: number = 1e9): Vm {
    assertEquals(this.run(program, deadline).end, "finished");
    return this.vm;
  }

  /** The 32-bit word at an address, as the host sees it. */
  word(address: number): number {
    return this.vm.memory.word(address);
  }
}

/** Runs one program on a rig of its own, to its end. */
export function finish(program: GuestFunction, options: RigOptions = {}): Vm {
  return new Rig(options).finish(program);
}

/** From real mode to 64-bit mode, as a trampoline goes. */
export function* longMode(cpu: X86Cpu): Guest {
  yield cpu.movToCr4(CR4_PAE);
  yield cpu.wrmsr(IA32_EFER, EFER_LME);
  yield cpu.movToCr0(CR0_PG | CR0_PE);
  yield cpu.loadCs(KERNEL_CS);
}

/** Switches the local APIC to x2APIC mode and enables it, with spurious vector 255. */
export function* enableX2apic(cpu: X86Cpu): Guest {
  yield cpu.rdmsr(IA32_APICBASE);
  yield cpu.wrmsr(IA32_APICBASE, cpu.eax | 0xc00, cpu.edx);
  yield cpu.wrmsr(X2APIC_MSR_BASE + 0xf, 0x1ff);
}

/** Enables the local APIC in xAPIC mode, with spurious vector 255. */
export function* enableXapic(cpu: X86Cpu): Guest {
  yield cpu.store32(0xfee0_00f0, 0x1ff);
}

/** Starts `count` application processors by a broadcast from an x2APIC, and waits until they are up. */
export function* startAps(cpu: X86Cpu, count: number): Guest {
  yield cpu.wrmsr(X2APIC_ICR, 0xc_4500); // INIT, all but self.
  yield cpu.wrmsr(X2APIC_ICR, 0xc_4600 | (AP_START >>> 12));
  for (;;) {
    yield cpu.load32(ONLINE);
    if (cpu.eax === count) return;
    yield cpu.pauseWhile(ONLINE, cpu.eax);
  }
}

/** A rig on which a #GP is thrown into whoever caused it. */
export function rigWithGp(options: RigOptions = {}): Rig {
  return new Rig(options).on(GP_VECTOR, function* (cpu) {
    cpu.fixup();
    yield cpu.iret();
  });
}

/** Whether an instruction raises #GP. */
export function* faults(op: () => number): Generator<number, boolean, void> {
  try {
    yield op();
    return false;
  } catch {
    return true;
  }
}
