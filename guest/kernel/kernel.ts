/**
 * A kernel image: text, the drivers it was built with, and what it patches in itself at boot. Everything that it
 * remembers otherwise is in guest memory.
 *
 * @module
 */

import {
  APIC_EOI,
  type Guest,
  type GuestFunction,
  type Gva,
  NMI_VECTOR,
  Text,
  type X86Cpu,
} from "../../abi/mod.ts";
import type { ApicDriver, ApicName } from "../apic/driver.ts";
import { apicDrivers, chooseApicDriver } from "../apic/drivers.ts";
import type { PvDriver, PvHook } from "../drivers/driver.ts";
import { PV_DRIVERS } from "../drivers/registry.ts";
import type { HypercallInstruction } from "../instructions.ts";
import { MemoryManager, type MmOptions } from "../mm/manager.ts";
import { type SchedOptions, Scheduler } from "../sched/scheduler.ts";
import { GUEST_SEMANTICS, type GuestBehaviour, type GuestSemantics, guestSemantics } from "../semantics.ts";
import { secondaryStart, startKernel } from "./boot.ts";
import type { GuestValue } from "./cpumask.ts";
import { CPU_LIMIT, data, memoryNeeded, percpu, PERCPU_AREA, TRAMPOLINE } from "./memory_map.ts";
import { flushCallFunctionQueue, type SmpFunction } from "./smp.ts";
import { FIXED_UP, fixupException, spuriousInterrupt } from "./traps.ts";
import {
  CALL_FUNCTION_SINGLE_VECTOR,
  CALL_FUNCTION_VECTOR,
  FIRST_EXTERNAL_VECTOR,
  RESCHEDULE_VECTOR,
} from "./vectors.ts";

/** What runs on a processor of a kernel. */
export type KernelProgram = (cpu: X86Cpu, kernel: Kernel) => Guest;

/** How a kernel is built. Everything has a default. */
export interface KernelOptions {
  /** Processors; 1 by default. Their APIC IDs are 0, 1, 2 ... */
  readonly cpus?: number;
  /** The processors' APIC IDs where they are not 0, 1, 2 ...: what firmware's table lists, the boot processor first. */
  readonly apicIds?: readonly number[];
  /** The APIC driver; x2APIC with physical destinations by default, as on KVM without interrupt remapping. */
  readonly apic?: ApicName;
  /** The width of a long: a 64-bit or a 32-bit kernel. */
  readonly bits?: 64 | 32;
  /** Whose kernel it is; "v6.19" by default. */
  readonly guestSemantics?: GuestSemantics;
  /** Paravirtual drivers not to use, by name; none by default. */
  readonly disable?: readonly string[];
  /** Paravirtual drivers of one's own, probed after the kernel's. */
  readonly drivers?: readonly PvDriver[];
  /**
   * The kernel has tasks: a scheduler, user mode and system calls. The programs of its processors are their idle tasks.
   * Of 64-bit kernels alone; by default where there is paging.
   */
  readonly sched?: boolean | SchedOptions;
  /** The kernel has paging: address spaces for user programs, demand paging, TLB shootdowns. Of 64-bit kernels alone. */
  readonly paging?: boolean | MmOptions;
  /** What the boot processor runs once every processor is up. When it returns, the guest's program has ended. */
  readonly main: KernelProgram;
  /** What each other processor runs once it is up; the idle loop by default. */
  readonly secondary?: KernelProgram;
}

/**
 * A kernel, to be loaded into a virtual machine; into several one after the other, since it patches itself at boot.
 *
 * @example Boot four processors and end
 * ```ts
 * import { Machine } from "@exitless/exitless";
 * import { Kernel } from "@exitless/exitless/guest";
 * import { assertEquals } from "@std/assert";
 *
 * const kernel = new Kernel({
 *   cpus: 4,
 *   *main(cpu) {
 *     yield cpu.work(1000);
 *   },
 * });
 * const vm = new Machine().createVm({ vcpus: 4 });
 * vm.load(kernel.text);
 * vm.start(kernel.entry);
 * assertEquals(vm.machine.run().end, "finished");
 * ```
 */
export class Kernel {
  /** The image. */
  readonly text: Text = new Text();
  /** Where the boot processor starts. */
  readonly entry: Gva;
  /** Processors. */
  readonly cpus: number;
  /** Their APIC IDs. */
  readonly apicIds: readonly number[];
  /** The width of a long. */
  readonly bits: 64 | 32;
  /** Whose kernel it is. */
  readonly semantics: GuestSemantics;
  /** What that kernel does. */
  readonly behaviour: GuestBehaviour;
  /** The APIC drivers that are compiled in. */
  readonly apicDrivers: readonly ApicDriver[];
  /** The one in use. */
  readonly apic: ApicDriver;
  /** What the boot processor runs. */
  readonly main: KernelProgram;
  /** What the others run. */
  readonly secondary: KernelProgram;
  /** Bytes of memory that the kernel needs from address 0. */
  readonly memory: number;
  /** What it printed: warnings, oldest first. */
  readonly log: string[] = [];

  /** Patched at boot: which hypercall instruction this processor has (an alternative). */
  hypercallInstruction: HypercallInstruction = "vmcall";
  /** Patched at boot: whether IPIs to all may use the shorthand (a static key). */
  ipiShorthand = false;

  readonly #candidates: readonly PvDriver[];
  #linked: readonly Partial<ApicDriver>[] | undefined;
  #drivers: readonly PvDriver[] = [];
  readonly #gates = new Map<number, Gva>();
  readonly #functions = new Map<number, SmpFunction>();
  readonly #spurious: Gva;
  readonly #users = new Set<number>();
  readonly #sched: Scheduler | undefined;
  readonly #mm: MemoryManager | undefined;

  /** Links a kernel. Throws `RangeError` for options that cannot be. */
  constructor(options: KernelOptions) {
    this.apicIds = checkApicIds(options);
    this.cpus = this.apicIds.length;
    this.bits = checkBits(options.bits ?? 64);
    this.semantics = guestSemantics(options.guestSemantics ?? "v6.19");
    this.behaviour = GUEST_SEMANTICS[this.semantics];
    this.apicDrivers = apicDrivers(this);
    this.apic = chooseApicDriver(this.apicDrivers, options.apic ?? "x2apic-physical");
    checkDriven(this.apicIds, this.apic);
    this.main = options.main;
    this.secondary = options.secondary ?? ((cpu) => this.#sched?.idle(cpu) ?? idle(cpu));
    this.#candidates = chooseDrivers(options);

    this.entry = this.text.add((cpu) => startKernel(cpu, this), "start_kernel");
    this.text.addAt(TRAMPOLINE, (cpu) => secondaryStart(cpu, this), "trampoline_start");
    this.#spurious = this.text.add((cpu) => spuriousInterrupt(cpu, this), "spurious_interrupt");
    const fixup = this.text.add(fixupException, "fixup_exception");
    for (const vector of FIXED_UP) this.#gates.set(vector, fixup);
    this.irq(NMI_VECTOR, nothing, "exc_nmi");
    this.irq(RESCHEDULE_VECTOR, nothing, "sysvec_reschedule_ipi");
    const flush = (cpu: X86Cpu): Guest => flushCallFunctionQueue(cpu, this);
    this.irq(CALL_FUNCTION_VECTOR, flush, "sysvec_call_function");
    this.irq(CALL_FUNCTION_SINGLE_VECTOR, flush, "sysvec_call_function_single");

    let end = memoryNeeded(this.cpus);
    const paging = options.paging ?? false;
    const sched = options.sched ?? paging !== false;
    if (sched !== false) {
      this.#sched = new Scheduler(this, end, sched === true ? {} : sched);
      end = this.#sched.end;
    }
    if (paging !== false) {
      if (this.#sched === undefined) {
        throw new RangeError("Cannot build a kernel with paging and without tasks");
      }
      this.#mm = new MemoryManager(this, end, paging === true ? {} : paging);
      end = this.#mm.end;
    }
    this.memory = end;
  }

  // What it was built with.

  /** Whether it has tasks. */
  get hasSched(): boolean {
    return this.#sched !== undefined;
  }

  /** What runs its tasks. Throws `RangeError` where it has none. */
  get sched(): Scheduler {
    if (this.#sched === undefined) {
      throw new RangeError("Cannot schedule: the kernel was built without `sched`");
    }
    return this.#sched;
  }

  /** Whether it has paging. */
  get hasMm(): boolean {
    return this.#mm !== undefined;
  }

  /** Its memory management. Throws `RangeError` where it has none. */
  get mm(): MemoryManager {
    if (this.#mm === undefined) {
      throw new RangeError("Cannot manage memory: the kernel was built without `paging`");
    }
    return this.#mm;
  }

  // Linking: before the kernel is loaded.

  /** Puts a handler of one's own behind a vector, in place of what is there. Throws `RangeError` for other numbers. */
  gate(vector: number, handler: GuestFunction, name?: string): Gva {
    if (!Number.isInteger(vector) || vector < 0 || vector > 255) {
      throw new RangeError(`Cannot handle vector ${vector}: allowed are 0 to 255`);
    }
    const address = this.text.add(handler, name ?? (handler.name || `asm_${vector.toString(16)}`));
    this.#gates.set(vector, address);
    return address;
  }

  /**
   * Handles an interrupt: it is counted and ended, and then the handler does its work with interrupts off. NMIs are not
   * ended. Throws `RangeError` for an exception's vector.
   */
  irq(vector: number, handler: GuestFunction, name?: string): Gva {
    if (vector !== NMI_VECTOR && !(vector >= FIRST_EXTERNAL_VECTOR && vector <= 255)) {
      throw new RangeError(`Cannot handle interrupt ${vector}: allowed are 2 and 32 to 255`);
    }
    const named = name ?? (handler.name || `irq_${vector.toString(16)}`);
    return this.gate(vector, (cpu) => this.#interrupt(cpu, vector, handler), named);
  }

  *#interrupt(cpu: X86Cpu, vector: number, handler: GuestFunction): Guest {
    if (vector !== NMI_VECTOR) yield* this.ackApicIrq(cpu);
    yield* this.countIrq(cpu, vector);
    yield* handler(cpu);
    if (this.#sched !== undefined && vector !== NMI_VECTOR) yield* this.#sched.irqExit(cpu);
  }

  /** Registers a function for calls on other processors, and gives its address. */
  smpFunction(func: SmpFunction, name: string = func.name): Gva {
    const address = this.text.add(notCalled, name || "smp_function");
    this.#functions.set(address, func);
    return address;
  }

  /**
   * Registers a user program, for CPL 3, and gives its address. Where there is paging it lies in the user program's
   * image, which every address space maps.
   */
  user(program: GuestFunction, name: string = program.name): Gva {
    const named = name || "user";
    const address = this.#mm?.addUserText(program, named) ?? this.text.add(program, named);
    this.#users.add(address);
    return address;
  }

  /** Whether a user program begins at an address. */
  isUser(address: number): boolean {
    return this.#users.has(address);
  }

  // Running.

  /** Undoes what an earlier boot has patched: each boot begins with the image as it was linked. */
  unpatch(): void {
    this.#linked ??= this.apicDrivers.map((driver) => ({ ...driver }));
    for (const [n, driver] of this.apicDrivers.entries()) Object.assign(driver, this.#linked[n]);
    this.#drivers = [];
    this.ipiShorthand = false;
    this.log.length = 0;
  }

  /** The function at an address. Throws `RangeError` where none was registered. */
  functionAt(address: number): SmpFunction {
    const func = this.#functions.get(address);
    if (func === undefined) {
      throw new RangeError(`Cannot call 0x${address.toString(16)}: no function was registered there`);
    }
    return func;
  }

  /** The handler of a vector. */
  handlerOf(vector: number): Gva | undefined {
    return this.#gates.get(vector) ?? (vector >= FIRST_EXTERNAL_VECTOR ? this.#spurious : undefined);
  }

  /** Ends the interrupt in service, the way this kernel's drivers have it. */
  ackApicIrq(cpu: X86Cpu): Guest {
    return this.behaviour.eoiHook === "eoi" ? this.apic.eoi(cpu) : this.apic.eoiWrite(cpu, APIC_EOI, 0);
  }

  /** Counts an interrupt in this processor's area. */
  *countIrq(cpu: X86Cpu, vector: number): Guest {
    const counter = cpu.gsBase + PERCPU_AREA.fields.irqs.offset + 4 * vector;
    yield cpu.load32(counter);
    yield cpu.store32(counter, cpu.eax + 1);
  }

  /** Whether a processor is on line (cpu_online); there is no other than the kernel's. */
  *online(cpu: X86Cpu, n: number): GuestValue<boolean> {
    if (!(n >= 0 && n < this.cpus)) return false;
    yield cpu.load32(data("online") + 4 * (n >>> 5));
    return ((cpu.eax >>> (n & 31)) & 1) !== 0;
  }

  /** The address of a processor's counter of a vector. */
  irqCounter(cpu: number, vector: number): number {
    return percpu(cpu, "irqs") + 4 * vector;
  }

  /** Prints a warning, once. */
  warn(text: string): void {
    if (!this.log.includes(text)) this.log.push(text);
  }

  // Paravirtual drivers.

  /** The paravirtual drivers in use. */
  get drivers(): readonly PvDriver[] {
    return this.#drivers;
  }

  /** Probes the paravirtual drivers. */
  *probeDrivers(cpu: X86Cpu): Guest {
    const found: PvDriver[] = [];
    for (const driver of this.#candidates) {
      if (yield* driver.probe(cpu, this)) found.push(driver);
    }
    this.#drivers = found;
  }

  /** Runs a hook of every driver in use. */
  *runHook(cpu: X86Cpu, hook: PvHook): Guest {
    for (const driver of this.#drivers) {
      if (driver[hook] !== undefined) yield* driver[hook](cpu, this);
    }
  }
}

/** The idle loop: sleeps until the next interrupt. */
export function* idle(cpu: X86Cpu): Guest {
  for (;;) {
    yield cpu.sti();
    yield cpu.hlt();
  }
}

/** An interrupt that only had to arrive. */
function* nothing(_cpu: X86Cpu): Guest {}

/** What stands at a function's address: it is called, never jumped to. */
function* notCalled(cpu: X86Cpu): Guest {
  yield cpu.ud2();
}

function checkBits(bits: number): 64 | 32 {
  if (bits !== 64 && bits !== 32) {
    throw new RangeError(`Cannot build a ${bits}-bit kernel: allowed are 64 and 32`);
  }
  return bits;
}

function checkApicIds(options: KernelOptions): readonly number[] {
  const cpus = options.cpus ?? options.apicIds?.length ?? 1;
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > CPU_LIMIT) {
    throw new RangeError(`Cannot build a kernel for ${cpus} processors: allowed are 1 to ${CPU_LIMIT}`);
  }
  const ids = options.apicIds ?? Array.from({ length: cpus }, (_, id) => id);
  if (ids.length !== cpus || new Set(ids).size !== cpus) {
    throw new RangeError(`Cannot build a kernel for ${cpus} processors with APIC IDs ${ids.join(", ")}`);
  }
  return ids;
}

/** Interrupts find a processor by its APIC ID; the one above the highest means everybody. */
function checkDriven(apicIds: readonly number[], { name, maxApicId }: ApicDriver): void {
  for (const id of apicIds) {
    if (!Number.isInteger(id) || id < 0 || id > maxApicId) {
      throw new RangeError(`Cannot drive APIC ID ${id} with ${name}: allowed are 0 to ${maxApicId}`);
    }
  }
}

function chooseDrivers(options: KernelOptions): readonly PvDriver[] {
  const all = [...PV_DRIVERS, ...options.drivers ?? []];
  for (const name of options.disable ?? []) {
    if (!all.some((driver) => driver.name === name)) {
      throw new RangeError(
        `Cannot disable driver ${name}: allowed are ${all.map((driver) => driver.name).join(", ")}`,
      );
    }
  }
  return all.filter((driver) => !options.disable?.includes(driver.name));
}
