/**
 * Page frames: who gives one back sees it used again first, as with the kernel's per-CPU lists. So a translation that
 * outlives its page is soon a translation of somebody else's.
 *
 * A free frame's first word links it to the next.
 *
 * @module
 */

import type { Guest, X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { localIrqRestore, localIrqSave, spinLock, spinUnlock } from "../kernel/spinlock.ts";
import { PAGE_BYTES } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";

/** A frame's physical address; 0 where there is none left. What it holds is anything. */
export function* allocFrame(cpu: X86Cpu, mm: MemoryManager): GuestValue<number> {
  const enabled = yield* localIrqSave(cpu);
  yield* spinLock(cpu, mm.dataAt("lock"));
  yield cpu.load64(mm.dataAt("freeFrames"));
  let frame = cpu.eax;
  if (frame !== 0) {
    yield cpu.load64(mm.virtual(frame));
    yield cpu.store64(mm.dataAt("freeFrames"), cpu.eax);
  } else {
    yield cpu.load64(mm.dataAt("nextFrame"));
    frame = cpu.eax;
    if (frame >= mm.end) frame = 0;
    else yield cpu.store64(mm.dataAt("nextFrame"), frame + PAGE_BYTES);
  }
  if (frame !== 0) yield* count(cpu, mm, 1);
  yield spinUnlock(cpu, mm.dataAt("lock"));
  yield* localIrqRestore(cpu, enabled);
  return frame;
}

/** A frame of zeroes; 0 where there is none left. */
export function* allocZeroed(cpu: X86Cpu, mm: MemoryManager): GuestValue<number> {
  const frame = yield* allocFrame(cpu, mm);
  if (frame !== 0) yield* clearPage(cpu, mm.virtual(frame));
  return frame;
}

/** Stores zeroes. */
export function* clearPage(cpu: X86Cpu, address: number): Guest {
  for (let offset = 0; offset < PAGE_BYTES; offset += 8) yield cpu.store64(address + offset, 0);
}

/** Copies a page. */
export function* copyPage(cpu: X86Cpu, to: number, from: number): Guest {
  for (let offset = 0; offset < PAGE_BYTES; offset += 8) {
    yield cpu.load64(from + offset);
    yield cpu.store64(to + offset, cpu.eax, cpu.raxHigh);
  }
}

/** Gives a frame back. Nobody may have a translation of it any more. */
export function* freeFrame(cpu: X86Cpu, mm: MemoryManager, frame: number): Guest {
  const enabled = yield* localIrqSave(cpu);
  yield* spinLock(cpu, mm.dataAt("lock"));
  yield cpu.load64(mm.dataAt("freeFrames"));
  yield cpu.store64(mm.virtual(frame), cpu.eax);
  yield cpu.store64(mm.dataAt("freeFrames"), frame);
  yield* count(cpu, mm, -1);
  yield spinUnlock(cpu, mm.dataAt("lock"));
  yield* localIrqRestore(cpu, enabled);
}

function* count(cpu: X86Cpu, mm: MemoryManager, change: number): Guest {
  yield cpu.load32(mm.dataAt("used"));
  yield cpu.store32(mm.dataAt("used"), cpu.eax + change);
}
