/**
 * The memory-management unit of a processor in guest mode: linear addresses to host-physical ones, through the TLB of
 * the CPU that it runs on, and walks where that knows nothing.
 *
 * Most guests have no use for it. A guest's linear addresses are its physical ones, and cost nothing, while its CR3
 * points to no table; and where KVM's own tables are of no interest either, nobody walks those.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { join, type TextBlock } from "../../abi/mod.ts";
import * as demands from "../mmu/demand.ts";
import { type Access, type Demand, demandsOf } from "../mmu/demand.ts";
import * as quick from "../mmu/quick_walk.ts";
import { QuickWalk } from "../mmu/quick_walk.ts";
import {
  type AccessKind,
  CachedSecond,
  type CpuTlb,
  GUEST_PHYSICAL,
  InMemory,
  type Invalidation,
  lookUp,
  type MappedNow,
  pageFaultCode,
  type Paging,
  type PagingState,
  type PhysicalMemory,
  readOnly,
  translate,
} from "../mmu/mod.ts";
import * as slots from "../memory/mod.ts";
import { PageWindow, type PhysicalSpace } from "../memory/mod.ts";
import { raise } from "./events.ts";
import { takeHostFault } from "./host_fault.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CR0_PG,
  CR3_PCID,
  CR4_PCIDE,
  FLAG_AC,
  GP_VECTOR,
  HIGH,
  PF_VECTOR,
  PFERR_PRESENT,
  PHYSICAL_ADDRESS_LIMIT,
  RFLAGS,
  SYS_CR0,
  SYS_CR2,
  SYS_CR3,
  SYS_CR4,
  SYS_EFER,
} = abi;
const { PAGE_SIZE } = slots;
const { DEMAND_AC, DEMAND_USER, FETCHES, READS_SYSTEM, WRITES } = demands;
const { ABSENT, FOUND, UNKNOWN } = quick;

export { type Access, FETCHES, READS, READS_SYSTEM, WRITES } from "../mmu/demand.ts";

/** Answer in place of an address: a fault was raised, or the guest has exited. */
export const FAULTED = -1;
/** Answer: no memory is there, and the virtualization hardware has done what there is to do. */
export const VIRTUALIZED = -2;

/** A page that no address has. */
const NO_PAGE = NaN;
/** In {@linkcode Mmu.hit}: nothing cached serves. */
const MISSED = -1;

/** A fault that becomes part of an event's delivery. */
export interface SystemFault {
  /** #PF or #GP. */
  readonly vector: number;
  /** Its error code. */
  readonly errorCode: number;
}

/** Translates for one processor. */
export class Mmu {
  /** The registers that paging depends on. */
  readonly state: PagingState;
  /** The host's physical memory. */
  declare readonly physical: PhysicalSpace;
  /** Where the last access through the TLB was. */
  declare readonly window: PageWindow;
  #systemFault: SystemFault | undefined = undefined;
  /** Walks so far: misses of the TLB, and hits that did not allow the access. */
  walks = 0;
  /** Accesses to tables that those have made. */
  walkAccesses = 0;
  readonly #p: Processor;
  #cr0 = 0;
  #cr3High = 0;
  #cr3Low = 0;
  #cr4 = 0;
  #efer = 0;
  #cpu: CpuTlb | undefined = undefined;
  #paging: Paging | undefined = undefined;
  /** Walks where they are plain; the reference walks where this does not know. */
  readonly #quick: QuickWalk;
  /** The last instruction's function, the page that this is in, when that was found, and whether for CPL 3. */
  #fetchBlock: TextBlock | undefined = undefined;
  #fetchPage = NO_PAGE;
  #fetchGeneration = 0;
  #fetchMode = 0;
  /** By access, mode and RFLAGS.AC. */
  #demands: readonly Demand[] = demandsOf({ cr0: 0, cr4: 0, efer: 0 });

  /** An MMU that nothing has been told of. */
  constructor(p: Processor, physical: PhysicalSpace) {
    this.#p = p;
    this.physical = physical;
    this.window = new PageWindow(physical);
    this.#quick = new QuickWalk(physical);
    // deno-lint-ignore no-this-alias
    const own = this;
    this.state = {
      get cr0() {
        return own.#cr0;
      },
      get cr3() {
        return join(own.#cr3Low, own.#cr3High);
      },
      get cr4() {
        return own.#cr4;
      },
      get efer() {
        return own.#efer;
      },
      get ac() {
        return (p.regs[RFLAGS] & FLAG_AC) !== 0;
      },
    };
  }

  /** The TLB in use. */
  get cpu(): CpuTlb {
    return this.#cpu ??= this.#meet();
  }

  /** Whether the guest has tables in use. */
  get paged(): boolean {
    return (this.#cr0 & CR0_PG) !== 0;
  }

  /** Paging as it is now. */
  get paging(): Paging {
    return this.#paging ??= this.#attach();
  }

  #attach(): Paging {
    const { cpu, physical, state } = this;
    const { paging: features } = this.#p.features;
    const tables = this.#p.virtualization.second(physical);
    this.#quick.attach(cpu, tables, features);
    return { memory: physical, state, features, second: new CachedSecond(tables, cpu) };
  }

  /** The processor is on another CPU, or its VPID, its ASID or what leads to the second dimension has changed. */
  moved(): void {
    this.#cpu = undefined;
    this.#paging = undefined;
    this.#quick.detach();
    this.#forgetFetch();
  }

  /** CR0, CR3, CR4 or EFER has changed. */
  changed(): void {
    const { sys } = this.#p;
    const low = sys[SYS_CR3];
    const high = sys[SYS_CR3 + 1];
    const cr0 = this.#p.hasTables ? sys[SYS_CR0] : sys[SYS_CR0] & ~CR0_PG;
    this.#cr3Low = low;
    this.#cr3High = high;
    this.#quick.setRoot(high, low);
    if (cr0 !== this.#cr0 || sys[SYS_CR4] !== this.#cr4 || sys[SYS_EFER] !== this.#efer) {
      this.#cr0 = cr0;
      this.#cr4 = sys[SYS_CR4];
      this.#efer = sys[SYS_EFER];
      this.#demands = demandsOf(this.state);
      this.#quick.setModes(this.state);
    }
    this.#forgetFetch();
    if (this.#cpu !== undefined) this.#cpu.tlb.setPcid(this.#pcid());
  }

  /** Takes up the TLB of the CPU that it runs on: tags its accesses. */
  #meet(): CpuTlb {
    const cpu = this.#p.thread.tlb();
    const { vpid, root } = this.#p.virtualization.tlbTags();
    cpu.tlb.setTags({ vpid, pcid: this.#pcid(), root });
    this.#forgetFetch();
    return cpu;
  }

  #pcid(): number {
    return (this.#cr4 & CR4_PCIDE) !== 0 ? this.#cr3Low & CR3_PCID : 0;
  }

  #forgetFetch(): void {
    this.#fetchBlock = undefined;
    this.#fetchPage = NO_PAGE;
  }

  /**
   * Whether the instruction at an address is fetched; otherwise that has faulted, or exited, or has walked the tables: a
   * step of its own, so that what the instruction does is seen by others when it begins. The page of the last one is
   * known until something is invalidated: a TLB of one entry for itself, which no oracle watches.
   */
  fetchable(): boolean {
    const p = this.#p;
    const cpu = this.#cpu ?? this.cpu;
    const { generation } = cpu.tlb;
    const { block } = p.context.top;
    const mode = p.cpl === 3 ? 1 : 0;
    const same = generation === this.#fetchGeneration && mode === this.#fetchMode;
    if (same && block === this.#fetchBlock) return true; // Blocks of text cross no page.
    const linear = p.rip;
    const page = Math.floor(linear / PAGE_SIZE);
    const { walks } = this;
    if (!same || page !== this.#fetchPage) {
      const slot = this.hit(Math.floor(linear / HIGH), linear | 0, FETCHES);
      if (slot < 0 && this.miss(linear, FETCHES, 1) === FAULTED) return false;
      if (cpu.oracle !== undefined) return this.walks === walks;
    }
    this.#fetchBlock = block;
    this.#fetchPage = page;
    this.#fetchGeneration = generation;
    this.#fetchMode = mode;
    return this.walks === walks;
  }

  /**
   * Where a linear address is in the host's physical memory. Or {@linkcode FAULTED}, or {@linkcode VIRTUALIZED}: `bytes`
   * says what hardware is asked for then.
   */
  translate(linear: number, access: Access, bytes: number): number {
    let slot = this.hit(Math.floor(linear / HIGH), linear | 0, access);
    if (slot < 0) slot = this.miss(linear, access, bytes);
    if (slot < 0) return slot;
    return this.place(slot, linear | 0);
  }

  /** Where a slot's translation leads for an address, given by its low half. */
  place(slot: number, low: number): number {
    const { linear: array } = this.#cpu!.tlb;
    return array.physical(slot) + (low & ((1 << array.shift(slot)) - 1));
  }

  /** Has {@linkcode Mmu.window} look at the page that a slot's translation leads to. false where no memory is there. */
  open(slot: number, low: number): boolean {
    const { linear: array } = this.#cpu!.tlb;
    const inside = low & ((1 << array.shift(slot)) - 1);
    return this.window.open(array.physicalHigh(slot), array.physicalLow(slot) | inside);
  }

  /** The slot of the TLB that serves an access to an address, given by its halves, signed; negative where none does. */
  hit(high: number, low: number, access: Access): number {
    const cpu = this.#cpu ?? this.cpu;
    const { linear: array } = cpu.tlb;
    const slot = array.lookup(high, low);
    if (slot < 0) return MISSED;
    const flags = array.flags(slot);
    const { needs, forbids } = this.#demand(access);
    if ((flags & needs) !== needs || (flags & forbids) !== 0) return MISSED;
    if (cpu.oracle !== undefined) cpu.judge(slot, high * HIGH + (low >>> 0));
    return slot;
  }

  #demand(access: Access): Demand {
    const p = this.#p;
    const user = p.cpl === 3 ? DEMAND_USER : 0;
    const ac = (p.regs[RFLAGS] & FLAG_AC) !== 0 ? DEMAND_AC : 0;
    return this.#demands[ac + 2 * access + user];
  }

  /** The slot that a walk fills for an access that no entry serves. Or {@linkcode FAULTED}, or {@linkcode VIRTUALIZED}. */
  miss(linear: number, access: Access, bytes: number): number {
    if (this.paged ? !abi.isCanonical(linear) : linear < 0 || linear >= PHYSICAL_ADDRESS_LIMIT) {
      return this.#fault(GP_VECTOR, 0, access);
    }
    const { paging } = this;
    const walker = this.#quick;
    const demand = this.#demand(access);
    const outcome = walker.walk(Math.floor(linear / HIGH), linear | 0, demand);
    if (outcome === UNKNOWN) return this.#walk(walker.rest(paging), linear, access, bytes);
    this.#count(walker.accesses);
    if (outcome === FOUND) return this.#cpu!.fill(walker.page);
    return this.#pageFault(linear, access, demand.errorCode | (outcome === ABSENT ? 0 : PFERR_PRESENT));
  }

  #count(accesses: number): void {
    this.walks++;
    this.walkAccesses += accesses;
    this.#p.charge(accesses * this.#p.cost.pageWalk);
  }

  /** The reference's walk. */
  #walk(paging: Paging, linear: number, access: Access, bytes: number): number {
    const found = translate(paging, linear, this.#kind(access));
    this.#count(found.accesses);
    switch (found.kind) {
      case "mapping":
        return this.cpu.insert(found.mapping);
      case "page fault":
        return this.#pageFault(linear, access, found.errorCode);
      default:
        return takeHostFault(this.#p, found, { access, bytes });
    }
  }

  /** An access, as walks want it. */
  #kind(access: Access): AccessKind {
    const implicit = access === READS_SYSTEM;
    return { write: access === WRITES, fetch: access === FETCHES, user: this.#p.cpl === 3, implicit };
  }

  #pageFault(linear: number, access: Access, errorCode: number): number {
    const { sys } = this.#p;
    this.cpu.invalidate({ operation: "page fault", address: linear });
    sys[SYS_CR2] = linear;
    sys[SYS_CR2 + 1] = Math.floor(linear / HIGH);
    return this.#fault(PF_VECTOR, errorCode, access);
  }

  #fault(vector: number, errorCode: number, access: Access): number {
    if (access === READS_SYSTEM) this.#systemFault = { vector, errorCode };
    else raise(this.#p, vector, errorCode);
    return FAULTED;
  }

  /** The fault that the last access to a table of the system's has come to; undefined where it has exited. */
  takeSystemFault(): SystemFault | undefined {
    const fault = this.#systemFault;
    this.#systemFault = undefined;
    return fault;
  }

  /** What the tables say of an address now. */
  now(kind: number, address: number): MappedNow | undefined {
    const { virtualization } = this.#p;
    const memory = readOnly(this.physical);
    const second = virtualization.second(memory);
    if (kind === GUEST_PHYSICAL) {
      const page = second.translate(address, { purpose: "final", write: false, fetch: false });
      return page.kind === "page" ? { ...page, user: true, host: page } : undefined;
    }
    return lookUp({ memory, state: this.state, features: this.#p.features.paging, second }, address);
  }

  /**
   * The guest-physical address of a linear one, as software finds it that carries out an instruction for the guest: by a
   * walk of the guest's tables alone, in `memory`. An error code, below 0 and less one, where those raise a page fault.
   */
  guestPhysical(linear: number, access: Access, memory: PhysicalMemory): number {
    if (!this.paged) return linear;
    const { state } = this;
    const paging = { memory, state, features: this.#p.features.paging, second: new InMemory(memory) };
    const kind = this.#kind(access);
    const found = translate(paging, linear, kind);
    switch (found.kind) {
      case "mapping":
        return found.mapping.physical + abi.pageOffset(linear, found.mapping.shift);
      case "page fault":
        return -1 - found.errorCode;
      default:
        return -1 - pageFaultCode(kind, state, 0); // An entry that cannot be read (walk_addr_generic).
    }
  }

  /** The guest's address of a place in the host's physical memory; undefined where that is not this guest's. */
  guestAddress(physical: number): number | undefined {
    const placed = this.physical.slotAt(physical);
    return placed?.memory === this.#p.memory ? placed.slot.base + physical - placed.slot.host : undefined;
  }

  /** Executes an operation that invalidates translations. */
  invalidate(operation: Invalidation): void {
    this.cpu.invalidate(operation);
  }
}
