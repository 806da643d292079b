/**
 * The kernel's accesses to user memory (arch/x86/include/asm/uaccess.h): between STAC and CLAC where the processor has
 * SMAP. A page that is not there is brought in; where that cannot be, {@linkcode PageFault} is thrown: what the exception
 * table is for. In a kernel without paging they are plain accesses.
 *
 * @module
 */

import { type Guest, PageFault, PF_VECTOR, type Vector, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import type { Kernel } from "../kernel/kernel.ts";

/** Loads 32 bits from user memory. */
export function* getUser32(cpu: X86Cpu, kernel: Kernel, address: number): GuestValue<number> {
  yield* begin(cpu, kernel, address, 4);
  try {
    yield cpu.load32(address);
  } catch (fault) {
    yield* end(cpu, kernel);
    throw fault;
  }
  const value = cpu.eax;
  yield* end(cpu, kernel);
  return value;
}

/** Stores 32 bits to user memory. */
export function* putUser32(cpu: X86Cpu, kernel: Kernel, address: number, value: number): Guest {
  yield* begin(cpu, kernel, address, 4);
  try {
    yield cpu.store32(address, value);
  } catch (fault) {
    yield* end(cpu, kernel);
    throw fault;
  }
  yield* end(cpu, kernel);
}

/** The same as {@linkcode getUser32} where no fault can be served: every fault is thrown (pagefault_disable). */
export function* getUser32Atomic(cpu: X86Cpu, kernel: Kernel, address: number): GuestValue<number> {
  if (!kernel.hasMm) return yield* getUser32(cpu, kernel, address);
  yield* kernel.mm.disableFaults(cpu, 1);
  let value: number;
  try {
    value = yield* getUser32(cpu, kernel, address);
  } catch (fault) {
    yield* kernel.mm.disableFaults(cpu, -1);
    throw fault;
  }
  yield* kernel.mm.disableFaults(cpu, -1);
  return value;
}

/** Has a user page brought in for reading (fault_in_readable). Whether it is there. */
export function* faultIn(cpu: X86Cpu, kernel: Kernel, address: number): GuestValue<boolean> {
  try {
    yield* getUser32(cpu, kernel, address);
    return true;
  } catch (fault) {
    if (fault instanceof PageFault) return false;
    throw fault;
  }
}

function* begin(cpu: X86Cpu, kernel: Kernel, address: number, bytes: number): Guest {
  if (!kernel.hasMm) return;
  if (!kernel.mm.accessOk(address, bytes)) {
    throw new PageFault(PF_VECTOR as Vector, 0, `an access to ${address}`);
  }
  if (kernel.mm.smap) yield cpu.stac();
}

function* end(cpu: X86Cpu, kernel: Kernel): Guest {
  if (kernel.hasMm && kernel.mm.smap) yield cpu.clac();
}
