/**
 * Where the kernel keeps what in guest-physical memory.
 *
 *     0x0000_8000  the trampoline: start-up IPIs with vector 8 begin here, in real mode
 *     0x0010_0000  text
 *     0x0020_0000  the IDT
 *     0x0020_1000  the operand of LIDT
 *     0x0020_2000  the kernel's data
 *     0x0021_0000  per-CPU areas, one page each
 *     0x0070_0000  the user program's image, where there is paging
 *     0x0080_0000  call-function data: for each sender one entry a target
 *     behind that  tasks, address spaces and page frames, where the kernel has them
 *
 * All this has the same virtual addresses as physical ones, in kernels with and without paging.
 *
 * @module
 */

import { type Gva, type Layout, layout, MAX_FRAMES } from "../../abi/mod.ts";

/** Processors that the map has room for. */
export const CPU_LIMIT = 1024;
/** 32-bit words of a mask of processors. */
export const MASK_WORDS: number = CPU_LIMIT / 32;

/** The trampoline. */
export const TRAMPOLINE: Gva = 0x8000 as Gva;
/** The IDT. */
export const IDT = 0x20_0000;
/** The operand of LIDT. */
export const IDT_POINTER = 0x20_1000;
/** {@linkcode KERNEL_DATA}. */
export const DATA = 0x20_2000;
/** The per-CPU areas. */
export const PERCPU = 0x21_0000;
/** Bytes of a per-CPU area: a page. */
export const PERCPU_SIZE = 0x1000;
/** The user program's image. */
export const USER_IMAGE = 0x70_0000;
/** Bytes that it may have. */
export const USER_IMAGE_SIZE = 0x10_0000;
/** Call-function data. */
export const CSD = 0x80_0000;

/** The kernel's variables. */
export const KERNEL_DATA: Layout<
  "online" | "present" | "bootedOnce" | "apicIds" | "kvmCpuidBase" | "kvmProbed" | "dead"
> = layout("kernel_data", {
  online: ["u32", MASK_WORDS],
  present: ["u32", MASK_WORDS],
  bootedOnce: ["u32", MASK_WORDS],
  apicIds: ["u32", CPU_LIMIT],
  kvmCpuidBase: "u32",
  kvmProbed: "u32",
  dead: ["u32", MASK_WORDS],
});

/** Bytes of a processor's run queue. */
export const PERCPU_RQ_SIZE = 128;
/** Bytes of what a processor knows of its TLB. */
export const PERCPU_TLB_SIZE = 512;

/** A processor's own variables; its GS base points to them. */
export const PERCPU_AREA: Layout<
  | "cpu"
  | "apicId"
  | "kvmApicEoi"
  | "callQueue"
  | "csd"
  | "ipiMask"
  | "cfdMask"
  | "cfdIpiMask"
  | "pvMask"
  | "irqs"
  | "rq"
  | "tlb"
> = layout("percpu", {
  cpu: "u32",
  apicId: "u32",
  kvmApicEoi: "u64",
  callQueue: "u64",
  csd: ["u64", 4 * MAX_FRAMES],
  ipiMask: ["u32", MASK_WORDS],
  cfdMask: ["u32", MASK_WORDS],
  cfdIpiMask: ["u32", MASK_WORDS],
  pvMask: ["u32", MASK_WORDS],
  irqs: ["u32", 256],
  rq: ["u8", PERCPU_RQ_SIZE],
  tlb: ["u8", PERCPU_TLB_SIZE],
}, { size: PERCPU_SIZE });

/** A function call for another processor (struct __call_single_data). */
export const CALL_SINGLE_DATA: Layout<"next" | "flags" | "src" | "dst" | "func" | "info"> = layout(
  "__call_single_data",
  { next: "u64", flags: "u32", src: "u16", dst: "u16", func: "u64", info: "u64" },
);

/** The address of one of the kernel's variables. */
export function data(name: keyof typeof KERNEL_DATA.fields): number {
  return DATA + KERNEL_DATA.fields[name].offset;
}

/** The address of a variable of processor `cpu`. */
export function percpu(cpu: number, name: keyof typeof PERCPU_AREA.fields): number {
  return PERCPU + PERCPU_SIZE * cpu + PERCPU_AREA.fields[name].offset;
}

/** The address of the call that `sender` makes to `target`. */
export function csdOf(sender: number, target: number, cpus: number): number {
  return CSD + CALL_SINGLE_DATA.size * (sender * cpus + target);
}

/** Bytes of memory that a kernel for `cpus` processors needs from address 0: whole pages. */
export function memoryNeeded(cpus: number): number {
  return Math.ceil(csdOf(cpus, 0, cpus) / PERCPU_SIZE) * PERCPU_SIZE;
}
