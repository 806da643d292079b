/**
 * A processor's walks with all that they touch: a guest's memory, tables of the second dimension in the host's own, and
 * a TLB. Two of them that are built alike stay alike, whoever walks in them.
 *
 * @module
 */

import {
  EPT_A,
  EPT_D,
  EPT_RWX,
  EPT_WB,
  highOf,
  lowOf,
  mapPage,
  PAGE_SHIFT_1G,
  PAGE_SHIFT_2M,
  PAGE_SHIFT_4K,
  type PageShift,
  type PageTables,
  PFERR_PRESENT,
  PTE_A,
  PTE_D,
  PTE_P,
  PTE_RW,
  PTE_US,
} from "../../../abi/mod.ts";
import { GuestMemory } from "../../../host/mod.ts";
import { HostMemory, PhysicalSpace } from "../../../host/memory/mod.ts";
import {
  DEMAND_AC,
  DEMAND_USER,
  demandsOf,
  FETCHES,
  READS,
  READS_SYSTEM,
  WRITES,
} from "../../../host/mmu/demand.ts";
import {
  type AccessKind,
  CachedSecond,
  CpuTlb,
  Ept,
  type Invalidation,
  Npt,
  type Paging,
  type PagingState,
  type TlbGeometry,
  translate,
} from "../../../host/mmu/mod.ts";
import { ABSENT, FOUND, type Outcome, QuickWalk, UNKNOWN } from "../../../host/mmu/quick_walk.ts";
import { EPT_FEATURES, eptPointer, FEATURES, outcome } from "./tables.ts";

export type Vendor = "vmx" | "svm";

/** How a world is built. */
export interface WorldOptions {
  readonly vendor: Vendor;
  /** EPT has accessed and dirty flags. */
  readonly accessedDirty: boolean;
  /** Pages by which the second dimension maps the guest's tables. */
  readonly shift: PageShift;
  readonly geometry: TlbGeometry | undefined;
  /** Entries 0 to 3 of the first pages of the guest's memory. */
  readonly pages: readonly (readonly bigint[])[];
}

const MEMORY = 0x80_0000;
/** Its first bytes, in which all tables of the guest are. */
export const TABLE_BYTES = 0x8000;

export class World {
  readonly own = new HostMemory();
  readonly space = new PhysicalSpace(this.own);
  readonly memory = new GuestMemory(this.space);
  readonly cpu: CpuTlb;
  readonly blocks: Uint32Array[] = [];
  readonly quick: QuickWalk;
  /** Has the walker go on with what a CPU knows. */
  readonly attachTo: (cpu: CpuTlb) => void;
  /** Stores that were told to somebody who waits for one to the first table's first entry. */
  told = 0;
  /** What quick walks came to. */
  readonly outcomes = new Map<Outcome, number>();
  state: PagingState;
  #paging: Paging;

  constructor(options: WorldOptions, state: PagingState) {
    const { vendor, accessedDirty, shift, geometry, pages } = options;
    this.state = state;
    const slot = this.memory.addSlot({ base: 0, size: MEMORY });
    for (const [page, entries] of pages.entries()) {
      for (const [n, value] of entries.entries()) this.write(page, n, value);
    }
    this.memory.watch({ address: 0, stored: () => this.told++ });
    this.cpu = new CpuTlb({ vendor, cpu: 0, ...(geometry && { geometry }) });
    const allocate = () => {
      const { address, words } = this.own.allocate(4096, 4096);
      this.blocks.push(words);
      return address;
    };
    const ept = vendor === "vmx";
    const tables: PageTables = { memory: this.space, root: allocate(), ept, allocate };
    const flags = ept ? EPT_RWX | EPT_WB : PTE_P | PTE_RW | PTE_US;
    for (let at = 0; at < MEMORY; at += 2 ** shift) {
      if (shift === PAGE_SHIFT_4K && at >= 0x20_0000) break;
      mapPage(tables, at, { physical: slot.host + at, flags, shift });
    }
    if (shift === PAGE_SHIFT_4K) {
      for (let at = 0x20_0000; at < MEMORY; at += 0x20_0000) {
        mapPage(tables, at, { physical: slot.host + at, flags, shift: PAGE_SHIFT_2M });
      }
    }
    const { space } = this;
    const second = ept
      ? new Ept({ memory: space, eptp: eptPointer(tables.root, accessedDirty), features: EPT_FEATURES })
      : new Npt({ memory: space, ncr3: tables.root, nx: true, features: { ...FEATURES, amd: true } });
    const features = ept ? FEATURES : { ...FEATURES, amd: true };
    this.#paging = { memory: space, state, features, second: new CachedSecond(second, this.cpu) };
    this.quick = new QuickWalk(space);
    this.attachTo = (cpu) => this.quick.attach(cpu, second, features);
    this.attachTo(this.cpu);
    this.cpu.tlb.setTags({ vpid: 1, pcid: 0, root: tables.root });
    this.become(state);
  }

  /** Changes the registers. */
  become(state: PagingState): void {
    this.state = state;
    this.#paging = { ...this.#paging, state };
    this.quick.setModes(state);
    this.quick.setRoot(0, state.cr3);
    this.cpu.tlb.setPcid(state.cr3 & 0xfff);
  }

  /** Writes an entry of the guest's tables. */
  write(page: number, index: number, value: bigint): void {
    const { u32 } = this.memory;
    u32[page * 1024 + 2 * index] = lowOf(value);
    u32[page * 1024 + 2 * index + 1] = highOf(value);
  }

  /** Turns bits of an entry of the second dimension's tables, if it has any. */
  turn(table: number, index: number, bits: bigint): void {
    const words = this.blocks[table % this.blocks.length];
    if (words[2 * index] === 0) return;
    words[2 * index] ^= lowOf(bits);
    words[2 * index + 1] ^= highOf(bits);
  }

  invalidate(operation: Invalidation): number {
    return this.cpu.invalidate(operation);
  }

  /** What the reference does. */
  walk(
    linear: number,
    access: AccessKind,
    paging: Paging = this.#paging,
  ): [outcome: string, accesses: number] {
    const found = translate(paging, linear, access);
    if (found.kind === "mapping") this.cpu.insert(found.mapping);
    return [outcome(found, linear), found.accesses];
  }

  /** A quick walk, and the reference where that does not know: as a processor does it. */
  walkQuickly(linear: number, access: AccessKind): [outcome: string, accesses: number] {
    const kind = access.implicit ? READS_SYSTEM : access.fetch ? FETCHES : access.write ? WRITES : READS;
    const mode = 2 * kind + (access.user ? DEMAND_USER : 0) + (this.state.ac ? DEMAND_AC : 0);
    const { quick } = this;
    const demand = demandsOf(this.state)[mode];
    const came = quick.walk(Math.floor(linear / 2 ** 32), linear | 0, demand);
    this.outcomes.set(came, (this.outcomes.get(came) ?? 0) + 1);
    if (came === UNKNOWN) return this.walk(linear, access, quick.rest(this.#paging));
    if (came !== FOUND) {
      const code = demand.errorCode | (came === ABSENT ? 0 : PFERR_PRESENT);
      return [`#PF(0x${code.toString(16)})`, quick.accesses];
    }
    const { linear: array } = this.cpu.tlb;
    const slot = this.cpu.fill(quick.page);
    const physical = array.physical(slot) + (linear & (2 ** array.shift(slot) - 1));
    return [`0x${physical.toString(16)}`, quick.accesses];
  }

  /** All that a walk may change. */
  snapshot(): unknown {
    const { linear, guestPhysical } = this.cpu.tlb;
    return {
      entries: this.cpu.tlb.entries(),
      counts: [linear.hits, linear.misses, guestPhysical.hits, guestPhysical.misses],
      told: this.told,
      memory: this.memory.u8.slice(0, TABLE_BYTES),
      blocks: this.blocks,
    };
  }
}

/** Bits of an entry of the second dimension that make a difference, with some that make none. */
export function oddBits(vendor: Vendor): readonly bigint[] {
  const of = (...bits: number[]) => bits.map((bit) => BigInt(bit));
  return vendor === "vmx"
    ? [...of(1, 2, 4, 6, 7, 8, 0x10, 0x38, EPT_A, EPT_D, 0x80, 0x400), 1n << 47n, 1n << 52n, 1n << 63n]
    : [...of(PTE_P, PTE_RW, PTE_US, PTE_A, PTE_D, 0x60, 0x80, 0x100), 1n << 46n, 1n << 52n, 1n << 63n];
}

/** Sizes of pages. */
export const SHIFTS: readonly PageShift[] = [PAGE_SHIFT_4K, PAGE_SHIFT_2M, PAGE_SHIFT_1G];
