/**
 * Address spaces (struct mm_struct): made with the user programs' image in them, counted by those who use and those who
 * borrow them, and taken apart with the last of each (kernel/fork.c, mm/mmu_context.c).
 *
 * @module
 */

import { type Guest, LEVEL_PDPT, LEVEL_PML4, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { localIrqRestore, localIrqSave } from "../kernel/spinlock.ts";
import { PF_KTHREAD, taskField } from "../sched/layout.ts";
import { PROT_EXEC, PROT_READ } from "../sched/user.ts";
import { addArea } from "./areas.ts";
import { copyKernelEntries } from "./boot.ts";
import { allocZeroed, freeFrame } from "./frames.ts";
import { MM_STRUCT, MMAP_BASE, mmField, USER_TEXT, VM_IMAGE } from "./layout.ts";
import { exitMmap } from "./unmap.ts";
import { enterLazyTlb, switchMm } from "./switch.ts";
import { entryAt, frameOf, loadEntry } from "./tables.ts";
import type { MemoryManager } from "./manager.ts";

/** Makes an address space, with the user program's image in it. Its address. Throws `RangeError` where there is no room. */
export function* createSpace(cpu: X86Cpu, mm: MemoryManager): GuestValue<number> {
  const space = yield* allocate(cpu, mm);
  const root = yield* allocZeroed(cpu, mm);
  if (root === 0 || !(yield* copyKernelEntries(cpu, mm, root))) {
    throw new RangeError("Cannot make an address space: there are no page frames left");
  }
  yield* describeSpace(cpu, mm, { space, root });
  const image = mm.imageBytes;
  if (image > 0) {
    const area = { start: USER_TEXT, end: USER_TEXT + image, prot: PROT_READ | PROT_EXEC, kind: VM_IMAGE };
    if (!(yield* addArea(cpu, mm, space, area))) {
      throw new RangeError("Cannot make an address space: there are too many mappings");
    }
  }
  return space;
}

function* allocate(cpu: X86Cpu, mm: MemoryManager): GuestValue<number> {
  for (let n = 1; n <= mm.spaceLimit; n++) {
    const space = mm.spaceAt(n);
    yield cpu.cmpxchg32(mmField(space, "inUse"), 0, 1);
    if (cpu.zf) return space;
  }
  throw new RangeError(
    `Cannot make an address space: there are ${mm.spaceLimit} already, the most allowed`,
  );
}

/** Describes an address space whose PML4 is at `root`: one user, and nothing mapped. */
export function* describeSpace(
  cpu: X86Cpu,
  mm: MemoryManager,
  { space, root }: { readonly space: number; readonly root: number },
): Guest {
  for (let offset = 0; offset < MM_STRUCT.size; offset += 8) {
    if (offset !== MM_STRUCT.fields.inUse.offset) yield cpu.store64(space + offset, 0);
  }
  yield cpu.store32(mmField(space, "users"), 1);
  yield cpu.store32(mmField(space, "count"), 1);
  yield cpu.store64(mmField(space, "pgd"), root);
  yield cpu.xadd32(mm.dataAt("ctxIds"), 1);
  const ctxId = cpu.eax + 1;
  yield cpu.store64(mmField(space, "ctxId"), ctxId);
  // Each somewhere else, as randomization would have it: what a witness is told of one is not true of another.
  const base = MMAP_BASE - (ctxId % 64) * 2 ** 40;
  yield cpu.store64(mmField(space, "base"), base, base / 2 ** 32);
}

/** One more user of an address space (mmget). */
export function* getSpace(cpu: X86Cpu, space: number): Guest {
  yield cpu.xadd32(mmField(space, "users"), 1);
}

/** One user less; with the last one everything is unmapped (mmput). */
export function* putSpace(cpu: X86Cpu, mm: MemoryManager, space: number): Guest {
  yield cpu.xadd32(mmField(space, "users"), -1);
  if (cpu.eax !== 1) return;
  yield* exitMmap(cpu, mm, space);
  yield* dropSpace(cpu, mm, space);
}

/** One borrower less; with the last one the PML4 is given back (mmdrop). */
export function* dropSpace(cpu: X86Cpu, mm: MemoryManager, space: number): Guest {
  yield cpu.xadd32(mmField(space, "count"), -1);
  if (cpu.eax !== 1) return;
  for (const table of yield* ownTables(cpu, mm, space)) yield* freeFrame(cpu, mm, table);
  yield cpu.store32(mmField(space, "inUse"), 0);
}

/** The PML4, and the tables in which an address space has its copies of the kernel's entries (pgd_free). */
function* ownTables(cpu: X86Cpu, mm: MemoryManager, space: number): GuestValue<number[]> {
  yield cpu.load64(mmField(space, "pgd"));
  const root = cpu.eax;
  const pdpt = frameOf(yield* loadEntry(cpu, yield* entryAt(cpu, mm, 0, { root, level: LEVEL_PML4 })));
  const pd = frameOf(yield* loadEntry(cpu, yield* entryAt(cpu, mm, 0, { root, level: LEVEL_PDPT })));
  return [pd, pdpt, root];
}

/** A kernel thread uses an address space for a while (kthread_use_mm). */
export function* useSpace(cpu: X86Cpu, mm: MemoryManager, space: number): Guest {
  const enabled = yield* localIrqSave(cpu);
  const task = yield* mm.kernel.sched.current(cpu);
  yield cpu.load64(taskField(task, "activeMm"));
  const borrowed = cpu.eax;
  yield cpu.xadd32(mmField(space, "count"), 1);
  yield cpu.store64(taskField(task, "activeMm"), space);
  yield cpu.store64(taskField(task, "mm"), space);
  yield* switchMm(cpu, mm, space);
  yield* localIrqRestore(cpu, enabled);
  yield* dropSpace(cpu, mm, borrowed);
}

/** It uses it no more (kthread_unuse_mm): what is loaded stays borrowed. */
export function* unuseSpace(cpu: X86Cpu, mm: MemoryManager): Guest {
  const enabled = yield* localIrqSave(cpu);
  const task = yield* mm.kernel.sched.current(cpu);
  yield cpu.store64(taskField(task, "mm"), 0);
  yield* enterLazyTlb(cpu, mm);
  yield* localIrqRestore(cpu, enabled);
}

/** The current task ends: its share of its address space is given back (exit_mm). */
export function* exitTask(cpu: X86Cpu, mm: MemoryManager, task: number): Guest {
  yield cpu.load64(taskField(task, "mm"));
  const space = cpu.eax;
  if (space === 0) return;
  yield cpu.load32(taskField(task, "flags"));
  if ((cpu.eax & PF_KTHREAD) !== 0) return yield* unuseSpace(cpu, mm); // It had no share, but used it.
  const enabled = yield* localIrqSave(cpu);
  yield cpu.xadd32(mmField(space, "count"), 1); // It is borrowed from here on.
  yield cpu.store64(taskField(task, "mm"), 0);
  yield* enterLazyTlb(cpu, mm);
  yield* localIrqRestore(cpu, enabled);
  yield* putSpace(cpu, mm, space);
}
