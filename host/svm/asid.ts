/**
 * Address-space identifiers: each CPU gives its own to the vCPUs that run there, anew for each when it has run out of them
 * (arch/x86/kvm/svm/svm.c, new_asid and pre_svm_run).
 *
 *     generation 1     ASID 1  2  3 ... max       as each vCPU first runs here
 *     generation 2     ASID 1 ...                 the first of them flushes all ASIDs; whoever has one of
 *                                                 generation 1 gets a new one before it runs
 *
 * @module
 */

import type { Invalidation } from "../mmu/mod.ts";
import { invalidateTlb } from "../kvm/tdp/invalidate.ts";
import * as requests from "../kvm/requests.ts";
import type { Vcpu } from "../kvm/vcpu.ts";
import type { Pcpu } from "../sched/mod.ts";
import {
  TLB_CONTROL_DO_NOTHING,
  TLB_CONTROL_FLUSH_ALL_ASID,
  TLB_CONTROL_FLUSH_ASID,
  type Vmcb,
  WRITTEN_TLB_CONTROL,
} from "./vmcb.ts";

const { REQ_NEW_ASID } = requests;

/** ASID 0 is the host's; encrypted guests, which have the next ones, there are none. */
const MIN_ASID = 1;

/** What a CPU knows of its ASIDs (struct svm_cpu_data). */
class CpuAsids {
  /** Which CPU. */
  readonly pcpu: Pcpu;
  /** Counts how often they were given anew. */
  generation = 1;
  /** The next to give: beyond the last at first, so that the first vCPU flushes. */
  next: number;
  /** The last (CPUID 8000_000A EBX, less 1). */
  readonly max: number;

  constructor(pcpu: Pcpu, asids: number) {
    this.pcpu = pcpu;
    this.max = asids - 1;
    this.next = this.max + 1;
  }
}

const CPUS = new WeakMap<Pcpu, CpuAsids>();

function asidsOf({ machine }: Vcpu, pcpu: Pcpu): CpuAsids {
  let asids = CPUS.get(pcpu);
  if (asids === undefined) CPUS.set(pcpu, asids = new CpuAsids(pcpu, machine.asids));
  return asids;
}

/** A vCPU's ASID. */
export class Asid {
  /** Which generation of its CPU's it is of; 0 where it is of none. */
  generation = 0;
  /** The CPU that gave it. */
  #cpu: CpuAsids | undefined = undefined;
  readonly #vcpu: Vcpu;
  readonly #vmcb: Vmcb;

  /** A vCPU that has none yet. */
  constructor(vcpu: Vcpu, vmcb: Vmcb) {
    this.#vcpu = vcpu;
    this.#vmcb = vmcb;
  }

  /** The ASID with the CPU that gave it; undefined where there is none, or that CPU gives it anew in another generation. */
  get tag(): { readonly cpu: number; readonly vpid: number } | undefined {
    const cpu = this.#cpu;
    if (cpu === undefined || cpu.generation !== this.generation) return undefined;
    return { cpu: cpu.pcpu.id, vpid: this.#vmcb.asid };
  }

  /** init_vmcb: the next run needs one. */
  reset(): void {
    this.generation = 0;
    this.#vcpu.request(REQ_NEW_ASID);
  }

  /** The vCPU was put on a CPU: before it runs there, its ASID must be one of that CPU's, and of its generation. */
  loaded(pcpu: Pcpu): void {
    const cpu = this.#cpu;
    if (cpu?.pcpu !== pcpu || cpu.generation !== this.generation) this.#vcpu.request(REQ_NEW_ASID);
  }

  /** pre_svm_run: right before VMRUN, where it was found necessary. */
  renew(): void {
    const pcpu = this.#vcpu.pcpu!;
    const asids = asidsOf(this.#vcpu, pcpu);
    if (this.#cpu !== asids) this.generation = 0;
    this.#cpu = asids;
    if (this.generation === asids.generation) return;
    if (asids.next > asids.max) {
      asids.generation++;
      asids.next = MIN_ASID;
      this.#control(TLB_CONTROL_FLUSH_ALL_ASID);
    }
    this.generation = asids.generation;
    this.#vmcb.asid = asids.next++;
    this.#vcpu.processor.mmu?.moved();
  }

  /** svm_flush_tlb_asid: VMRUN flushes it; processors that cannot (no FlushByAsid) give the vCPU another. */
  flush(): void {
    if (this.#vcpu.machine.flushByAsid) {
      this.#control(TLB_CONTROL_FLUSH_ASID);
    } else {
      this.generation--;
      this.#vcpu.request(REQ_NEW_ASID);
    }
  }

  #control(what: number): void {
    this.#vmcb.tlbControl = what;
    this.#vmcb.written |= WRITTEN_TLB_CONTROL;
  }

  /** svm_flush_tlb_gva: INVLPGA, now. */
  flushAddress(address: number): void {
    invalidateTlb(this.#vcpu, { operation: "INVLPGA", vpid: this.#vmcb.asid, address });
  }
}

/** What VMRUN invalidates for a TLB_CONTROL; undefined for nothing. */
export function vmrunFlush({ tlbControl, asid }: Vmcb): Invalidation | undefined {
  if (tlbControl === TLB_CONTROL_DO_NOTHING) return undefined;
  return {
    operation: tlbControl === TLB_CONTROL_FLUSH_ALL_ASID ? "TLB_CONTROL 1" : "TLB_CONTROL 3",
    vpid: asid,
  };
}
