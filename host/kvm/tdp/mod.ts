/**
 * KVM's page tables of the second dimension.
 *
 * @module
 */

export { mappingOf } from "./page_fault.ts";
export type { HostLock } from "./locks.ts";
export {
  EPT_SPTE,
  isLeaf,
  isPresent,
  makeSmallSpte,
  makeSpte,
  makeTableSpte,
  ORDINARY_SPTE,
  type Spte,
  type SpteFormat,
  type SpteOptions,
} from "./spte.ts";
export { type TdpEntry, TdpTables } from "./tables.ts";
export { type Invalidating, VmMmu, type VmMmuOptions } from "./vm_mmu.ts";
