/**
 * The address spaces, and what memory management keeps in guest memory.
 *
 *     linear address         what
 *     0x0000_0000 ...        the kernel's image and data, at their physical addresses: supervisor, global
 *     0x0400_0000 ...        the user program's image: user, read and execute
 *     0xfee0_0000            the local APIC's page: supervisor, global
 *     0x1_0000_0000 ...      mappings of user programs, from the top down
 *     0x7fff_ffff_f000       the end of user space (TASK_SIZE_MAX)
 *     0xffff_8880_0000_0000  all of physical memory (PAGE_OFFSET): supervisor, global
 *
 * A kernel of Linux's lives in the upper half alone. This one's text has to lie below 2 GiB, so that tables of user space
 * share their first entry with it: each address space has its own copies of the kernel's entries in its first PDPT and PD,
 * as it has in its PML4. They never change once the kernel has booted.
 *
 * @module
 */

import { type Layout, layout } from "../../abi/mod.ts";
import { MASK_WORDS, percpu, PERCPU_AREA, PERCPU_TLB_SIZE } from "../kernel/memory_map.ts";

/** Bytes of a page. */
export const PAGE_BYTES = 4096;
/** Where the user program's image is mapped. */
export const USER_TEXT = 0x400_0000;
/** One past the last address that user programs may have below 4 GiB. */
const USER_LOW_END = 0xc000_0000;
/** The first address that user programs may have above it. */
export const USER_HIGH = 0x1_0000_0000;
/** One past the last address of user space (TASK_SIZE_MAX). */
export const TASK_SIZE = 0x7fff_ffff_f000;
/** Below it mappings are placed. */
export const MMAP_BASE = 0x7fff_f7ff_f000;
/** All of physical memory (PAGE_OFFSET of 4-level paging): 0xffff888000000000. */
export const PAGE_OFFSET: number = -0x7780_0000_0000;

/** An address space (struct mm_struct, and its context). */
export const MM_STRUCT: Layout<
  | "pgd"
  | "ctxId"
  | "tlbGen"
  | "users"
  | "count"
  | "lock"
  | "faults"
  | "mappings"
  | "resident"
  | "tables"
  | "base"
  | "inUse"
  | "cpumask"
> = layout("mm_struct", {
  pgd: "u64",
  ctxId: "u64",
  tlbGen: "u64",
  users: "u32",
  count: "u32",
  lock: "u32",
  faults: "u32",
  mappings: "u64",
  resident: "u32",
  tables: "u32",
  base: "u64",
  inUse: "u64",
  cpumask: ["u32", MASK_WORDS],
}, { size: 256 });

/** A mapping of an address space (struct vm_area_struct): the next one has higher addresses. */
export const VM_AREA: Layout<"next" | "start" | "end" | "prot" | "kind"> = layout("vm_area_struct", {
  next: "u64",
  start: "u64",
  end: "u64",
  prot: "u32",
  kind: "u32",
});

/** A mapping's pages are zeroes at first. */
export const VM_ANONYMOUS = 0;
/** A mapping's pages are the user program's image. */
export const VM_IMAGE = 1;

/** The variables of memory management. */
export const MM_DATA: Layout<
  | "lock"
  | "used"
  | "nextFrame"
  | "freeFrames"
  | "freeAreas"
  | "nextArea"
  | "ctxIds"
  | "zeroPage"
> = layout("mm_data", {
  lock: "u32",
  used: "u32",
  nextFrame: "u64",
  freeFrames: "u64",
  freeAreas: "u64",
  nextArea: "u64",
  ctxIds: "u64",
  zeroPage: "u64",
}, { size: 64 });

/** Address-space identifiers that a processor gives out: each is a PCID (TLB_NR_DYN_ASIDS). */
export const TLB_NR_DYN_ASIDS = 6;

/** What a processor knows of its TLB (struct tlb_state), and its shootdowns. */
export const TLB_STATE: Layout<
  | "loadedMm"
  | "loadedAsid"
  | "nextAsid"
  | "isLazy"
  | "faultsOff"
  | "contexts"
  | "infoMm"
  | "infoStart"
  | "infoEnd"
  | "infoGen"
  | "infoMask"
  | "descriptor"
  | "remoteFlushes"
  | "shootdowns"
  | "fullFlushes"
  | "pageFlushes"
> = layout("tlb_state", {
  loadedMm: "u64",
  loadedAsid: "u32",
  nextAsid: "u32",
  isLazy: "u32",
  faultsOff: "u32",
  contexts: ["u64", 2 * TLB_NR_DYN_ASIDS],
  infoMm: "u64",
  infoStart: "u64",
  infoEnd: "u64",
  infoGen: "u64",
  infoMask: ["u32", MASK_WORDS],
  descriptor: ["u64", 2],
  remoteFlushes: "u32",
  shootdowns: "u32",
  fullFlushes: "u32",
  pageFlushes: "u32",
}, { size: PERCPU_TLB_SIZE });

/** {@linkcode TLB_STATE}'s `loadedMm` while CR3 is about to change. */
export const LOADED_MM_SWITCHING = 1;
/** The end of a range that is everything. */
export const TLB_FLUSH_ALL: number = 2 ** 52;
/** Ranges of more pages are flushed whole (tlb_single_page_flush_ceiling, arch/x86/mm/tlb.c: 33). */
export const TLB_FLUSH_CEILING = 33;

const TLB = PERCPU_AREA.fields.tlb.offset;

/** Where in a processor's area, from its GS base on, a field of its TLB state is. */
export function tlbOffset(name: keyof typeof TLB_STATE.fields): number {
  return TLB + TLB_STATE.fields[name].offset;
}

/** The address of a field of a processor's TLB state. */
export function tlbOf(cpu: number, name: keyof typeof TLB_STATE.fields): number {
  return percpu(cpu, "tlb") + TLB_STATE.fields[name].offset;
}

/** The address of a field of an address space. */
export function mmField(mm: number, name: keyof typeof MM_STRUCT.fields): number {
  return mm + MM_STRUCT.fields[name].offset;
}

/** The address of a field of a mapping. */
export function areaField(area: number, name: keyof typeof VM_AREA.fields): number {
  return area + VM_AREA.fields[name].offset;
}

/** Whether user programs may have these addresses. */
export function isUserRange(address: number, bytes: number): boolean {
  if (!(bytes >= 0) || address < USER_TEXT) return false;
  const end = address + bytes;
  return address < USER_LOW_END ? end <= USER_LOW_END : address >= USER_HIGH && end <= TASK_SIZE;
}
