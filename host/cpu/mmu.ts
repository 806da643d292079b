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
import { join } from "../../abi/mod.ts";
import * as entries from "../mmu/tlb_entry.ts";
import {
  CachedSecond,
  type CpuTlb,
  eptViolation,
  type HostFault,
  type Invalidation,
  lookUp,
  type MappedNow,
  type Paging,
  type PagingState,
  type PhysicalMemory,
  readOnly,
  translate,
  type Translation,
} from "../mmu/mod.ts";
import * as slots from "../memory/mod.ts";
import type { PhysicalSpace } from "../memory/mod.ts";
import { NotModelled } from "./errors.ts";
import { raise } from "./events.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CR0_PG,
  CR0_WP,
  CR3_PCID,
  CR4_PCIDE,
  CR4_SMAP,
  CR4_SMEP,
  EFER_NX,
  FLAG_AC,
  GP_VECTOR,
  HIGH,
  PF_VECTOR,
  PHYSICAL_ADDRESS_LIMIT,
  RFLAGS,
  SYS_CR0,
  SYS_CR2,
  SYS_CR3,
  SYS_CR4,
  SYS_EFER,
} = abi;
const {
  TLB_DIRTY,
  TLB_EXECUTABLE,
  TLB_HOST_EXECUTABLE,
  TLB_HOST_READABLE,
  TLB_HOST_WRITABLE,
  TLB_USER,
  TLB_WRITABLE,
} = entries;

const { PAGE_SIZE } = slots;

/** Access: a read by the program. */
export const READS = 0;
/** Access: a write, or a read and a write. */
export const WRITES = 1;
/** Access: an instruction fetch. */
export const FETCHES = 2;
/** Access: the processor reads a table of the system's for itself. */
export const READS_SYSTEM = 3;
/** What an access does. */
export type Access = typeof READS | typeof WRITES | typeof FETCHES | typeof READS_SYSTEM;

/** Answer in place of an address: a fault was raised, or the guest has exited. */
export const FAULTED = -1;
/** Answer: no memory is there, and the virtualization hardware has done what there is to do. */
export const VIRTUALIZED = -2;

/** A page that no address has. */
const NO_PAGE = NaN;

/** An access, as walks want it. */
interface Walker {
  readonly write: boolean;
  readonly user: boolean;
  readonly fetch: boolean;
  readonly implicit: boolean;
}

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
  #systemFault: SystemFault | undefined = undefined;
  /** Walks so far: misses of the TLB, and hits that did not allow the access. */
  walks = 0;
  /** Accesses to tables that those have made. */
  walkAccesses = 0;
  readonly #p: Processor;
  #cr0 = 0;
  #cr3 = 0;
  #cr4 = 0;
  #efer = 0;
  #cpu: CpuTlb | undefined = undefined;
  #paging: Paging | undefined = undefined;
  /** The page of the last instruction, when that was found, and whether for CPL 3. */
  #fetchPage = NO_PAGE;
  #fetchGeneration = 0;
  #fetchMode = 0;
  /** Flags that an entry must have, and must not have, by access and mode: 2 * access + (CPL 3). */
  readonly #needs = new Uint8Array(8);
  readonly #forbids = new Uint8Array(8);

  /** An MMU that nothing has been told of. */
  constructor(p: Processor, physical: PhysicalSpace) {
    this.#p = p;
    this.physical = physical;
    // deno-lint-ignore no-this-alias
    const own = this;
    this.state = {
      get cr0() {
        return own.#cr0;
      },
      get cr3() {
        return own.#cr3;
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

  /** Paging as it is now. */
  get paging(): Paging {
    if (this.#paging === undefined) {
      const { virtualization } = this.#p;
      const second = new CachedSecond(virtualization.second(this.physical), this.cpu);
      this.#paging = {
        memory: this.physical,
        state: this.state,
        features: this.#p.features.paging,
        second,
      };
    }
    return this.#paging;
  }

  /** The processor is on another CPU: that has a TLB of its own. */
  moved(): void {
    this.#cpu = undefined;
    this.#paging = undefined;
    this.#fetchPage = NO_PAGE;
  }

  /** CR0, CR3, CR4 or EFER has changed. */
  changed(): void {
    const { sys } = this.#p;
    const cr3 = join(sys[SYS_CR3], sys[SYS_CR3 + 1]);
    const cr0 = cr3 < 4096 ? sys[SYS_CR0] & ~CR0_PG : sys[SYS_CR0];
    this.#cr3 = cr3;
    if (cr0 !== this.#cr0 || sys[SYS_CR4] !== this.#cr4 || sys[SYS_EFER] !== this.#efer) {
      this.#cr0 = cr0;
      this.#cr4 = sys[SYS_CR4];
      this.#efer = sys[SYS_EFER];
      this.#setRights();
    }
    if (this.#cpu !== undefined) this.#tag(this.#cpu);
  }

  /** The VPID, the ASID, or what leads to the second dimension has changed. */
  retag(): void {
    this.moved();
  }

  #setRights(): void {
    this.#fetchPage = NO_PAGE;
    const write = (this.#cr0 & CR0_WP) !== 0 ? TLB_WRITABLE : 0;
    const execute = TLB_HOST_EXECUTABLE | ((this.#efer & EFER_NX) !== 0 ? TLB_EXECUTABLE : 0);
    for (const access of [READS, WRITES, FETCHES, READS_SYSTEM]) {
      const own = access === WRITES
        ? TLB_DIRTY | TLB_HOST_WRITABLE
        : access === FETCHES
        ? execute
        : TLB_HOST_READABLE;
      this.#needs[2 * access] = own | (access === WRITES ? write : 0);
      this.#needs[2 * access + 1] = access === READS_SYSTEM
        ? own
        : own | TLB_USER | (access === WRITES ? TLB_WRITABLE : 0);
    }
    this.#forbids[2 * FETCHES] = (this.#cr4 & CR4_SMEP) !== 0 && (this.#cr0 & CR0_PG) !== 0 ? TLB_USER : 0;
    const smap = (this.#cr4 & CR4_SMAP) !== 0 && (this.#cr0 & CR0_PG) !== 0 ? TLB_USER : 0;
    this.#forbids[2 * READS] = smap;
    this.#forbids[2 * WRITES] = smap;
    this.#forbids[2 * READS_SYSTEM] = smap;
    this.#forbids[2 * READS_SYSTEM + 1] = smap;
  }

  /** Takes up the TLB of the CPU that it runs on: tags its accesses. */
  #meet(): CpuTlb {
    const cpu = this.#p.thread.tlb();
    this.#tag(cpu);
    return cpu;
  }

  #tag(cpu: CpuTlb): void {
    const { vpid, root } = this.#p.virtualization.tlbTags();
    cpu.tlb.setTags({ vpid, pcid: (this.#cr4 & CR4_PCIDE) !== 0 ? this.#cr3 & CR3_PCID : 0, root });
    this.#fetchPage = NO_PAGE;
  }

  /**
   * Whether the instruction at an address is fetched; otherwise that has faulted, or exited, or has walked the tables: a
   * step of its own, so that what the instruction does is seen by others when it begins. The page of the last one is
   * known until something is invalidated: a TLB of one entry for itself, which no oracle watches.
   */
  fetchable(linear: number): boolean {
    const page = Math.floor(linear / PAGE_SIZE);
    const cpu = this.cpu;
    const { generation } = cpu.tlb;
    const mode = this.#p.cpl === 3 ? 1 : 0;
    if (page === this.#fetchPage && generation === this.#fetchGeneration && mode === this.#fetchMode) {
      return true;
    }
    const { walks } = this;
    if (this.translate(linear, FETCHES, 1) === FAULTED) return false;
    if (cpu.oracle === undefined) {
      this.#fetchPage = page;
      this.#fetchGeneration = generation;
      this.#fetchMode = mode;
    }
    return this.walks === walks;
  }

  /**
   * Where a linear address is in the host's physical memory. Or {@linkcode FAULTED}, or {@linkcode VIRTUALIZED}: `bytes`
   * says what hardware is asked for then.
   */
  translate(linear: number, access: Access, bytes: number): number {
    const p = this.#p;
    const { linear: array } = this.cpu.tlb;
    const slot = array.lookup(Math.floor(linear / HIGH) | 0, linear | 0);
    const mode = 2 * access + (p.cpl === 3 ? 1 : 0);
    if (slot >= 0) {
      const flags = array.flags(slot);
      const forbidden = flags & this.#forbids[mode];
      if ((flags & this.#needs[mode]) === this.#needs[mode] && (forbidden === 0 || this.#excused(access))) {
        const cpu = this.#cpu!;
        if (cpu.oracle !== undefined) cpu.judge(slot, linear);
        return array.physical(slot) + offset(linear, array.shift(slot));
      }
    }
    return this.#walk(linear, access, bytes);
  }

  /** With RFLAGS.AC, CR4.SMAP lets explicit accesses pass. */
  #excused(access: Access): boolean {
    return (access === READS || access === WRITES) && (this.#p.regs[RFLAGS] & FLAG_AC) !== 0;
  }

  #walk(linear: number, access: Access, bytes: number): number {
    const p = this.#p;
    const found = this.#find(linear, this.#walker(access));
    if (found === undefined) return this.#fault(GP_VECTOR, 0, access);
    this.walks++;
    this.walkAccesses += found.accesses;
    p.charge(found.accesses * p.cost.pageWalk);
    switch (found.kind) {
      case "mapping": {
        this.cpu.insert(found.mapping);
        return found.mapping.physical + offset(linear, found.mapping.shift);
      }
      case "page fault":
        this.cpu.invalidate({ operation: "page fault", address: linear });
        p.sys[SYS_CR2] = linear;
        p.sys[SYS_CR2 + 1] = Math.floor(linear / HIGH);
        return this.#fault(PF_VECTOR, found.errorCode, access);
      default:
        return this.#hostFault(found, access, bytes);
    }
  }

  #walker(access: Access): Walker {
    const implicit = access === READS_SYSTEM;
    return { write: access === WRITES, fetch: access === FETCHES, user: this.#p.cpl === 3, implicit };
  }

  /** Walks; undefined for an address that is none. */
  #find(linear: number, walker: Walker): Translation | undefined {
    if ((this.#cr0 & CR0_PG) === 0) {
      if (linear < 0 || linear >= PHYSICAL_ADDRESS_LIMIT) return undefined;
    } else if (!abi.isCanonical(linear)) {
      return undefined;
    }
    return translate(this.paging, linear, walker);
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

  /** EPT or nested tables are against it: KVM's business, or no memory at all. */
  #hostFault(fault: HostFault, access: Access, bytes: number): number {
    const p = this.#p;
    if (fault.kind === "ept violation") {
      for (const operation of eptViolation(fault.physical, fault.linear)) this.cpu.invalidate(operation);
    }
    const { memory, virtualization } = p;
    const plain = access === WRITES ? memory.writable(fault.physical, 1) : memory.backed(fault.physical, 1);
    if (plain || fault.kind === "ept misconfiguration") {
      virtualization.hostFault(p, fault);
      return FAULTED;
    }
    if (access === FETCHES || access === READS_SYSTEM) {
      throw p.error(
        `it executes, or has a table, at guest-physical ${abi.hex(fault.physical)}: no memory is there`,
      );
    }
    return virtualization.unbacked(p, fault.physical, bytes, access === WRITES) ? FAULTED : VIRTUALIZED;
  }

  /** What the tables say of an address now. */
  now(kind: number, address: number): MappedNow | undefined {
    const { virtualization } = this.#p;
    const memory = readOnly(this.physical);
    const second = virtualization.second(memory);
    if (kind === entries.GUEST_PHYSICAL) {
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
    const paging = { memory, state: this.state, features: this.#p.features.paging };
    if ((this.#cr0 & CR0_PG) === 0) return linear;
    const found = translate(paging, linear, this.#walker(access));
    switch (found.kind) {
      case "mapping":
        return found.mapping.physical + offset(linear, found.mapping.shift);
      case "page fault":
        return -1 - found.errorCode;
      default:
        throw new NotModelled(`a walk of the guest's tables that ends in ${found.kind}`, "SDM 3A 4.7");
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

/** The offset of an address in its page: `shift` is at most 30. */
function offset(linear: number, shift: number): number {
  return linear & ((1 << shift) - 1);
}
