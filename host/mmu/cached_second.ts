/**
 * EPT or nested tables as a processor uses them: what it knows of a guest-physical page needs no walk.
 *
 * @module
 */

import type { CpuTlb } from "./cpu_tlb.ts";
import type { HostFault, HostPage, PhysicalAccess, SecondDimension } from "./translation.ts";

/** The second dimension, seen through a CPU's guest-physical mappings. */
export class CachedSecond implements SecondDimension {
  readonly #tables: SecondDimension;
  readonly #cpu: CpuTlb;

  /** Walks `tables` where the CPU has no mapping that serves. */
  constructor(tables: SecondDimension, cpu: CpuTlb) {
    this.#tables = tables;
    this.#cpu = cpu;
  }

  /** Translates a guest-physical address. */
  translate(physical: number, access: PhysicalAccess): HostPage | HostFault {
    const array = this.#cpu.tlb.guestPhysical;
    const slot = array.lookupAddress(physical);
    const cached = slot < 0 ? undefined : array.hostPage(slot);
    if (cached !== undefined && serves(cached, access, this.#tables.tableAccessWrites)) {
      this.#cpu.judgeHostPage(slot, physical);
      return cached;
    }
    const found = this.#tables.translate(physical, access);
    if (found.kind === "page") this.#cpu.insertHostPage(found);
    return found;
  }

  /** As the tables have it. */
  get tableAccessWrites(): boolean {
    return this.#tables.tableAccessWrites;
  }
}

/** Whether a cached page serves an access without a walk, which may set a dirty flag. */
function serves(page: HostPage, { purpose, write, fetch }: PhysicalAccess, tableWrites: boolean): boolean {
  if (purpose === "table update" || (purpose === "table" ? tableWrites : write)) {
    return page.writable && page.dirty;
  }
  return purpose === "final" && fetch ? page.executable : page.readable;
}
