/**
 * Which address space a processor has loaded (arch/x86/mm/tlb.c, as of v6.18). Each processor gives out six PCIDs of its
 * own, and knows for each which address space it belongs to and up to which change of that space's tables (tlb_gen) its
 * TLB has caught up. So coming back to an address space mostly flushes nothing.
 *
 * Kernel threads and idle tasks need none: they keep what is loaded, lazily. A lazy processor is not interrupted by
 * shootdowns, as it uses no user address; it catches up when it is lazy no more.
 *
 * @module
 */

import { CR3_NO_FLUSH_HIGH, type Guest, high, low, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { rqOffset, taskField } from "../sched/layout.ts";
import { LOADED_MM_SWITCHING, mmField, TLB_NR_DYN_ASIDS, tlbOffset } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";

const LOADED = tlbOffset("loadedMm");
const ASID = tlbOffset("loadedAsid");
const NEXT_ASID = tlbOffset("nextAsid");
const LAZY = tlbOffset("isLazy");
const CONTEXTS = tlbOffset("contexts");

/** Where in a processor's area an address-space identifier's ctx_id and tlb_gen are. */
export function contextOffset(asid: number): { readonly ctxId: number; readonly tlbGen: number } {
  return { ctxId: CONTEXTS + 16 * asid, tlbGen: CONTEXTS + 16 * asid + 8 };
}

/** Loads an address space, with interrupts off (switch_mm_irqs_off). */
export function* switchMm(cpu: X86Cpu, mm: MemoryManager, next: number): Guest {
  const area = cpu.gsBase;
  yield cpu.load64(area + LOADED);
  const loaded = cpu.eax;
  yield cpu.load32(area + LAZY);
  const wasLazy = cpu.eax !== 0;
  yield cpu.store32(area + LAZY, 0);
  yield cpu.load32(area + ASID);
  let asid = cpu.eax;
  let flush = true;
  let generation: number;
  if (loaded === next) {
    if (!wasLazy) return;
    yield cpu.load32(mmField(next, "tlbGen"));
    generation = cpu.eax;
    yield cpu.load32(area + contextOffset(asid).tlbGen);
    if (cpu.eax === generation) return;
    // Shootdowns have passed it by while it was lazy.
  } else {
    // Either a shootdown finds the mark, and interrupts this processor, or its tlb_gen is found here, or both.
    if (!mm.marksLate) yield cpu.store64(area + LOADED, LOADED_MM_SWITCHING);
    // The mask is left lazily: see should_flush_tlb.
    if (next !== mm.init) {
      yield cpu.load32(area);
      yield cpu.lockBts(mmField(next, "cpumask"), cpu.eax);
    }
    yield cpu.load32(mmField(next, "tlbGen"));
    generation = cpu.eax;
    ({ asid, flush } = yield* chooseAsid(cpu, mm, next, generation));
    if (mm.marksLate) yield cpu.store64(area + LOADED, LOADED_MM_SWITCHING);
  }
  yield cpu.load64(mmField(next, "pgd"));
  const pgd = cpu.eax;
  if (flush) {
    yield cpu.load64(mmField(next, "ctxId"));
    yield cpu.store64(area + contextOffset(asid).ctxId, cpu.eax);
    yield cpu.store64(area + contextOffset(asid).tlbGen, generation);
  }
  yield* loadCr3(cpu, mm, { pgd, asid, flush });
  yield cpu.store64(area + LOADED, next);
  yield cpu.store32(area + ASID, asid);
}

interface Choice {
  readonly asid: number;
  readonly flush: boolean;
}

/** choose_new_asid: the identifier that the address space has here already, or the next one in turn. */
function* chooseAsid(
  cpu: X86Cpu,
  mm: MemoryManager,
  next: number,
  generation: number,
): GuestValue<Choice> {
  if (!mm.pcid) return { asid: 0, flush: true };
  const area = cpu.gsBase;
  yield cpu.load64(mmField(next, "ctxId"));
  const ctxId = cpu.eax;
  for (let asid = 0; asid < TLB_NR_DYN_ASIDS; asid++) {
    yield cpu.load64(area + contextOffset(asid).ctxId);
    if (cpu.eax !== ctxId) continue;
    yield cpu.load32(area + contextOffset(asid).tlbGen);
    return { asid, flush: cpu.eax < generation };
  }
  yield cpu.load32(area + NEXT_ASID);
  const asid = cpu.eax >= TLB_NR_DYN_ASIDS ? 0 : cpu.eax;
  yield cpu.store32(area + NEXT_ASID, asid + 1);
  return { asid, flush: true };
}

/** What CR3 is loaded with. */
export interface Cr3 extends Choice {
  /** The physical address of the PML4. */
  readonly pgd: number;
}

/** build_cr3 and build_cr3_noflush: identifier n is PCID n + 1, so that 0 is nobody's. */
export function* loadCr3(cpu: X86Cpu, mm: MemoryManager, { pgd, asid, flush }: Cr3): Guest {
  const pcid = mm.pcid ? asid + 1 : 0;
  yield cpu.movToCr3(low(pgd) | pcid, high(pgd) | (flush ? 0 : CR3_NO_FLUSH_HIGH));
}

/** What is loaded stays, as user addresses will not be used until the next {@linkcode switchMm} (enter_lazy_tlb). */
export function* enterLazyTlb(cpu: X86Cpu, mm: MemoryManager): Guest {
  yield cpu.load64(cpu.gsBase + LOADED);
  if (cpu.eax !== mm.init) yield cpu.store32(cpu.gsBase + LAZY, 1);
}

/** The address-space part of a switch of tasks (context_switch), with interrupts off. */
export function* switchTasks(cpu: X86Cpu, mm: MemoryManager, previous: number, next: number): Guest {
  yield cpu.load64(taskField(previous, "mm"));
  const fromUser = cpu.eax !== 0;
  yield cpu.load64(taskField(next, "mm"));
  const nextMm = cpu.eax;
  if (nextMm !== 0) {
    yield* switchMm(cpu, mm, nextMm);
    if (fromUser) return;
    yield cpu.load64(taskField(previous, "activeMm"));
    yield cpu.store64(cpu.gsBase + rqOffset("previousMm"), cpu.eax); // Dropped by who comes after.
    yield cpu.store64(taskField(previous, "activeMm"), 0);
    return;
  }
  yield* enterLazyTlb(cpu, mm);
  yield cpu.load64(taskField(previous, "activeMm"));
  const active = cpu.eax;
  yield cpu.store64(taskField(next, "activeMm"), active);
  if (fromUser) yield cpu.xadd32(mmField(active, "count"), 1);
  else yield cpu.store64(taskField(previous, "activeMm"), 0);
}

/** The rest of it, with the run queue unlocked: the address space that was borrowed is given back. */
export function* finishSwitch(cpu: X86Cpu, mm: MemoryManager): Guest {
  yield cpu.load64(cpu.gsBase + rqOffset("previousMm"));
  const borrowed = cpu.eax;
  if (borrowed === 0) return;
  yield cpu.store64(cpu.gsBase + rqOffset("previousMm"), 0);
  yield* mm.drop(cpu, borrowed);
}
