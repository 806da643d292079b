/**
 * The TLB of one physical CPU, and the oracle that watches it, where there is one.
 *
 * @module
 */

import { invalidate, type Invalidation } from "./invalidate.ts";
import type { StalenessOracle } from "./staleness.ts";
import { type HostPageTranslation, Tlb, type TlbGeometry } from "./tlb.ts";
import { GUEST_PHYSICAL, LINEAR, type TlbFill, type TlbTranslation } from "./tlb_entry.ts";

/** What a CPU's TLB is made of. */
export interface CpuTlbOptions {
  /** Whose rules tell entries apart. */
  readonly vendor: "vmx" | "svm";
  /** The CPU's number. */
  readonly cpu: number;
  /** Judges each use. */
  readonly oracle?: StalenessOracle | undefined;
  /** Its size. */
  readonly geometry?: TlbGeometry;
}

/** The translations that a physical CPU has cached. */
export class CpuTlb {
  /** The translations. */
  declare readonly tlb: Tlb;
  /** The CPU's number. */
  declare readonly cpu: number;
  /** Judges each use; undefined where nobody asked for that. */
  declare readonly oracle: StalenessOracle | undefined;

  /** An empty TLB, as after a reset. */
  constructor({ vendor, cpu, oracle, geometry }: CpuTlbOptions) {
    this.tlb = new Tlb(vendor, geometry);
    this.cpu = cpu;
    this.oracle = oracle;
  }

  /** Executes an operation that invalidates. How many entries went. */
  invalidate(operation: Invalidation): number {
    this.oracle?.invalidated(this.cpu, operation, this.tlb.tags);
    return invalidate(this.tlb, operation);
  }

  /** Caches a translation of linear addresses. Its slot. */
  insert(translation: TlbTranslation): number {
    const slot = this.tlb.linear.insert(translation);
    this.oracle?.filled(this.cpu, slot, this.tlb.linear.entry(slot)!);
    return slot;
  }

  /** Caches what EPT or nested tables say of a page. */
  insertHostPage(page: HostPageTranslation): void {
    const slot = this.tlb.insertHostPage(page);
    this.oracle?.filled(this.cpu, slot, this.tlb.guestPhysical.entry(slot)!);
  }

  /** Caches a translation of linear addresses in small integers. Its slot. */
  fill(found: TlbFill): number {
    const slot = this.tlb.linear.fill(found);
    if (this.oracle !== undefined) this.oracle.filled(this.cpu, slot, this.tlb.linear.entry(slot)!);
    return slot;
  }

  /** The same of a page of EPT's or nested tables'. */
  fillHostPage(found: TlbFill): void {
    const slot = this.tlb.guestPhysical.fill(found);
    if (this.oracle !== undefined) this.oracle.filled(this.cpu, slot, this.tlb.guestPhysical.entry(slot)!);
  }

  /** The oracle judges the use of a slot's translation of a linear address. Throws `StaleTranslation`. */
  judge(slot: number, address: number): void {
    this.oracle?.used(this.cpu, slot, { address, kind: LINEAR });
  }

  /** And of a guest-physical one. */
  judgeHostPage(slot: number, address: number): void {
    this.oracle?.used(this.cpu, slot, { address, kind: GUEST_PHYSICAL });
  }
}
