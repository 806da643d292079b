/**
 * INVLPG, INVPCID, STAC and CLAC.
 *
 * @module
 */

import {
  CR3_PCID,
  CR4_PCIDE,
  CR4_SMAP,
  FLAG_AC,
  GP_VECTOR,
  linearAddress,
  RAX,
  RDI,
  RFLAGS,
  SYS_CR4,
  UD_VECTOR,
} from "../../abi/mod.ts";
import type { InvalidationName } from "../mmu/mod.ts";
import { raise } from "./events.ts";
import { readOperand } from "./linear.ts";
import { READS } from "./mmu.ts";
import type { Processor } from "./processor.ts";

/** INVLPG. An address that is not canonical is none: nothing happens (SDM 2A, INVLPG). */
export function invlpg(p: Processor, op: number): void {
  if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  const linear = linearAddress(p.regs[RDI], p.regs[RDI + 1]);
  if (p.virtualization.invlpg(p, linear ?? 0)) return;
  if (linear !== undefined) p.mmu?.invalidate({ operation: "INVLPG", address: linear });
  p.charge(p.cost.invlpg);
  p.retire(op);
}

/** INVPCID's types, by number. */
const TYPES: readonly InvalidationName[] = [
  "INVPCID type 0",
  "INVPCID type 1",
  "INVPCID type 2",
  "INVPCID type 3",
];

/** INVPCID (SDM 2A): what its descriptor must not hold raises #GP. */
export function invpcid(p: Processor, op: number): void {
  if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  const type = p.regs[RAX];
  if (p.virtualization.invpcid(p, type)) return;
  const operation = p.regs[RAX + 1] === 0 ? TYPES[type] : undefined;
  if (operation === undefined) return raise(p, GP_VECTOR, 0);
  const descriptor = readOperand(p, 16, READS);
  if (descriptor === undefined) return;
  const pcid = descriptor.getUint32(0, true);
  const address = linearAddress(descriptor.getUint32(8, true), descriptor.getUint32(12, true));
  if ((pcid & ~CR3_PCID) !== 0 || descriptor.getUint32(4, true) !== 0) return raise(p, GP_VECTOR, 0);
  if (type < 2 && pcid !== 0 && (p.sys[SYS_CR4] & CR4_PCIDE) === 0) return raise(p, GP_VECTOR, 0);
  if (type === 0 && address === undefined) return raise(p, GP_VECTOR, 0);
  p.mmu?.invalidate({ operation, pcid, ...(type === 0 && { address: address! }) });
  p.charge(p.cost.invpcid);
  p.retire(op);
}

/** STAC and CLAC. */
export function setAc(p: Processor, op: number, on: boolean): void {
  if (p.cpl !== 0 || (p.features.cr4 & CR4_SMAP) === 0) return raise(p, UD_VECTOR, 0);
  p.regs[RFLAGS] = on ? p.regs[RFLAGS] | FLAG_AC : p.regs[RFLAGS] & ~FLAG_AC;
  p.charge(p.cost.insn);
  p.retire(op);
}
