/**
 * The interrupt descriptor table in guest memory.
 *
 * @module
 */

import {
  DESCRIPTOR_PTR64,
  GATE_INTERRUPT,
  type Guest,
  high,
  IDT_GATE32,
  IDT_GATE64,
  KERNEL32_CS,
  KERNEL_CS,
  type X86Cpu,
} from "../../abi/mod.ts";
import { storeLong } from "./long.ts";
import { IDT, IDT_POINTER } from "./memory_map.ts";

const VECTORS = 256;

/** Points an interrupt gate to a handler. */
export function* setGate(cpu: X86Cpu, vector: number, handler: number, bits: 64 | 32): Guest {
  const low = handler & 0xffff;
  const middle = (handler & 0xffff_0000) | (GATE_INTERRUPT << 8);
  if (bits === 64) {
    const gate = IDT + IDT_GATE64.size * vector;
    yield cpu.store32(gate, (KERNEL_CS << 16) | low);
    yield cpu.store32(gate + 4, middle);
    yield cpu.store64(gate + 8, high(handler));
  } else {
    const gate = IDT + IDT_GATE32.size * vector;
    yield cpu.store32(gate, (KERNEL32_CS << 16) | low);
    yield cpu.store32(gate + 4, middle);
  }
}

/** Writes the operand of LIDT. */
export function* describeIdt(cpu: X86Cpu, bits: 64 | 32): Guest {
  const size = bits === 64 ? IDT_GATE64.size : IDT_GATE32.size;
  yield cpu.store16(IDT_POINTER, VECTORS * size - 1);
  yield storeLong(cpu, bits, IDT_POINTER + DESCRIPTOR_PTR64.fields.base.offset, IDT);
}

/** Loads the table into this processor. */
export function* loadIdt(cpu: X86Cpu): Guest {
  yield cpu.lidt(IDT_POINTER);
}
