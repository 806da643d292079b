/**
 * The mappings of an address space: a list in the order of their addresses (struct vm_area_struct; the kernel has a maple
 * tree). Whoever looks at them holds the address space's lock.
 *
 * @module
 */

import type { Guest, X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { loadU64, storeU64 } from "../kernel/long.ts";
import { localIrqRestore, localIrqSave, spinLock, spinUnlock } from "../kernel/spinlock.ts";
import { areaField, mmField, VM_AREA } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";

/** A mapping, as it was loaded. */
export interface Area {
  /** Where it is described. */
  readonly at: number;
  /** Its first address. */
  readonly start: number;
  /** One past its last. */
  readonly end: number;
  /** PROT_READ, PROT_WRITE, PROT_EXEC. */
  readonly prot: number;
  /** What its pages are. */
  readonly kind: number;
}

/** Loads a mapping. */
function* load(cpu: X86Cpu, at: number): GuestValue<Area> {
  const start = yield* loadU64(cpu, 64, areaField(at, "start"));
  const end = yield* loadU64(cpu, 64, areaField(at, "end"));
  yield cpu.load32(areaField(at, "prot"));
  const prot = cpu.eax;
  yield cpu.load32(areaField(at, "kind"));
  return { at, start, end, prot, kind: cpu.eax };
}

/** The mapping that holds an address; undefined where there is none (vma_lookup). */
export function* findArea(cpu: X86Cpu, space: number, address: number): GuestValue<Area | undefined> {
  yield cpu.load64(mmField(space, "mappings"));
  for (let at = cpu.eax; at !== 0; at = cpu.eax) {
    if ((yield* loadU64(cpu, 64, areaField(at, "end"))) > address) {
      const area = yield* load(cpu, at);
      return area.start <= address ? area : undefined;
    }
    yield cpu.load64(areaField(at, "next"));
  }
  return undefined;
}

/** Every mapping, in order. */
export function* allAreas(cpu: X86Cpu, space: number): GuestValue<Area[]> {
  const areas: Area[] = [];
  yield cpu.load64(mmField(space, "mappings"));
  for (let at = cpu.eax; at !== 0; at = cpu.eax) {
    areas.push(yield* load(cpu, at));
    yield cpu.load64(areaField(at, "next"));
  }
  return areas;
}

/** The mappings that a range touches, in order. */
export function* areasIn(cpu: X86Cpu, space: number, start: number, end: number): GuestValue<Area[]> {
  return (yield* allAreas(cpu, space)).filter((area) => area.start < end && area.end > start);
}

/** The highest free range of some bytes below a limit and above `floor`; 0 where there is none (vm_unmapped_area). */
export function* freeRange(
  cpu: X86Cpu,
  space: number,
  { bytes, below, floor }: { readonly bytes: number; readonly below: number; readonly floor: number },
): GuestValue<number> {
  let end = below;
  for (const area of (yield* allAreas(cpu, space)).reverse()) {
    if (area.start >= end) continue;
    if (area.end <= end - bytes) break;
    end = area.start;
  }
  return end - bytes >= floor ? end - bytes : 0;
}

/** Adds a mapping. False where there is no memory to describe it. */
export function* addArea(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  area: Omit<Area, "at">,
): GuestValue<boolean> {
  const at = yield* allocate(cpu, mm);
  if (at === 0) return false;
  yield* storeU64(cpu, 64, areaField(at, "start"), area.start);
  yield* storeU64(cpu, 64, areaField(at, "end"), area.end);
  yield cpu.store32(areaField(at, "prot"), area.prot);
  yield cpu.store32(areaField(at, "kind"), area.kind);
  let link = mmField(space, "mappings");
  for (;;) {
    yield cpu.load64(link);
    const next = cpu.eax;
    if (next === 0 || (yield* loadU64(cpu, 64, areaField(next, "start"))) > area.start) {
      yield cpu.store64(areaField(at, "next"), next);
      yield cpu.store64(link, at);
      return true;
    }
    link = areaField(next, "next");
  }
}

/** Takes a mapping out. */
export function* removeArea(cpu: X86Cpu, mm: MemoryManager, space: number, { at }: Area): Guest {
  let link = mmField(space, "mappings");
  for (;;) {
    yield cpu.load64(link);
    if (cpu.eax === at) break;
    link = areaField(cpu.eax, "next");
  }
  yield cpu.load64(areaField(at, "next"));
  yield cpu.store64(link, cpu.eax);
  yield* release(cpu, mm, at);
}

/** Cuts a mapping in two at an address (split_vma). False where there is no memory to describe the second. */
export function* splitArea(
  cpu: X86Cpu,
  mm: MemoryManager,
  space: number,
  address: number,
): GuestValue<boolean> {
  const area = yield* findArea(cpu, space, address);
  if (area === undefined || area.start === address) return true;
  yield* storeU64(cpu, 64, areaField(area.at, "end"), address);
  if (yield* addArea(cpu, mm, space, { ...area, start: address })) return true;
  yield* storeU64(cpu, 64, areaField(area.at, "end"), area.end);
  return false;
}

/** Changes what may be done with a mapping. */
export function setProt(cpu: X86Cpu, { at }: Area, prot: number): number {
  return cpu.store32(areaField(at, "prot"), prot);
}

function* allocate(cpu: X86Cpu, mm: MemoryManager): GuestValue<number> {
  const enabled = yield* localIrqSave(cpu);
  yield* spinLock(cpu, mm.dataAt("lock"));
  yield cpu.load64(mm.dataAt("freeAreas"));
  let at = cpu.eax;
  if (at !== 0) {
    yield cpu.load64(areaField(at, "next"));
    yield cpu.store64(mm.dataAt("freeAreas"), cpu.eax);
  } else {
    yield cpu.load64(mm.dataAt("nextArea"));
    at = cpu.eax;
    if (at + VM_AREA.size > mm.areasEnd) at = 0;
    else yield cpu.store64(mm.dataAt("nextArea"), at + VM_AREA.size);
  }
  yield spinUnlock(cpu, mm.dataAt("lock"));
  yield* localIrqRestore(cpu, enabled);
  return at;
}

function* release(cpu: X86Cpu, mm: MemoryManager, at: number): Guest {
  const enabled = yield* localIrqSave(cpu);
  yield* spinLock(cpu, mm.dataAt("lock"));
  yield cpu.load64(mm.dataAt("freeAreas"));
  yield cpu.store64(areaField(at, "next"), cpu.eax);
  yield cpu.store64(mm.dataAt("freeAreas"), at);
  yield spinUnlock(cpu, mm.dataAt("lock"));
  yield* localIrqRestore(cpu, enabled);
}
