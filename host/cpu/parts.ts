/**
 * What a processor is built from: its thread, its memory, its virtualization hardware, and what CPUID says of it.
 *
 * @module
 */

import type { PagingFeatures } from "../../abi/mod.ts";
import type { Engine, Thread } from "../core/mod.ts";
import type { Costs } from "../cost/mod.ts";
import type { GuestMemory, PhysicalSpace } from "../memory/mod.ts";
import type { CpuTlb } from "../mmu/mod.ts";
import type { Virtualization } from "./virtualization.ts";

/** The thread of a processor, which is the host's while that is not in guest mode. */
export interface HostThread extends Thread {
  /** The host's next step, as soon as it can. */
  hostStep(): void;
  /** WRMSR of a register whose exit has a straight way, and the host's step if nobody comes between. Whether it has one. */
  straightWrmsr(): boolean;
  /** A physical interrupt that is due, and the host's step behind it, if nobody comes between. Whether that is so. */
  straightInterrupt(): boolean;
  /** The TLB of the CPU that it is on. */
  tlb(): CpuTlb;
}

/** What CPUID says that the processor has, as far as it must know itself. */
export interface ProcessorFeatures {
  /** What walks of the guest's tables depend on. */
  readonly paging: PagingFeatures;
  /** The bits that CR4 may hold. */
  readonly cr4: number;
}

/** What a processor is built from. */
export interface ProcessorParts {
  /** Its name in messages. */
  readonly name: string;
  /** The core that steps its thread. */
  readonly engine: Engine;
  /** The thread that steps it, and whose clock it advances. */
  readonly thread: HostThread;
  /** The virtual machine's memory. */
  readonly memory: GuestMemory;
  /** The host's physical memory. */
  readonly physical: PhysicalSpace;
  /** Prices. */
  readonly cost: Costs;
  /** Its virtualization hardware. */
  readonly virtualization: Virtualization;
  /** What it has. */
  readonly features: ProcessorFeatures;
}
