/**
 * The kernel's own tables, and how processors begin to use them. The boot processor builds them while addresses are
 * still flat; everybody loads CR3 with them before anything else.
 *
 *     image          [0, 2 MiB)    read, execute: the trampoline and text
 *     data           [2 MiB, ...)  read, write
 *     APIC's page                  read, write, uncached
 *     PAGE_OFFSET    all memory    read, write; the image is read alone
 *
 * @module
 */

import {
  APIC_DEFAULT_BASE,
  CPUID_1_ECX_PCID,
  CPUID_1_EDX_PGE,
  CPUID_7_EBX_INVPCID,
  CPUID_7_EBX_SMAP,
  CPUID_7_EBX_SMEP,
  CPUID_EXT1_EDX_NX,
  CR0_ET,
  CR0_PE,
  CR0_PG,
  CR0_WP,
  CR4_PAE,
  CR4_PCIDE,
  CR4_PGE,
  CR4_SMAP,
  CR4_SMEP,
  EFER_LME,
  EFER_NX,
  type Guest,
  IA32_EFER,
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  LEVEL_PT,
  PAGE_SHIFT_2M,
  PTE_A,
  PTE_D,
  PTE_G,
  PTE_P,
  PTE_PCD,
  PTE_PS,
  PTE_PWT,
  PTE_RW,
  PTE_US,
  type X86Cpu,
} from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { allocZeroed } from "./frames.ts";
import { PAGE_OFFSET } from "./layout.ts";
import type { MemoryManager } from "./manager.ts";
import { entryAt, entryFor, KERNEL_TABLE, storeEntry } from "./tables.ts";

const LARGE = 2 ** PAGE_SHIFT_2M;
const READ = PTE_P | PTE_A | PTE_D | PTE_G;
const READ_WRITE = READ | PTE_RW;

/** What of paging the processors have. */
export function* detect(cpu: X86Cpu, mm: MemoryManager): Guest {
  yield cpu.cpuid(1);
  mm.pge = (cpu.edx & CPUID_1_EDX_PGE) !== 0;
  // PCIDs without global pages would have to be flushed one by one (setup_pcid).
  mm.pcid = (cpu.ecx & CPUID_1_ECX_PCID) !== 0 && mm.pge && mm.allowsPcid;
  yield cpu.cpuid(7, 0);
  mm.smep = (cpu.ebx & CPUID_7_EBX_SMEP) !== 0;
  mm.smap = (cpu.ebx & CPUID_7_EBX_SMAP) !== 0;
  mm.invpcid = (cpu.ebx & CPUID_7_EBX_INVPCID) !== 0;
  yield cpu.cpuid(0x8000_0001);
  mm.nx = (cpu.edx & CPUID_EXT1_EDX_NX) !== 0;
}

/** Builds the tables (init_mem_mapping): the physical address of the PML4. */
export function* buildKernelTables(cpu: X86Cpu, mm: MemoryManager): GuestValue<number> {
  const root = yield* allocZeroed(cpu, mm);
  for (let address = 0; address < mm.kernelEnd; address += LARGE) {
    const text = address === 0;
    const flags = (text ? READ : READ_WRITE) | PTE_PS;
    yield* put(cpu, mm, root, { address, level: LEVEL_PD, physical: address, flags, executable: text });
  }
  for (let physical = 0; physical < mm.end; physical += LARGE) {
    const flags = (physical === 0 ? READ : READ_WRITE) | PTE_PS;
    yield* put(cpu, mm, root, { address: PAGE_OFFSET + physical, level: LEVEL_PD, physical, flags });
  }
  yield* put(cpu, mm, root, {
    address: APIC_DEFAULT_BASE,
    level: LEVEL_PT,
    physical: APIC_DEFAULT_BASE,
    flags: READ_WRITE | PTE_PCD | PTE_PWT,
  });
  return root;
}

interface KernelPage {
  readonly address: number;
  readonly level: number;
  readonly physical: number;
  readonly flags: number;
  readonly executable?: boolean;
}

function* put(cpu: X86Cpu, mm: MemoryManager, root: number, page: KernelPage): Guest {
  const at = yield* entryAt(cpu, mm, page.address, { root, level: page.level, make: KERNEL_TABLE });
  if (at === 0) throw new RangeError("Cannot boot with paging: there are no frames for the kernel's tables");
  const flags = mm.pge ? page.flags : page.flags & ~PTE_G;
  yield storeEntry(cpu, at, entryFor(page.physical, flags, mm.nx && page.executable !== true));
}

/**
 * The entries of the kernel's that each address space has a copy of, in the tables that it shares with user space: the
 * kernel's pages say for themselves that they are not the user's.
 */
export function* copyKernelEntries(cpu: X86Cpu, mm: MemoryManager, root: number): GuestValue<boolean> {
  // The upper half, and the APIC's gigabyte, are whole tables; the image is pages in the first PD.
  const whole: [address: number, level: number][] = [
    [PAGE_OFFSET, LEVEL_PML4],
    [APIC_DEFAULT_BASE, LEVEL_PDPT],
  ];
  for (let address = 0; address < mm.kernelEnd; address += LARGE) whole.push([address, LEVEL_PD]);
  for (const [address, level] of whole) {
    const to = yield* entryAt(cpu, mm, address, { root, level, make: KERNEL_TABLE | PTE_US });
    if (to === 0) return false;
    const from = yield* entryAt(cpu, mm, address, { root: mm.kernelRoot, level });
    yield cpu.load64(from);
    yield cpu.store64(to, cpu.eax, cpu.raxHigh);
  }
  return true;
}

/** A processor begins to translate: the boot processor, which is in long mode. */
export function* enablePaging(cpu: X86Cpu, mm: MemoryManager): Guest {
  yield cpu.rdmsr(IA32_EFER);
  if (mm.nx) yield cpu.wrmsr(IA32_EFER, cpu.eax | EFER_NX, cpu.edx);
  yield cpu.movFromCr0();
  yield cpu.movToCr0((cpu.eax | CR0_WP) >>> 0);
  yield cpu.movToCr3(mm.kernelRoot);
}

/** And the others, which come from real mode. */
export function* enterLongMode(cpu: X86Cpu, mm: MemoryManager): Guest {
  yield cpu.movToCr3(mm.kernelRoot);
  yield cpu.wrmsr(IA32_EFER, EFER_LME | (mm.nx ? EFER_NX : 0));
  yield cpu.movToCr0((CR0_PE | CR0_ET | CR0_WP | CR0_PG) >>> 0);
}

/** What else of paging the processor has; PCIDE only in long mode, and while CR3 has PCID 0 (SDM 3A 4.10.1). */
export function* enableFeatures(cpu: X86Cpu, mm: MemoryManager): Guest {
  yield cpu.movToCr4(
    CR4_PAE | (mm.pge ? CR4_PGE : 0) | (mm.smep ? CR4_SMEP : 0) | (mm.smap ? CR4_SMAP : 0) |
      (mm.pcid ? CR4_PCIDE : 0),
  );
}
