/**
 * What each instruction does in guest mode. The common ones are executed here; what touches the system, waits, or
 * leaves plain memory is handed on.
 *
 * @module
 */

import * as abi from "../../abi/mod.ts";
import { iret, raise } from "./events.ts";
import { access32, accessMemory } from "./memory_access.ts";
import type { Processor } from "./processor.ts";
import { hypercall, portIo, readMsr, system, writeMsr } from "./privileged.ts";
import { pauseWhile, work } from "./waiting.ts";

// Constants of its own are folded into a module's code; imported ones are loaded at each use.
const {
  FLAG_IF,
  FLAG_IOPL,
  GP_VECTOR,
  HIGH,
  OP_BTR,
  OP_BTS,
  OP_CLI,
  OP_CMPXCHG32,
  OP_CMPXCHG64,
  OP_CPUID,
  OP_HLT,
  OP_IN16,
  OP_IN32,
  OP_IN8,
  OP_IRET,
  OP_LOAD16,
  OP_LOAD32,
  OP_LOAD64,
  OP_LOAD8,
  OP_LOCK_BTR,
  OP_LOCK_BTS,
  OP_OUT16,
  OP_OUT32,
  OP_OUT8,
  OP_PAUSE,
  OP_PAUSE_WHILE,
  OP_PUSHF,
  OP_RDMSR,
  OP_RDTSC,
  OP_STI,
  OP_STORE16,
  OP_STORE32,
  OP_STORE64,
  OP_STORE8,
  OP_VMCALL,
  OP_VMMCALL,
  OP_WORK,
  OP_WRMSR,
  OP_XADD32,
  OP_XCHG32,
  OP_XCHG64,
  RAX,
  RDX,
  RFLAGS,
} = abi;

/**
 * Executes the pending instruction. It completes, stays pending (a fault, a wait), or causes a VM exit. `short` lets
 * common accesses to memory take the short way.
 */
export function execute(p: Processor, op: number, short: boolean): void {
  const regs = p.regs;
  switch (op) {
    case OP_WRMSR:
      writeMsr(p, op);
      return;
    case OP_WORK:
      work(p);
      return;
    case OP_VMCALL:
    case OP_VMMCALL:
      hypercall(p);
      return;
    case OP_HLT:
      if (p.cpl !== 0) raise(p, GP_VECTOR, 0);
      else if (!p.virtualization.hlt(p)) throw p.error("HLT without HLT exiting is not modelled");
      return;
    case OP_PAUSE:
      if (p.virtualization.pause(p)) return;
      p.charge(p.cost.pause);
      p.retire(op);
      return;
    case OP_IRET:
      return iret(p);
    case OP_STI:
      if (p.cpl > ((regs[RFLAGS] & FLAG_IOPL) >>> 12)) return raise(p, GP_VECTOR, 0);
      {
        const wasOff = (regs[RFLAGS] & FLAG_IF) === 0;
        regs[RFLAGS] |= FLAG_IF;
        p.charge(p.cost.insn);
        p.retire(op);
        p.shadow = wasOff;
      }
      return;
    case OP_CLI:
      if (p.cpl > ((regs[RFLAGS] & FLAG_IOPL) >>> 12)) return raise(p, GP_VECTOR, 0);
      regs[RFLAGS] &= ~FLAG_IF;
      p.charge(p.cost.insn);
      p.retire(op);
      return;
    case OP_CPUID:
      if (!p.virtualization.cpuid(p)) throw p.error("CPUID always exits");
      return;
    case OP_RDMSR:
      readMsr(p, op);
      return;
    case OP_RDTSC: {
      const tsc = p.tsc();
      regs[RAX] = tsc;
      regs[RAX + 1] = 0;
      regs[RDX] = tsc / HIGH;
      regs[RDX + 1] = 0;
      p.charge(p.cost.rdtsc);
      p.retire(op);
      return;
    }
    case OP_IN8:
    case OP_IN16:
    case OP_IN32:
    case OP_OUT8:
    case OP_OUT16:
    case OP_OUT32:
      portIo(p, op);
      return;
    case OP_PAUSE_WHILE:
      pauseWhile(p);
      return;
    case OP_PUSHF:
      regs[RAX] = regs[RFLAGS];
      regs[RAX + 1] = 0;
      p.charge(p.cost.insn);
      p.retire(op);
      return;
    case OP_LOAD32:
    case OP_STORE32:
    case OP_BTR:
      if (short) access32(p, op);
      else accessMemory(p, op);
      return;
    case OP_LOAD8:
    case OP_LOAD16:
    case OP_LOAD64:
    case OP_STORE8:
    case OP_STORE16:
    case OP_STORE64:
    case OP_BTS:
    case OP_LOCK_BTR:
    case OP_LOCK_BTS:
    case OP_XCHG32:
    case OP_XCHG64:
    case OP_CMPXCHG32:
    case OP_CMPXCHG64:
    case OP_XADD32:
      accessMemory(p, op);
      return;
    default:
      system(p, op);
  }
}
