/**
 * Guests that map, unmap and use a few pages under the eye of the staleness oracle, for tests.
 *
 * @module
 */

import fc from "fast-check";
import { CR4_PGE, type Guest, PTE_P, PTE_RW, type X86Cpu } from "../../abi/mod.ts";
import type { BackendName } from "../../host/mod.ts";
import { DATA, enableX2apic, type RigOptions, startAps } from "./guests.ts";
import { KERNEL_PAGE, pagingOn, PagingRig, storeEntry } from "./paging.ts";

/** Where the pages are that guests map, unmap and use. */
const BASE = -0x5000_0000_0000;
/** How many. */
export const PAGES = 2;
/** The address of a page. */
export const pageOf = (page: number) => BASE + 4096 * page;
/** Where a frame is. */
export const frameOf = (frame: number) => DATA + 0x1000 * (8 + frame);
/** A word by which programs take turns. */
export const TURN = DATA;

/** What the guest's software tells the oracle. */
export interface Words {
  /** It has changed a page's entry. */
  changed(page: number): void;
  /** It relies on nobody's using what was there before. */
  gone(page: number): void;
}

/** A rig whose machine has the oracle; page i leads to frame i, as a page that may be written. */
export function rigOf(
  backend: BackendName,
  vcpus: number,
  { machine = {}, vm = {} }: Pick<RigOptions, "machine" | "vm"> = {},
): PagingRig & { readonly words: Words } {
  const rig = new PagingRig({ machine: { staleness: true, ...machine }, vm: { ...vm, backend, vcpus } })
    .fixups();
  for (let page = 0; page < PAGES; page++) rig.map(pageOf(page), frameOf(page));
  const oracle = () => rig.vm.machine.staleness!;
  const words: Words = {
    changed: (page) => oracle().changed({ space: "linear", address: pageOf(page), bytes: 4096 }),
    gone: (page) =>
      oracle().gone({ space: "linear", address: pageOf(page), bytes: 4096, reason: "page freed" }),
  };
  return Object.assign(rig, { words });
}

/** Has each vCPU run the same program, which is told its number. What it answers runs them. */
export function everywhere(
  rig: PagingRig,
  vcpus: number,
  program: (cpu: X86Cpu, self: number) => Guest,
): () => void {
  rig.aps(function* ap(cpu) {
    yield* enableX2apic(cpu);
    yield cpu.rdmsr(0x802);
    const self = cpu.eax;
    yield* pagingOn(cpu, rig.tables);
    yield* program(cpu, self);
  });
  return () =>
    void rig.finish(function* bsp(cpu) {
      yield* enableX2apic(cpu);
      if (vcpus > 1) yield* startAps(cpu, vcpus - 1);
      yield* pagingOn(cpu, rig.tables);
      yield* program(cpu, 0);
    });
}

/** Waits until it is an act's turn. */
export function* turn(cpu: X86Cpu, number: number): Guest {
  for (;;) {
    yield cpu.load32(TURN);
    if (cpu.eax === number) return;
    yield cpu.pauseWhile(TURN, cpu.eax);
  }
}

/** What an entry holds. */
export type Entry = "absent" | { readonly frame: number; readonly writable: boolean };

/** What a guest does. */
export type Act =
  | { readonly act: "read" | "gone"; readonly page: number }
  | { readonly act: "set"; readonly page: number; readonly to: Entry }
  | { readonly act: "invlpg"; readonly page: number }
  | { readonly act: "mov cr3" | "toggle PGE" };

/** One of the pages. */
export const page = fc.nat(PAGES - 1);
const entry: fc.Arbitrary<Entry> = fc.oneof(
  { weight: 1, arbitrary: fc.constant("absent" as const) },
  { weight: 3, arbitrary: fc.record({ frame: fc.nat(3), writable: fc.boolean() }) },
);
/** A read. */
export const read = fc.record({ act: fc.constant("read" as const), page });
/** A store to a page's entry. */
export const set = fc.record({ act: fc.constant("set" as const), page, to: entry });
/** INVLPG. */
export const invlpg = fc.record({ act: fc.constant("invlpg" as const), page });
/** Something that flushes all. */
export const flush = fc.record({ act: fc.constantFrom("mov cr3" as const, "toggle PGE" as const) });
/** A declaration. */
export const gone = fc.record({ act: fc.constant("gone" as const), page });

/** Stores a page's entry. */
export function* setEntry(cpu: X86Cpu, rig: PagingRig, page: number, to: Entry): Guest {
  const at = rig.entry(pageOf(page));
  if (to === "absent") yield* storeEntry(cpu, at, 0, { flags: 0 });
  else yield* storeEntry(cpu, at, frameOf(to.frame), { flags: to.writable ? KERNEL_PAGE : PTE_P });
}

/** The entry that a page has in memory. */
export function inMemory(rig: PagingRig, page: number): Entry {
  const low = rig.word(rig.entry(pageOf(page)));
  if ((low & PTE_P) === 0) return "absent";
  return { frame: ((low & ~0xfff) - frameOf(0)) / 4096, writable: (low & PTE_RW) !== 0 };
}

/** Executes a flush. */
export function* doFlush(cpu: X86Cpu, rig: PagingRig, act: Act): Guest {
  if (act.act === "invlpg") {
    yield cpu.invlpg(pageOf(act.page));
  } else if (act.act === "mov cr3") {
    yield* pagingOn(cpu, rig.tables);
  } else {
    yield cpu.movFromCr4();
    yield cpu.movToCr4(cpu.eax ^ CR4_PGE);
  }
}
