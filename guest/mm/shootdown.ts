/**
 * TLB shootdowns (arch/x86/mm/tlb.c, as of v6.18): whoever has taken something out of an address space's tables counts its
 * tlb_gen up, interrupts the processors that have it loaded and are not lazy, and waits until each has flushed: page by
 * page, or all of it where that is less work. All others learn from tlb_gen that they owe a flush when they load it.
 *
 * @module
 */

import { CR4_PGE, type Guest, type X86Cpu } from "../../abi/mod.ts";
import {
  addTo,
  type GuestValue,
  loadMask,
  maskWords,
  removeFrom,
  storeMask,
  weight,
} from "../kernel/cpumask.ts";
import { loadU64, storeU64 } from "../kernel/long.ts";
import { smpCallFunctionMany } from "../kernel/smp.ts";
import { localIrqRestore, localIrqSave } from "../kernel/spinlock.ts";
import {
  LOADED_MM_SWITCHING,
  mmField,
  PAGE_BYTES,
  TLB_FLUSH_ALL,
  TLB_STATE,
  tlbOf,
  tlbOffset,
} from "./layout.ts";
import type { MemoryManager } from "./manager.ts";
import { contextOffset, switchMm } from "./switch.ts";

/** What is to be flushed. */
export interface FlushRange {
  /** The first address. */
  readonly start: number;
  /** One past the last; {@linkcode TLB_FLUSH_ALL} is everything. */
  readonly end: number;
  /** Tables go as well: lazy processors must not keep any of them, as processors walk ahead of programs. */
  readonly freedTables?: boolean;
}

const LOADED = tlbOffset("loadedMm");
const INFO = tlbOffset("infoMm");
const at = (name: "infoMm" | "infoStart" | "infoEnd" | "infoGen"): number =>
  TLB_STATE.fields[name].offset - TLB_STATE.fields.infoMm.offset;

/** Flushes a range of an address space wherever it may be cached (flush_tlb_mm_range). With interrupts on. */
export function* flushTlbMmRange(cpu: X86Cpu, mm: MemoryManager, space: number, range: FlushRange): Guest {
  const { start, end, freedTables = false } = range;
  const all = end === TLB_FLUSH_ALL || (end - start) / PAGE_BYTES > mm.ceiling;
  yield cpu.xadd32(mmField(space, "tlbGen"), 1); // Also the barrier that switch_mm's reading of tlb_gen meets.
  const generation = cpu.eax + 1;
  const info = cpu.gsBase + INFO;
  yield cpu.store64(info + at("infoMm"), space);
  yield* storeU64(cpu, 64, info + at("infoStart"), all ? 0 : start);
  yield* storeU64(cpu, 64, info + at("infoEnd"), all ? TLB_FLUSH_ALL : end);
  yield* storeU64(cpu, 64, info + at("infoGen"), generation);
  const mask = yield* targets(cpu, mm, space, freedTables);
  if (weight(mask) === 0) return;
  yield* count(cpu, "shootdowns");
  const address = cpu.gsBase + tlbOffset("infoMask");
  yield* storeMask(cpu, address, mask);
  yield* smpCallFunctionMany(cpu, mm.kernel, address, { func: mm.flushFunction, info, runLocal: true });
}

/** The processors that have to flush now. */
function* targets(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  freedTables: boolean,
): GuestValue<Uint32Array> {
  const { cpus } = mm.kernel;
  yield cpu.load32(cpu.gsBase);
  const self = cpu.eax;
  const mask = yield* loadMask(cpu, mmField(space, "cpumask"), cpus);
  const found = new Uint32Array(maskWords(cpus));
  for (let n = 0; n < cpus; n++) {
    if (((mask[n >>> 5] >>> (n & 31)) & 1) === 0) continue;
    if (freedTables || (yield* shouldFlush(cpu, n, space))) addTo(found, n);
  }
  if (mm.forgets !== undefined && mm.forgets !== self) removeFrom(found, mm.forgets);
  return found;
}

/**
 * should_flush_tlb: lazy processors catch up by themselves, and so do those that have something else loaded. Linux
 * interrupts the latter too once a second, so that they leave the mask (trim_cpumask); here, as there, they also leave it
 * when tables go.
 */
function* shouldFlush(cpu: X86Cpu, n: number, space: number): GuestValue<boolean> {
  yield cpu.load64(tlbOf(n, "loadedMm"));
  const loaded = cpu.eax;
  yield cpu.load32(tlbOf(n, "isLazy"));
  if (cpu.eax !== 0) return false;
  return loaded === space || loaded === LOADED_MM_SWITCHING;
}

/** What each of them does, with interrupts off (flush_tlb_func). `info` is where the one who asks says what. */
export function* flushTlbFunction(cpu: X86Cpu, mm: MemoryManager, info: number): Guest {
  const area = cpu.gsBase;
  yield cpu.load64(area + LOADED);
  const loaded = cpu.eax;
  if (info !== area + INFO) yield* count(cpu, "remoteFlushes");
  yield cpu.load64(info + at("infoMm"));
  const space = cpu.eax;
  if (space !== loaded) { // It is in the mask, but has gone on to something else.
    yield cpu.load32(area);
    yield cpu.lockBtr(mmField(space, "cpumask"), cpu.eax);
    return;
  }
  if (loaded === mm.init) return;
  yield cpu.load32(area + tlbOffset("isLazy"));
  if (cpu.eax !== 0) {
    yield* switchMm(cpu, mm, mm.init);
    return;
  }
  yield cpu.load32(area + tlbOffset("loadedAsid"));
  const caughtUp = area + contextOffset(cpu.eax).tlbGen;
  yield cpu.load32(caughtUp);
  const local = cpu.eax;
  const wanted = yield* loadU64(cpu, 64, info + at("infoGen"));
  if (wanted <= local) return; // Another one's flush has taken this one along.
  yield cpu.load32(mmField(loaded, "tlbGen"));
  const generation = cpu.eax;
  const end = yield* loadU64(cpu, 64, info + at("infoEnd"));
  if (end !== TLB_FLUSH_ALL && wanted === local + 1 && wanted === generation) {
    const start = yield* loadU64(cpu, 64, info + at("infoStart"));
    for (let address = start; address < end; address += PAGE_BYTES) yield cpu.invlpg(address);
    yield* count(cpu, "pageFlushes");
  } else {
    yield* flushTlbLocal(cpu);
    yield* count(cpu, "fullFlushes");
  }
  yield cpu.store32(caughtUp, generation);
}

/** Flushes what this processor has cached for the present PCID, global pages aside: CR3 is loaded with itself. */
function* flushTlbLocal(cpu: X86Cpu): Guest {
  yield cpu.movFromCr3();
  yield cpu.movToCr3(cpu.eax, cpu.raxHigh);
}

/** INVPCID's type 2: all contexts, including global translations (SDM 2A, INVPCID). */
const INVPCID_ALL_WITH_GLOBALS = 2;

/**
 * Flushes all that this processor has cached (__flush_tlb_all): by INVPCID, or by turning global pages off and on. Without
 * global pages there are no PCIDs either, and every flush is total.
 */
export function* flushTlbAllLocal(cpu: X86Cpu, mm: MemoryManager): Guest {
  const enabled = yield* localIrqSave(cpu);
  if (!mm.pge) {
    yield* flushTlbLocal(cpu);
  } else if (mm.invpcid) {
    const descriptor = cpu.gsBase + tlbOffset("descriptor");
    yield cpu.store64(descriptor, 0);
    yield cpu.store64(descriptor + 8, 0);
    yield cpu.invpcid(INVPCID_ALL_WITH_GLOBALS, descriptor);
  } else {
    yield cpu.movFromCr4();
    const cr4 = cpu.eax;
    yield cpu.movToCr4(cr4 ^ CR4_PGE);
    yield cpu.movToCr4(cr4);
  }
  yield* localIrqRestore(cpu, enabled);
}

/** Flushes everything everywhere, the kernel's own translations too (flush_tlb_all). */
export function* flushTlbAll(cpu: X86Cpu, mm: MemoryManager, online: number): Guest {
  yield* smpCallFunctionMany(cpu, mm.kernel, online, { func: mm.flushAllFunction, info: 0, runLocal: true });
}

function* count(cpu: X86Cpu, name: "remoteFlushes" | "shootdowns" | "fullFlushes" | "pageFlushes"): Guest {
  const counter = cpu.gsBase + tlbOffset(name);
  yield cpu.load32(counter);
  yield cpu.store32(counter, cpu.eax + 1);
}
