/**
 * MOV to and from control registers, as far as the processor carries it out by itself.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { type Invalidation, movToCr0, movToCr3, movToCr4 } from "../mmu/mod.ts";
import { raise } from "./events.ts";
import type { Processor } from "./processor.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  CR3_NO_FLUSH_HIGH,
  cr3Takes,
  CR4_PCIDE,
  GP_VECTOR,
  RAX,
  SYS_CR0,
  SYS_CR2,
  SYS_CR3,
  SYS_CR4,
} = abi;

/** Where they are. CR8 is the APIC's. */
const WORD: Readonly<Record<number, number>> = { 0: SYS_CR0, 2: SYS_CR2, 3: SYS_CR3, 4: SYS_CR4 };

/** MOV to a control register. */
export function movToCr(p: Processor, op: number, cr: number): void {
  if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  if (p.virtualization.movToCr(p, cr)) return;
  const { regs, sys } = p;
  const value = regs[RAX];
  const upper = regs[RAX + 1];
  if (cr === 8) {
    // CR8 bits 63:4 are reserved.
    if (value > 15 || upper !== 0) return raise(p, GP_VECTOR, 0);
    p.charge(p.cost.system);
    p.retire(op);
    p.virtualization.writeCr8(p, value);
    return;
  }
  if (cr === 3) {
    const pcide = (sys[SYS_CR4] & CR4_PCIDE) !== 0;
    if (!cr3Takes(upper, pcide, p.features.paging.maxPhysicalBits)) return raise(p, GP_VECTOR, 0);
    setCr3(p, value, upper);
  } else {
    const word = WORD[cr];
    const dropped = cr === 0 ? movToCr0(sys[word], value) : movToCr4(sys[word], value);
    sys[word] = value;
    sys[word + 1] = upper;
    pagingWritten(p, dropped);
  }
  p.charge(p.cost.system);
  p.retire(op);
}

/** Loads CR3 with an operand that it takes. Bit 63 is none of it. */
export function setCr3(p: Processor, value: number, upper: number): void {
  const { sys } = p;
  sys[SYS_CR3] = value;
  sys[SYS_CR3 + 1] = upper & ~CR3_NO_FLUSH_HIGH;
  const kept = (upper & CR3_NO_FLUSH_HIGH) !== 0 && (sys[SYS_CR4] & CR4_PCIDE) !== 0;
  pagingWritten(p, kept ? undefined : movToCr3(upper, value, sys[SYS_CR4]));
}

/** A register that paging depends on was written: what that invalidates goes, with the tags that accesses had. */
function pagingWritten(p: Processor, dropped: Invalidation | undefined): void {
  if (dropped !== undefined) p.mmu?.invalidate(dropped);
  const before = p.paged;
  p.pagingChanged();
  // Tables and none know nothing of each other's translations, global ones either: as where CR0.PG is cleared.
  if (p.paged !== before) p.mmu!.invalidate({ operation: "MOV to CR0 that clears PG" });
}

/** MOV from a control register. */
export function movFromCr(p: Processor, op: number, cr: number): void {
  if (p.cpl !== 0) return raise(p, GP_VECTOR, 0);
  if (p.virtualization.movFromCr(p, cr)) return;
  const { regs } = p;
  if (cr === 8) {
    regs[RAX] = p.virtualization.readCr8(p);
    regs[RAX + 1] = 0;
  } else {
    const word = WORD[cr];
    regs[RAX] = p.sys[word];
    regs[RAX + 1] = p.sys[word + 1];
  }
  p.charge(p.cost.system);
  p.retire(op);
}
