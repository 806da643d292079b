/**
 * Page faults (arch/x86/mm/fault.c, mm/memory.c). Pages of anonymous mappings come when they are touched: a read gets the
 * one page of zeroes, a write a page of its own. A fault that somebody else has served in the meantime is spurious. Faults
 * of one address space are served one after the other, where the kernel serves those of different mappings at once. What
 * no mapping allows ends a user task, and goes to the fixup of the kernel's own accesses.
 *
 * @module
 */

import {
  FLAG_AC,
  FLAG_IF,
  type Guest,
  hex,
  linearAddress,
  PFERR_FETCH,
  PFERR_PRESENT,
  PFERR_RSVD,
  PFERR_USER,
  PFERR_WRITE,
  PTE_A,
  PTE_D,
  PTE_P,
  PTE_RW,
  PTE_US,
  RFLAGS,
  type X86Cpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { USER_IMAGE } from "../kernel/memory_map.ts";
import { currentTask, exitToUser } from "../sched/core.ts";
import { taskField } from "../sched/layout.ts";
import { killTask, SIGKILL, SIGSEGV } from "../sched/task.ts";
import { PROT_EXEC, PROT_READ, PROT_WRITE } from "../sched/user.ts";
import { mutexLock, mutexUnlock } from "../sched/wait.ts";
import { type Area, findArea } from "./areas.ts";
import { allocFrame, clearPage, copyPage } from "./frames.ts";
import { isUserRange, mmField, PAGE_BYTES, tlbOffset, USER_TEXT, VM_IMAGE } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";
import { flushTlbMmRange } from "./shootdown.ts";
import {
  clearEntry,
  type Entry,
  entryAt,
  entryFor,
  frameOf,
  loadEntry,
  storeEntry,
  TABLE,
} from "./tables.ts";

/** What became of a fault: nothing is left to do, or why the access cannot be. */
type Outcome = "served" | "no memory" | Refusal;
type Refusal =
  | "a kernel address"
  | "no mapping there"
  | "the mapping does not allow it"
  | "a reserved bit in the tables"
  | "the kernel touched user memory without STAC"
  | "the kernel executed user memory"
  | "no fault may be served here";

/** A fault. */
interface Fault {
  readonly address: number;
  readonly errorCode: number;
}

/** The #PF handler (exc_page_fault): it begins with interrupts off, so that CR2 is still this fault's. */
export function* pageFault(cpu: X86Cpu, mm: MemoryManager): Guest {
  yield cpu.movFromCr2();
  const fault: Fault = { address: linearAddress(cpu.eax, cpu.raxHigh)!, errorCode: cpu.errorCode };
  const user = cpu.interruptedCpl === 3;
  const flags = cpu.top.below.regs[RFLAGS];
  if ((flags & FLAG_IF) !== 0) yield cpu.sti();
  const outcome = yield* serve(cpu, mm, fault, (flags & FLAG_AC) !== 0);
  if (outcome !== "served") yield* refuse(cpu, mm, fault, outcome);
  if ((flags & FLAG_IF) !== 0) yield cpu.cli();
  if (user) yield* exitToUser(cpu, mm.kernel.sched);
}

function* serve(cpu: X86Cpu, mm: MemoryManager, fault: Fault, ac: boolean): GuestValue<Outcome> {
  const { address, errorCode } = fault;
  if (!isUserRange(address, 1)) return "a kernel address";
  if ((errorCode & PFERR_RSVD) !== 0) return "a reserved bit in the tables";
  if ((errorCode & (PFERR_USER | PFERR_FETCH)) === PFERR_FETCH) return "the kernel executed user memory";
  if ((errorCode & PFERR_USER) === 0 && mm.smap && !ac) return "the kernel touched user memory without STAC";
  yield cpu.load32(cpu.gsBase + tlbOffset("faultsOff"));
  if (cpu.eax !== 0) return "no fault may be served here";
  yield cpu.load64(taskField(yield* currentTask(cpu), "mm"));
  const space = cpu.eax;
  if (space === 0) return "no mapping there";
  const { sched } = mm.kernel;
  yield cpu.xadd32(mmField(space, "faults"), 1);
  yield* mutexLock(cpu, sched, mmField(space, "lock"));
  const area = yield* findArea(cpu, space, address);
  const outcome = area === undefined
    ? "no mapping there"
    : allows(area, errorCode)
    ? yield* handle(cpu, mm, space, { ...fault, area })
    : "the mapping does not allow it";
  yield* mutexUnlock(cpu, sched, mmField(space, "lock"));
  return outcome;
}

/**
 * Whether a mapping allows an access (access_error). A page that is there and can be neither read nor executed will not
 * change by being served. One that is not there is served to whoever executes it, without PROT_EXEC too: then it is there.
 */
function allows({ prot }: Area, errorCode: number): boolean {
  if ((errorCode & PFERR_WRITE) !== 0) return (prot & PROT_WRITE) !== 0;
  return (errorCode & PFERR_PRESENT) === 0 && (prot & (PROT_READ | PROT_WRITE | PROT_EXEC)) !== 0;
}

interface MappedFault extends Fault {
  readonly area: Area;
}

/** handle_mm_fault, with the address space locked. */
function* handle(cpu: X86Cpu, mm: MemoryManager, space: number, fault: MappedFault): GuestValue<Outcome> {
  const { errorCode, area } = fault;
  const page = Math.floor(fault.address / PAGE_BYTES) * PAGE_BYTES;
  const write = (errorCode & PFERR_WRITE) !== 0;
  yield cpu.load64(mmField(space, "pgd"));
  const at = yield* entryAt(cpu, mm, page, {
    root: cpu.eax,
    make: TABLE,
    *made() {
      yield cpu.xadd32(mmField(space, "tables"), 1);
    },
  });
  if (at === 0) return "no memory";
  const now = yield* loadEntry(cpu, at);
  const noExecute = (area.prot & PROT_EXEC) === 0 && mm.nx;
  if ((now.low & PTE_P) === 0) {
    if (area.kind === VM_IMAGE) {
      const frame = USER_IMAGE + page - USER_TEXT;
      yield storeEntry(cpu, at, entryFor(frame, PTE_P | PTE_US | PTE_A, noExecute));
      return "served";
    }
    if (!write) {
      yield cpu.load64(mm.dataAt("zeroPage"));
      yield storeEntry(cpu, at, entryFor(cpu.eax, PTE_P | PTE_US | PTE_A, noExecute));
      return "served";
    }
    return yield* ownPage(cpu, mm, space, { at, noExecute });
  }
  if (!write || (now.low & PTE_RW) !== 0) return "served"; // Somebody was here before, or the TLB knew an old entry.
  return yield* writeProtected(cpu, mm, space, { at, now, page, noExecute });
}

const WRITABLE = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D;

interface OwnPage {
  readonly at: number;
  readonly noExecute: boolean;
  /** The frame that it is a copy of; zeroes where that is left out. */
  readonly copyOf?: number;
}

/** A page of its own (do_anonymous_page, do_cow_fault). */
function* ownPage(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  { at, noExecute, copyOf }: OwnPage,
): GuestValue<Outcome> {
  const frame = yield* allocFrame(cpu, mm);
  if (frame === 0) return "no memory";
  if (copyOf === undefined) yield* clearPage(cpu, mm.virtual(frame));
  else yield* copyPage(cpu, mm.virtual(frame), mm.virtual(copyOf));
  yield storeEntry(cpu, at, entryFor(frame, WRITABLE, noExecute));
  yield cpu.xadd32(mmField(space, "resident"), 1);
  return "served";
}

interface Protected {
  readonly at: number;
  readonly now: Entry;
  readonly page: number;
  readonly noExecute: boolean;
}

/**
 * A write to a page that is there and cannot be written (do_wp_page). One of its own becomes writable: no other
 * processor has to forget that it was not. The page of zeroes, or one of the image, is replaced by a copy, and nobody may
 * read it here any more before the copy can be written.
 */
function* writeProtected(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  { at, now, page, noExecute }: Protected,
): GuestValue<Outcome> {
  const frame = frameOf(now);
  if (yield* mm.owns(cpu, frame)) {
    yield storeEntry(cpu, at, { low: (now.low | PTE_RW | PTE_A | PTE_D) >>> 0, high: now.high });
    return "served";
  }
  mm.witness.changed({ address: page, bytes: PAGE_BYTES });
  yield* clearEntry(cpu, at);
  yield* flushTlbMmRange(cpu, mm, space, { start: page, end: page + PAGE_BYTES });
  mm.witness.gone({ address: page, bytes: PAGE_BYTES }, "page replaced by a copy");
  yield cpu.load64(mm.dataAt("zeroPage"));
  return yield* ownPage(cpu, mm, space, { at, noExecute, ...cpu.eax === frame ? {} : { copyOf: frame } });
}

/** The access cannot be: bad_area, or out of memory. */
function* refuse(cpu: X86Cpu, mm: MemoryManager, fault: Fault, why: Exclude<Outcome, "served">): Guest {
  const { address, errorCode } = fault;
  const what = `${hex(BigInt.asUintN(64, BigInt(address)))} ip ${hex(cpu.interruptedRip)} error ${
    hex(errorCode)
  }`;
  if (cpu.interruptedCpl === 3) {
    const [signal, name] = why === "no memory" ? [SIGKILL, "out of memory"] : [SIGSEGV, "segfault"];
    yield* killTask(cpu, mm.kernel.sched, signal, `${name} at ${what}: ${why}`);
  }
  // Whose fault it is knows what to do: uaccess does. Nobody else expects one.
  if (!EXPECTED.has(why)) {
    const oops = `BUG: unable to handle page fault for address ${what}: ${why}`;
    mm.kernel.log.push(oops);
    if ((errorCode & PFERR_FETCH) !== 0) throw new Error(oops); // Nothing can go on there.
  }
  cpu.fixup();
}

/** What the kernel's accesses to user memory may come to. */
const EXPECTED: ReadonlySet<Outcome> = new Set<Outcome>([
  "no mapping there",
  "the mapping does not allow it",
  "no fault may be served here",
  "no memory",
]);
