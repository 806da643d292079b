/**
 * mmap, munmap, mprotect and madvise (mm/mmap.c, mm/mprotect.c, mm/madvise.c) of anonymous private memory.
 *
 * @module
 */

import { type Guest, PageFault, PTE_NX_HIGH, PTE_P, PTE_RW, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { currentTask } from "../sched/core.ts";
import { taskField } from "../sched/layout.ts";
import type { Scheduler } from "../sched/scheduler.ts";
import {
  EFAULT,
  EINVAL,
  ENOMEM,
  NR_getrusage,
  NR_madvise,
  NR_mmap,
  NR_mprotect,
  NR_munmap,
  type Syscall,
  type SyscallArguments,
  type SyscallTable,
} from "../sched/syscalls.ts";
import {
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_PRIVATE,
  PROT_EXEC,
  PROT_READ,
  PROT_SEM,
  PROT_WRITE,
} from "../sched/user.ts";
import { mutexLock, mutexUnlock } from "../sched/wait.ts";
import { addArea, areasIn, freeRange, removeArea, setProt, splitArea } from "./areas.ts";
import { isUserRange, mmField, PAGE_BYTES, USER_HIGH, VM_ANONYMOUS } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";
import { flushTlbMmRange } from "./shootdown.ts";
import {
  clearEntry,
  type Entry,
  holdsFrame,
  loadEntry,
  presentEntries,
  PTE_PROTNONE,
  storeEntry,
} from "./tables.ts";
import { putUser32 } from "./uaccess.ts";
import { type Range, zapRange } from "./unmap.ts";

/** Adds them to a table of system calls. */
export function addMemoryCalls(table: SyscallTable): void {
  table.add(NR_mmap, inSpace(mmap));
  table.add(NR_munmap, inSpace(munmap));
  table.add(NR_mprotect, inSpace(mprotect));
  table.add(NR_madvise, inSpace(madvise));
  table.add(NR_getrusage, getrusage);
}

/** Maps anonymous memory into an address space from within the kernel (vm_mmap): its address; 0 where there is no room. */
export function* mapAnonymous(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  { bytes, prot }: { readonly bytes: number; readonly prot: number },
): GuestValue<number> {
  const { sched } = mm.kernel;
  yield* mutexLock(cpu, sched, mmField(space, "lock"));
  const result = yield* mmap(cpu, mm, space, [0, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS]);
  yield* mutexUnlock(cpu, sched, mmField(space, "lock"));
  return Math.max(result, 0);
}

const RUSAGE_SELF = 0;
/** struct rusage's ru_minflt: behind two struct timeval and four longs. */
const RU_MINFLT = 64;

/** Stores how many faults the program has had; of a struct rusage, that field alone. */
function* getrusage(cpu: X86Cpu, sched: Scheduler, args: SyscallArguments): GuestValue<number> {
  const [who, address] = args;
  if (who !== RUSAGE_SELF) return -EINVAL;
  yield cpu.load64(taskField(yield* currentTask(cpu), "mm"));
  yield cpu.load32(mmField(cpu.eax, "faults"));
  const faults = cpu.eax;
  try {
    yield* putUser32(cpu, sched.kernel, address + RU_MINFLT, faults);
    yield* putUser32(cpu, sched.kernel, address + RU_MINFLT + 4, 0);
    return 0;
  } catch (fault) {
    if (fault instanceof PageFault) return -EFAULT;
    throw fault;
  }
}

/** A system call on an address space. */
type SpaceCall = (
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  args: SyscallArguments,
) => GuestValue<number>;

/** Runs a call on the current task's address space, with its lock. */
function inSpace(call: SpaceCall): Syscall {
  return function* (cpu: X86Cpu, sched: Scheduler, args: SyscallArguments): GuestValue<number> {
    yield cpu.load64(taskField(yield* currentTask(cpu), "mm"));
    const space = cpu.eax;
    yield* mutexLock(cpu, sched, mmField(space, "lock"));
    const result = yield* call(cpu, sched.kernel.mm, space, args);
    yield* mutexUnlock(cpu, sched, mmField(space, "lock"));
    return result;
  };
}

function aligned(address: number): boolean {
  return address % PAGE_BYTES === 0;
}

function pages(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
}

/** The rights that mappings have. */
const PROT_RIGHTS = PROT_READ | PROT_WRITE | PROT_EXEC;

function* mmap(cpu: X86Cpu, mm: MemoryManager, space: number, args: SyscallArguments): GuestValue<number> {
  const [wanted, length, prot, flags] = args;
  const bytes = pages(length);
  // do_mmap: each mapping has one of the types of MAP_TYPE. Shared ones, and files, are not modelled.
  if (!(length > 0) || (flags & ~MAP_FIXED) !== (MAP_PRIVATE | MAP_ANONYMOUS)) return -EINVAL;
  let start = wanted;
  if ((flags & MAP_FIXED) !== 0) {
    if (!aligned(start)) return -EINVAL;
    if (!isUserRange(start, bytes)) return -ENOMEM;
    const result = yield* unmapRange(cpu, mm, space, { start, end: start + bytes });
    if (result < 0) return result;
  } else {
    yield cpu.load64(mmField(space, "base"));
    const below = cpu.raxHigh * 2 ** 32 + cpu.eax;
    start = yield* freeRange(cpu, space, { bytes, below, floor: USER_HIGH });
    if (start === 0) return -ENOMEM;
  }
  const area = {
    start,
    end: start + bytes,
    prot: prot & PROT_RIGHTS,
    kind: VM_ANONYMOUS,
  };
  return (yield* addArea(cpu, mm, space, area)) ? start : -ENOMEM;
}

function* munmap(cpu: X86Cpu, mm: MemoryManager, space: number, args: SyscallArguments): GuestValue<number> {
  const [start, length] = args;
  if (!aligned(start) || !(length > 0) || !isUserRange(start, pages(length))) return -EINVAL;
  return yield* unmapRange(cpu, mm, space, { start, end: start + pages(length) });
}

function* unmapRange(cpu: X86Cpu, mm: MemoryManager, space: number, range: Range): GuestValue<number> {
  const { start, end } = range;
  if (!(yield* splitArea(cpu, mm, space, start)) || !(yield* splitArea(cpu, mm, space, end))) return -ENOMEM;
  const areas = yield* areasIn(cpu, space, start, end);
  for (const area of areas) yield* removeArea(cpu, mm, space, area);
  if (areas.length > 0) yield* zapRange(cpu, mm, space, range);
  return 0;
}

function* madvise(cpu: X86Cpu, mm: MemoryManager, space: number, args: SyscallArguments): GuestValue<number> {
  const [start, length, advice] = args;
  if (!aligned(start) || advice !== MADV_DONTNEED || !isUserRange(start, pages(length))) return -EINVAL;
  const end = start + pages(length);
  const areas = yield* areasIn(cpu, space, start, end);
  yield* zapRange(cpu, mm, space, { start, end });
  return covers(areas, start, end) ? 0 : -ENOMEM;
}

/** Whether mappings leave no hole in a range. */
function covers(areas: readonly Range[], start: number, end: number): boolean {
  let upTo = start;
  for (const area of areas) {
    if (area.start > upTo) return false;
    upTo = area.end;
  }
  return upTo >= end;
}

function* mprotect(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  args: SyscallArguments,
): GuestValue<number> {
  const [start, length, asked] = args;
  if (!aligned(start) || (asked & ~(PROT_RIGHTS | PROT_SEM)) !== 0) return -EINVAL; // arch_validate_prot
  const prot = asked & PROT_RIGHTS;
  const end = start + pages(length);
  if (!isUserRange(start, end - start) || !covers(yield* areasIn(cpu, space, start, end), start, end)) {
    return -ENOMEM;
  }
  if (!(yield* splitArea(cpu, mm, space, start)) || !(yield* splitArea(cpu, mm, space, end))) return -ENOMEM;
  for (const area of yield* areasIn(cpu, space, start, end)) yield setProt(cpu, area, prot);
  yield* changeProtection(cpu, mm, space, { start, end, prot });
  return 0;
}

/** Takes rights out of the tables, and has them flushed. Rights that are added come with the next fault. */
function* changeProtection(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  { start, end, prot }: Range & { readonly prot: number },
): Guest {
  yield cpu.load64(mmField(space, "pgd"));
  const root = cpu.eax;
  let first = Infinity;
  let last = -Infinity;
  yield* presentEntries(cpu, mm, { root, start, end }, function* (entry, address) {
    const now = yield* loadEntry(cpu, entry);
    const wanted = withProt(mm, now, prot);
    if (!holdsFrame(now) || (wanted.low === now.low && wanted.high === now.high)) return;
    mm.witness.changed({ address, bytes: PAGE_BYTES });
    const old = yield* clearEntry(cpu, entry); // ptep_modify_prot_start: A and D are in the answer.
    yield storeEntry(cpu, entry, withProt(mm, old, prot));
    if (!needsFlush(old, wanted)) return;
    first = Math.min(first, address);
    last = address;
  });
  if (last < 0) return;
  const flushed = { start: first, end: last + PAGE_BYTES };
  yield* flushTlbMmRange(cpu, mm, space, flushed);
  mm.witness.gone({ address: first, bytes: flushed.end - first }, "access rights removed");
}

/** An entry with no more rights than these, as far as the processors can take them away. */
function withProt(mm: MemoryManager, entry: Entry, prot: number): Entry {
  const present = prot === 0 ? PTE_PROTNONE : PTE_P;
  const noExecute = (prot & PROT_EXEC) === 0 && mm.nx;
  return {
    low: ((entry.low & ~(PTE_P | PTE_PROTNONE | ((prot & PROT_WRITE) === 0 ? PTE_RW : 0))) | present) >>> 0,
    high: ((entry.high & ~PTE_NX_HIGH) | (noExecute ? PTE_NX_HIGH : 0)) >>> 0,
  };
}

/**
 * Whether others must forget the old entry, which they have where it was present: for a right that is lost, and for NX that
 * is cleared too (pte_needs_flush).
 */
function needsFlush(old: Entry, now: Entry): boolean {
  if ((old.low & PTE_P) === 0) return false;
  return (old.low & ~now.low & (PTE_P | PTE_RW)) !== 0 || ((old.high ^ now.high) & PTE_NX_HIGH) !== 0;
}
