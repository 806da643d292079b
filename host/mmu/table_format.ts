/**
 * The formats of page tables as masks, for walks in a hurry: what an entry must not hold, by its level.
 *
 * @module
 */

import {
  beyondPhysicalHigh,
  EPT_A,
  EPT_D,
  EPT_PS,
  type EptFeatures,
  LEVEL_PD,
  LEVEL_PDPT,
  LEVEL_PML4,
  type PagingFeatures,
  PTE_A,
  PTE_D,
  PTE_G,
  PTE_NX_HIGH,
  PTE_PS,
} from "../../abi/mod.ts";

/** All bits: an entry of that level maps no page. */
const EVERYTHING = -1;

/** What entries of a format must not hold, and which flags processors set in them. */
export interface TableFormat {
  /** The accessed flag; 0 where there is none. */
  readonly accessed: number;
  /** The dirty flag; 0 where there is none. */
  readonly dirty: number;
  /** Reserved bits of the high half. */
  readonly reservedHigh: number;
  /** Reserved bits of the low half by level, where the entry references a table. */
  readonly reservedInTable: Int32Array;
  /** The same where it maps a page. */
  readonly reservedInPage: Int32Array;
}

/** The ordinary format: `reservedBitSet` in masks. */
export function ordinaryFormat({ maxPhysicalBits, pages1G, amd }: PagingFeatures, nx: boolean): TableFormat {
  const reservedInTable = new Int32Array(LEVEL_PML4 + 1);
  const reservedInPage = new Int32Array(LEVEL_PML4 + 1);
  reservedInTable[LEVEL_PML4] = amd === true ? PTE_G : 0;
  reservedInPage[LEVEL_PML4] = EVERYTHING;
  reservedInPage[LEVEL_PDPT] = pages1G ? 0x3fff_e000 : PTE_PS; // bits 29:13
  reservedInPage[LEVEL_PD] = 0x001f_e000; // bits 20:13
  const reservedHigh = beyondPhysicalHigh(maxPhysicalBits) | (nx ? 0 : PTE_NX_HIGH);
  return { accessed: PTE_A, dirty: PTE_D, reservedHigh, reservedInTable, reservedInPage };
}

/** The format of extended page tables: `eptMisconfigured` in masks, as far as an entry can be read at all. */
export function eptFormat(features: EptFeatures, accessedDirty: boolean): TableFormat {
  const { maxPhysicalBits, pages1G, pages2M } = features;
  const reservedInTable = new Int32Array(LEVEL_PML4 + 1).fill(0x78); // bits 6:3
  const reservedInPage = new Int32Array(LEVEL_PML4 + 1);
  reservedInPage[LEVEL_PML4] = EVERYTHING;
  reservedInPage[LEVEL_PDPT] = pages1G ? 0x3fff_f000 : EPT_PS; // bits 29:12
  reservedInPage[LEVEL_PD] = pages2M ? 0x001f_f000 : EPT_PS; // bits 20:12
  const [accessed, dirty] = accessedDirty ? [EPT_A, EPT_D] : [0, 0];
  return {
    accessed,
    dirty,
    reservedHigh: beyondPhysicalHigh(maxPhysicalBits),
    reservedInTable,
    reservedInPage,
  };
}
