/**
 * What tests of interrupt controllers share: a local APIC's registers as a guest reaches them in either mode, and
 * virtual machines that stand still, whose APICs are spoken to from the bootstrap processor's thread.
 *
 * @module
 */

import {
  APIC_DEFAULT_BASE,
  GP_VECTOR,
  IA32_APICBASE,
  type IcrHalves,
  X2APIC_MSR_BASE,
  type X86Cpu,
  X86Fault,
} from "../../abi/mod.ts";
import {
  acceptInterrupt,
  emulatedWrite,
  InterruptMessage,
  type Lapic,
  recalculateApicMap,
  writeApicBase,
} from "../../host/lapic/mod.ts";
import { Machine, type MachineOptions, type Vm, type VmOptions } from "../../host/mod.ts";
import { AP_START, ONLINE, Rig, type RigOptions } from "./guests.ts";

/** The two modes of an enabled APIC. */
export const APIC_MODES = ["xapic", "x2apic"] as const;
/** A mode of an enabled APIC. */
export type ApicMode = (typeof APIC_MODES)[number];

/** Instructions of a guest that bring a value. */
export type Asking<T> = Generator<number, T, void>;

/** A rig on one CPU a vCPU whose #GP handler goes to the fixup: a guest may try what is not allowed. */
export function tryingRig(options: RigOptions = {}): Rig {
  const pcpus = options.vm?.vcpuIds?.length ?? options.vm?.vcpus ?? 1;
  return new Rig({ ...options, machine: { pcpus, ...options.machine } }).on(GP_VECTOR, function* fixUp(cpu) {
    cpu.fixup();
    yield cpu.iret();
  });
}

/** Executes an instruction. Whether it completed; otherwise it raised #GP. */
export function* completes(op: number): Asking<boolean> {
  try {
    yield op;
    return true;
  } catch (fault) {
    if (fault instanceof X86Fault && fault.vector === GP_VECTOR) return false;
    throw fault;
  }
}

/** Makes KVM look at pending events, of which there are none: it injects a #GP for an MSR that does not exist. */
export function* lookAtEvents(cpu: X86Cpu): Asking<void> {
  yield* completes(cpu.rdmsr(0x1234));
}

/** The MSR of a register. */
function msrOf(offset: number): number {
  return X2APIC_MSR_BASE + (offset >>> 4);
}

/** Enters a mode and enables the APIC by software, with spurious vector 255. */
export function* enter(cpu: X86Cpu, mode: ApicMode): Asking<void> {
  if (mode === "x2apic") {
    yield cpu.rdmsr(IA32_APICBASE);
    yield cpu.wrmsr(IA32_APICBASE, cpu.eax | 0xc00, cpu.edx);
  }
  yield* write(cpu, mode, 0x0f0, 0x1ff);
}

/** Reads a register; "#GP" where that raises it. */
export function* read(cpu: X86Cpu, mode: ApicMode, offset: number): Asking<number | "#GP"> {
  const op = mode === "xapic" ? cpu.load32(APIC_DEFAULT_BASE + offset) : cpu.rdmsr(msrOf(offset));
  return (yield* completes(op)) ? cpu.eax : "#GP";
}

/** Writes a register; `high` goes to bits 63:32 in x2APIC mode. Whether it completed. */
export function* write(cpu: X86Cpu, mode: ApicMode, offset: number, low: number, high = 0): Asking<boolean> {
  return yield* completes(
    mode === "xapic" ? cpu.store32(APIC_DEFAULT_BASE + offset, low) : cpu.wrmsr(msrOf(offset), low, high),
  );
}

/** Sends what an ICR says. */
export function* send(cpu: X86Cpu, mode: ApicMode, icr: IcrHalves): Asking<void> {
  if (mode === "xapic") yield* write(cpu, mode, 0x310, icr.high);
  yield* write(cpu, mode, 0x300, icr.low, icr.high);
}

/** Handles vectors: each handler notes that it begins, and ends its interrupt. Which have begun, in order. */
export function logging(rig: Rig, mode: ApicMode, ...vectors: number[]): number[] {
  const log: number[] = [];
  for (const vector of vectors) {
    rig.on(vector, function* (cpu) {
      log.push(vector);
      yield* write(cpu, mode, 0x0b0, 0);
    });
  }
  return log;
}

/** A virtual machine that stands still, in the bootstrap processor's thread. */
export function still(options: VmOptions = {}, machine: MachineOptions = {}): Vm {
  const vm = new Machine({ pcpus: 1, ...machine }).createVm({ memory: 0, ...options });
  vm.engine.running = vm.bootstrap;
  return vm;
}

/** Rebuilds the optimized map if something has changed. */
export function rebuildMap(vm: Vm): void {
  for (const _ of recalculateApicMap(vm)) { /* Nobody else runs. */ }
}

/** What {@linkcode setUp} gives an APIC besides its mode. */
export interface ApicSetUp {
  /** Whether software enables it; true by default. */
  readonly software?: boolean;
  /** Its xAPIC ID. */
  readonly id?: number;
  /** Its logical xAPIC ID. */
  readonly ldr?: number;
  /** Its destination format register. */
  readonly dfr?: number;
}

/**
 * Puts an APIC into a mode, enabled by software or not, with an APIC ID and logical ID of its own in xAPIC mode; the
 * optimized map is current then.
 */
export function setUp(lapic: Lapic, mode: ApicMode | "disabled", registers: ApicSetUp = {}): void {
  const { vm } = lapic.vcpu;
  const { software = true, id, ldr, dfr } = registers;
  const base = (lapic.base & ~0xc00) >>> 0;
  if (mode === "disabled") {
    writeApicBase(lapic, base, 0);
    return rebuildMap(vm);
  }
  if (!lapic.hardwareEnabled) writeApicBase(lapic, (base | 0x800) >>> 0, 0);
  if (mode === "x2apic") writeApicBase(lapic, (base | 0xc00) >>> 0, 0);
  emulatedWrite(lapic, 0x0f0, software ? 0x1ff : 0xff);
  if (id !== undefined) emulatedWrite(lapic, 0x020, id << 24);
  if (ldr !== undefined) emulatedWrite(lapic, 0x0d0, ldr << 24);
  if (dfr !== undefined) emulatedWrite(lapic, 0x0e0, dfr);
  rebuildMap(vm);
}

/** A message; fields that are left out are those of a fixed, edge-triggered interrupt to physical APIC 0. */
export function message(fields: Partial<InterruptMessage>): InterruptMessage {
  return Object.assign(new InterruptMessage(), { level: true }, fields);
}

/** Requests a fixed, edge-triggered interrupt. Whether the APIC took it. */
export function request(lapic: Lapic, vector: number, levelTriggered = false): boolean {
  return acceptInterrupt(lapic, 0, vector, true, levelTriggered) === 1;
}

/** The vectors whose bits are set in IRR (0x200), ISR (0x100) or TMR (0x180), ascending. */
export function vectors(lapic: Lapic, base: number): number[] {
  return Array.from({ length: 256 }, (_, vector) => vector).filter((vector) =>
    (lapic.get(base + 16 * (vector >>> 5)) >>> (vector & 31)) & 1
  );
}

/**
 * Starts application processors by broadcasts: they run what {@linkcode Rig.aps} was given, up to the line where they
 * say that they are up.
 */
export function* bringUp(cpu: X86Cpu, mode: ApicMode, count: number): Asking<void> {
  yield* write(cpu, mode, 0x300, 0xc_4500); // INIT, all but self.
  yield* write(cpu, mode, 0x300, 0xc_4600 | (AP_START >>> 12));
  yield* until(cpu, ONLINE, count);
}

/** Waits until a word of memory has a value. */
export function* until(cpu: X86Cpu, address: number, value: number): Asking<void> {
  for (;;) {
    yield cpu.load32(address);
    if (cpu.eax === value) return;
    yield cpu.pauseWhile(address, cpu.eax);
  }
}
