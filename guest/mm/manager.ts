/**
 * A kernel's memory management: one of these is in each kernel that was built with `paging`. What it remembers is in
 * guest memory (layout.ts), what it found out at boot is patched in.
 *
 * @module
 */

import { BLOCK, type Guest, type GuestFunction, type Gva, PF_VECTOR, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { data, percpu, USER_IMAGE, USER_IMAGE_SIZE } from "../kernel/memory_map.ts";
import { taskField } from "../sched/layout.ts";
import { PROT_READ, PROT_WRITE } from "../sched/user.ts";
import { buildKernelTables, detect, enableFeatures, enablePaging, enterLongMode } from "./boot.ts";
import { pageFault } from "./fault.ts";
import { allocFrame, allocZeroed, freeFrame } from "./frames.ts";
import {
  isUserRange,
  MM_DATA,
  MM_STRUCT,
  mmField,
  PAGE_BYTES,
  PAGE_OFFSET,
  TLB_FLUSH_CEILING,
  TLB_STATE,
  tlbOffset,
  USER_TEXT,
  VM_AREA,
} from "./layout.ts";
import { addMemoryCalls, mapAnonymous } from "./mappings.ts";
import {
  type FlushRange,
  flushTlbAll,
  flushTlbAllLocal,
  flushTlbFunction,
  flushTlbMmRange,
} from "./shootdown.ts";
import { contextOffset, finishSwitch, loadCr3, switchTasks } from "./switch.ts";
import { NO_WITNESS, type TranslationWitness } from "./witness.ts";
import {
  createSpace,
  describeSpace,
  dropSpace,
  exitTask,
  getSpace,
  putSpace,
  unuseSpace,
  useSpace,
} from "./address_space.ts";

/** How a kernel manages memory. Everything has a default. */
export interface MmOptions {
  /** Page frames for tables and user pages; 2048, which are 8 MiB, by default. */
  readonly frames?: number;
  /** Address spaces that there may be at a time; 16 by default. */
  readonly spaces?: number;
  /** Mappings that there may be at a time, in all address spaces; 512 by default. */
  readonly mappings?: number;
  /** Pages above which a range is flushed whole (tlb_single_page_flush_ceiling); 33 by default. */
  readonly flushCeiling?: number;
  /** Whether PCIDs are used where the processors have them (without "nopcid"); true by default. */
  readonly pcid?: boolean;
  /** Watches what the kernel does to translations. */
  readonly witness?: TranslationWitness;
  /** A deviation, for oracles to find: shootdowns forget this processor. None by default. */
  readonly shootdownForgets?: number;
  /**
   * Another one: a processor that switches marks itself as switching only after it has read tlb_gen, so that a shootdown
   * in between passes it by. What Linux could do until commit 83b0177a6c48 ("x86/mm: Fix SMP ordering in
   * switch_mm_irqs_off()", v6.18). False by default.
   */
  readonly marksSwitchLate?: boolean;
}

/**
 * Manages memory.
 *
 * @example A program uses memory that it has mapped, and ends where it touches memory that it has not
 * ```ts
 * import { Machine } from "@exitless/exitless";
 * import { Kernel, mmap, munmap } from "@exitless/exitless/guest";
 * import { assertEquals, assertMatch } from "@std/assert";
 *
 * const kernel: Kernel = new Kernel({
 *   paging: true,
 *   *main(cpu, kernel) {
 *     const mm = yield* kernel.mm.create(cpu);
 *     yield* kernel.sched.spawn(cpu, { entry: program, mm });
 *     yield* kernel.mm.put(cpu, mm);
 *     yield* kernel.sched.waitForAll(cpu);
 *   },
 * });
 * const program: number = kernel.user(function* program(cpu) {
 *   const memory = yield* mmap(cpu, 4096);
 *   yield cpu.store32(memory, 7); // A page fault brings a page of zeroes.
 *   yield cpu.load32(memory);
 *   assertEquals(cpu.eax, 7);
 *   yield* munmap(cpu, memory, 4096);
 *   yield cpu.load32(memory);
 * });
 * const vm = new Machine().createVm();
 * vm.load(kernel.text);
 * vm.start(kernel.entry);
 * assertEquals(vm.machine.run().end, "finished");
 * assertMatch(kernel.log[0], /^task 1: segfault at 0x[0-9a-f]+ ip 0x[0-9a-f]+ error 0x4: no mapping there$/);
 * ```
 */
export class MemoryManager {
  /** The kernel. */
  readonly kernel: Kernel;
  /** Who watches. */
  readonly witness: TranslationWitness;
  /** Pages above which a range is flushed whole. */
  readonly ceiling: number;
  /** The processor that shootdowns forget. */
  readonly forgets: number | undefined;
  /** Whether switches are marked late. */
  readonly marksLate: boolean;
  /** Whether PCIDs may be used. */
  readonly allowsPcid: boolean;
  /** Address spaces that there may be besides the kernel's own. */
  readonly spaceLimit: number;
  /** The kernel's own address space (init_mm): no user pages. */
  readonly init: number;
  /** One past the last place for the description of a mapping. */
  readonly areasEnd: number;
  /** Where the kernel's image and data end, and frames begin. */
  readonly kernelEnd: number;
  /** Where memory ends. */
  readonly end: number;
  /** The address of {@linkcode flushTlbFunction}. */
  readonly flushFunction: Gva;
  /** The address of what flushes everything. */
  readonly flushAllFunction: Gva;

  /** Patched at boot: the processors have PCIDs. */
  pcid = false;
  /** Patched at boot: they have global pages. */
  pge = false;
  /** Patched at boot: they have SMEP. */
  smep = false;
  /** Patched at boot: they have SMAP. */
  smap = false;
  /** Patched at boot: they have INVPCID. */
  invpcid = false;
  /** Patched at boot: they have no-execute pages. */
  nx = false;
  /** Patched at boot: the physical address of the kernel's PML4. */
  kernelRoot = 0;

  readonly #data: number;
  readonly #spaces: number;

  readonly #areas: number;
  /** Set at boot, when addresses are no longer flat. */
  #offset = 0;
  #text = 0;

  /** Links it into a kernel; its memory begins at `start`. Throws `RangeError` for options that cannot be. */
  constructor(kernel: Kernel, start: number, options: MmOptions) {
    this.kernel = kernel;
    this.witness = options.witness ?? NO_WITNESS;
    this.ceiling = options.flushCeiling ?? TLB_FLUSH_CEILING;
    this.forgets = options.shootdownForgets;
    this.marksLate = options.marksSwitchLate ?? false;
    this.allowsPcid = options.pcid ?? true;
    this.spaceLimit = whole("address spaces", options.spaces ?? 16, 1, 1024);
    const mappings = whole("mappings", options.mappings ?? 512, 1, 65_536);
    const frames = whole("page frames", options.frames ?? 2048, 16, 1 << 20);
    this.#data = start;
    this.#spaces = start + 2 * MM_STRUCT.size;
    this.init = this.#spaces;
    this.#areas = this.#spaces + (this.spaceLimit + 1) * MM_STRUCT.size;
    this.areasEnd = this.#areas + mappings * VM_AREA.size;
    this.kernelEnd = Math.ceil(this.areasEnd / PAGE_BYTES) * PAGE_BYTES;
    this.end = this.kernelEnd + frames * PAGE_BYTES;
    if (this.kernelEnd > USER_TEXT) {
      throw new RangeError(
        `Cannot build a kernel with paging for ${kernel.cpus} processors: it ends above ${USER_TEXT}`,
      );
    }
    kernel.gate(PF_VECTOR, (cpu) => pageFault(cpu, this), "asm_exc_page_fault");
    this.flushFunction = kernel.smpFunction(
      (cpu, info) => flushTlbFunction(cpu, this, info),
      "flush_tlb_func",
    );
    this.flushAllFunction = kernel.smpFunction((cpu) => flushTlbAllLocal(cpu, this), "do_flush_tlb_all");
    addMemoryCalls(kernel.sched.syscalls);
  }

  // Linking.

  /** Puts a user program into the image that every address space maps, and gives its address there. */
  addUserText(program: GuestFunction, name: string): Gva {
    const offset = this.#text;
    if (offset === USER_IMAGE_SIZE) throw new RangeError("Cannot add a user program: the image is full");
    this.#text += BLOCK;
    const address = (USER_TEXT + offset) as Gva;
    return this.kernel.text.addMapped({ address, load: USER_IMAGE + offset }, program, name);
  }

  // Booting.

  /** The boot processor's part: builds the kernel's tables and goes on with them. */
  *boot(cpu: X86Cpu): Guest {
    this.#offset = 0;
    yield* detect(cpu, this);
    for (let offset = 0; offset < MM_DATA.size; offset += 8) yield cpu.store64(this.#data + offset, 0);
    yield cpu.store64(this.dataAt("nextFrame"), this.kernelEnd);
    yield cpu.store64(this.dataAt("nextArea"), this.#areas);
    for (let n = 0; n <= this.spaceLimit; n++) yield cpu.store32(mmField(this.spaceAt(n), "inUse"), 0);
    this.kernelRoot = yield* buildKernelTables(cpu, this);
    yield* describeSpace(cpu, this, { space: this.init, root: this.kernelRoot });
    const zeroes = yield* allocZeroed(cpu, this);
    yield cpu.store64(this.dataAt("zeroPage"), zeroes);
    yield* enablePaging(cpu, this);
    this.#offset = PAGE_OFFSET;
  }

  /** The way of every other processor into long mode. */
  enterLongMode(cpu: X86Cpu): Guest {
    return enterLongMode(cpu, this);
  }

  /** Each processor's part (initialize_tlbstate_and_flush): the kernel's own address space has its first PCID. */
  *bootProcessor(cpu: X86Cpu, n: number): Guest {
    yield* enableFeatures(cpu, this);
    const state = percpu(n, "tlb");
    for (let offset = 0; offset < TLB_STATE.size; offset += 8) yield cpu.store64(state + offset, 0);
    yield* loadCr3(cpu, this, { pgd: this.kernelRoot, asid: 0, flush: true });
    yield cpu.store64(cpu.gsBase + tlbOffset("loadedMm"), this.init);
    yield cpu.store32(cpu.gsBase + tlbOffset("nextAsid"), 1);
    yield cpu.load64(mmField(this.init, "ctxId"));
    yield cpu.store64(cpu.gsBase + contextOffset(0).ctxId, cpu.eax);
  }

  /** The idle task of a processor borrows the kernel's own address space. */
  *adoptIdle(cpu: X86Cpu, task: number): Guest {
    yield cpu.store64(taskField(task, "activeMm"), this.init);
    yield cpu.xadd32(mmField(this.init, "count"), 1);
  }

  // Address spaces.

  /** Maps anonymous memory for those who will run in an address space: its address; 0 where there is no room. */
  map(
    cpu: X86Cpu,
    space: number,
    bytes: number,
    prot: number = PROT_READ | PROT_WRITE,
  ): GuestValue<number> {
    return mapAnonymous(cpu, this, space, { bytes, prot });
  }

  /** See {@linkcode createSpace}. */
  create(cpu: X86Cpu): GuestValue<number> {
    return createSpace(cpu, this);
  }

  /** See {@linkcode getSpace}. */
  get(cpu: X86Cpu, space: number): Guest {
    return getSpace(cpu, space);
  }

  /** See {@linkcode putSpace}. */
  put(cpu: X86Cpu, space: number): Guest {
    return putSpace(cpu, this, space);
  }

  /** See {@linkcode dropSpace}. */
  drop(cpu: X86Cpu, space: number): Guest {
    return dropSpace(cpu, this, space);
  }

  /** See {@linkcode useSpace}. */
  use(cpu: X86Cpu, space: number): Guest {
    return useSpace(cpu, this, space);
  }

  /** See {@linkcode unuseSpace}. */
  unuse(cpu: X86Cpu): Guest {
    return unuseSpace(cpu, this);
  }

  /** See {@linkcode exitTask}. */
  exitTask(cpu: X86Cpu, task: number): Guest {
    return exitTask(cpu, this, task);
  }

  // The scheduler's.

  /** See {@linkcode switchTasks}. */
  switchTasks(cpu: X86Cpu, previous: number, next: number): Guest {
    return switchTasks(cpu, this, previous, next);
  }

  /** See {@linkcode finishSwitch}. */
  finishSwitch(cpu: X86Cpu): Guest {
    return finishSwitch(cpu, this);
  }

  // Accesses and frames.

  /** Flushes a range of an address space on all processors that run in it: see {@linkcode flushTlbMmRange}. */
  flushRange(cpu: X86Cpu, space: number, range: FlushRange): Guest {
    return flushTlbMmRange(cpu, this, space, range);
  }

  /** Flushes all translations of all processors. */
  flushAll(cpu: X86Cpu): Guest {
    return flushTlbAll(cpu, this, data("online"));
  }

  /** Whether an address that a user program gave is one of its own (access_ok). */
  accessOk(address: number, bytes: number): boolean {
    return isUserRange(address, bytes);
  }

  /** No fault can be served from here on, or again (pagefault_disable, pagefault_enable). */
  *disableFaults(cpu: X86Cpu, change: 1 | -1): Guest {
    const counter = cpu.gsBase + tlbOffset("faultsOff");
    yield cpu.load32(counter);
    yield cpu.store32(counter, cpu.eax + change);
  }

  /** Takes a page frame; 0 where there is none. */
  allocFrame(cpu: X86Cpu): GuestValue<number> {
    return allocFrame(cpu, this);
  }

  /** Gives a page frame back. */
  freeFrame(cpu: X86Cpu, frame: number): Guest {
    return freeFrame(cpu, this, frame);
  }

  /** Whether a frame that a user page has is that page's own. */
  *owns(cpu: X86Cpu, frame: number): GuestValue<boolean> {
    if (frame < this.kernelEnd) return false;
    yield cpu.load64(this.dataAt("zeroPage"));
    return cpu.eax !== frame;
  }

  /** The linear address of a physical one. */
  virtual(physical: number): number {
    return this.#offset + physical;
  }

  /** The address of one of its variables. */
  dataAt(name: keyof typeof MM_DATA.fields): number {
    return this.#data + MM_DATA.fields[name].offset;
  }

  /** Bytes of the user programs' image. */
  get imageBytes(): number {
    return Math.ceil(this.#text / PAGE_BYTES) * PAGE_BYTES;
  }

  /** The address of an address space's description: 0 is the kernel's own. */
  spaceAt(n: number): number {
    return this.#spaces + MM_STRUCT.size * n;
  }
}

function whole(what: string, value: number, min: number, max: number): number {
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw new RangeError(`Cannot have ${value} ${what}: allowed are ${min} to ${max}`);
}
