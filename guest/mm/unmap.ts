/**
 * What is mapped no more: pages are taken out of the tables, and tables that serve nobody else (free_pgtables); when no
 * processor can use them any more they are given back (mmu_gather).
 *
 * @module
 */

import { type Guest, LEVEL_PD, LEVEL_PML4, PTE_P, shiftOf, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { allAreas, removeArea } from "./areas.ts";
import { freeFrame } from "./frames.ts";
import { mmField, PAGE_BYTES, TASK_SIZE, TLB_FLUSH_ALL } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";
import { flushTlbMmRange } from "./shootdown.ts";
import { clearEntry, entryAt, frameOf, holdsFrame, loadEntry, presentEntries } from "./tables.ts";

/** A range of addresses. */
export interface Range {
  /** Its first byte. */
  readonly start: number;
  /** Behind its last. */
  readonly end: number;
}

/** Takes pages out of the tables, and tables that serve nobody else; has them flushed; gives them back (unmap_region). */
export function* zapRange(cpu: X86Cpu, mm: MemoryManager, space: number, { start, end }: Range): Guest {
  yield cpu.load64(mmField(space, "pgd"));
  const root = cpu.eax;
  const gone: Gone = { frames: [], first: Infinity, last: -Infinity };
  yield* presentEntries(
    cpu,
    mm,
    { root, start, end },
    (entry, address) => zap(cpu, mm, { entry, address }, gone),
  );
  const areas = yield* allAreas(cpu, space);
  const tables = yield* takeTables(cpu, mm, root, {
    start,
    end,
    floor: Math.max(0, ...areas.map((area) => area.end > start ? area.start < end ? end : 0 : area.end)),
    ceiling: Math.min(
      TASK_SIZE + PAGE_BYTES,
      ...areas.map((area) => area.start >= end ? area.start : Infinity),
    ),
  });
  if (gone.last < 0 && tables.length === 0) return;
  const flushed = tables.length > 0 ? { start, end } : { start: gone.first, end: gone.last + PAGE_BYTES };
  yield* flushTlbMmRange(cpu, mm, space, { ...flushed, freedTables: tables.length > 0 });
  mm.witness.gone({ address: flushed.start, bytes: flushed.end - flushed.start }, "page freed");
  yield* giveBack(cpu, mm, space, gone.frames);
  yield* freeTables(cpu, mm, space, tables);
}

/** What was taken out of tables: frames to be given back, and the first and the last page. */
interface Gone {
  readonly frames: number[];
  first: number;
  last: number;
}

function* zap(
  cpu: X86Cpu,
  mm: MemoryManager,
  { entry, address }: { readonly entry: number; readonly address: number },
  gone: Gone,
): Guest {
  if (!holdsFrame(yield* loadEntry(cpu, entry))) return;
  mm.witness.changed({ address, bytes: PAGE_BYTES });
  const old = yield* clearEntry(cpu, entry);
  gone.frames.push(frameOf(old));
  gone.first = Math.min(gone.first, address);
  gone.last = address;
}

function* giveBack(cpu: X86Cpu, mm: MemoryManager, space: number, frames: readonly number[]): Guest {
  for (const frame of frames) {
    if (!(yield* mm.owns(cpu, frame))) continue; // The image's, or the page of zeroes.
    yield* freeFrame(cpu, mm, frame);
    yield cpu.xadd32(mmField(space, "resident"), -1);
  }
}

/** Unmaps everything, and gives the tables back (exit_mmap). Nobody runs in the address space any more. */
export function* exitMmap(cpu: X86Cpu, mm: MemoryManager, space: number): Guest {
  yield cpu.load64(mmField(space, "pgd"));
  const root = cpu.eax;
  const gone: Gone = { frames: [], first: Infinity, last: -Infinity };
  const areas = yield* allAreas(cpu, space);
  const tables: number[] = [];
  for (const area of areas) {
    yield* presentEntries(
      cpu,
      mm,
      { root, ...area },
      (entry, address) => zap(cpu, mm, { entry, address }, gone),
    );
    yield* removeArea(cpu, mm, space, area);
    tables.push(...yield* takeTables(cpu, mm, root, { ...area, floor: 0, ceiling: TASK_SIZE + PAGE_BYTES }));
  }
  yield* flushTlbMmRange(cpu, mm, space, { start: 0, end: TLB_FLUSH_ALL, freedTables: true });
  for (const { start, end } of areas) mm.witness.gone({ address: start, bytes: end - start }, "page freed");
  yield* giveBack(cpu, mm, space, gone.frames);
  yield* freeTables(cpu, mm, space, tables);
}

interface TableRange extends Range {
  /** Nothing is mapped from here on before the range. */
  readonly floor: number;
  /** And up to here behind it. */
  readonly ceiling: number;
}

/** Takes out the tables that serve a range and nothing else (free_pgtables): their physical addresses. */
function* takeTables(cpu: X86Cpu, mm: MemoryManager, root: number, range: TableRange): GuestValue<number[]> {
  const tables: number[] = [];
  for (let level = LEVEL_PD; level <= LEVEL_PML4; level++) {
    const span = 2 ** shiftOf(level);
    for (let region = Math.floor(range.start / span) * span; region < range.end; region += span) {
      if (region < range.floor || region + span > range.ceiling) continue;
      if (region === 0) continue; // The tables with its own copies of the kernel's entries go with the PML4.
      const at = yield* entryAt(cpu, mm, region, { root, level });
      if (at === 0) continue;
      const entry = yield* loadEntry(cpu, at);
      if ((entry.low & PTE_P) === 0) continue;
      yield cpu.store64(at, 0);
      tables.push(frameOf(entry));
    }
  }
  return tables;
}

function* freeTables(cpu: X86Cpu, mm: MemoryManager, space: number, tables: readonly number[]): Guest {
  for (const table of tables) {
    yield* freeFrame(cpu, mm, table);
    yield cpu.xadd32(mmField(space, "tables"), -1);
  }
}
