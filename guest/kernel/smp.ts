/**
 * Function calls on other processors (kernel/smp.c): an entry in the target's queue for each, and an IPI to those whose
 * queue was empty.
 *
 * @module
 */

import { type Guest, NMI_VECTOR, VECTOR, type X86Cpu } from "../../abi/mod.ts";
import { withInterruptsOff } from "../apic/driver.ts";
import {
  addTo,
  equalMasks,
  type GuestValue,
  loadMask,
  maskWords,
  removeFrom,
  storeMask,
  takeFirst,
  weight,
} from "./cpumask.ts";
import type { Kernel } from "./kernel.ts";
import { cmpxchgLong, loadLong, loadU64, type LongBits, storeLong, storeU64, xchgLong } from "./long.ts";
import { CALL_SINGLE_DATA, csdOf, data, percpu, PERCPU_AREA } from "./memory_map.ts";
import { CALL_FUNCTION_SINGLE_VECTOR, CALL_FUNCTION_VECTOR, FIRST_EXTERNAL_VECTOR } from "./vectors.ts";

/** A function that another processor calls: with interrupts off, and one whole number below 2^53. */
export type SmpFunction = (cpu: X86Cpu, info: number) => Guest;

const NEXT = CALL_SINGLE_DATA.fields.next.offset;
const FLAGS = CALL_SINGLE_DATA.fields.flags.offset;
const FUNC = CALL_SINGLE_DATA.fields.func.offset;
const INFO = CALL_SINGLE_DATA.fields.info.offset;

/** The entry is in use until its function has run. */
const CSD_FLAG_LOCK = 1;

/** What to call, and where. */
export interface SmpCall {
  /** The address that {@linkcode Kernel.smpFunction} gave. */
  readonly func: number;
  /** What the function gets. */
  readonly info: number;
  /** Whether this processor calls it too where it is in the mask, once the others are on their way; not by default. */
  readonly runLocal?: boolean;
}

/**
 * Calls a function on one processor and waits for it (smp_call_function_single). Whether that processor is on line:
 * nothing is called otherwise.
 */
export function* smpCallFunctionSingle(
  cpu: X86Cpu,
  kernel: Kernel,
  target: number,
  call: SmpCall,
): GuestValue<boolean> {
  yield cpu.load32(cpu.gsBase);
  if (cpu.eax === target) {
    yield* withInterruptsOff(cpu, kernel.functionAt(call.func)(cpu, call.info));
    return true;
  }
  if (!(yield* kernel.online(cpu, target))) return false;
  const csd = stackCsd(cpu);
  yield* fill(cpu, kernel.bits, csd, call);
  if (yield* enqueue(cpu, kernel.bits, csd, target)) {
    yield* kernel.apic.sendIpi(cpu, target, CALL_FUNCTION_SINGLE_VECTOR);
  }
  yield* waitFor(cpu, csd);
  return true;
}

/**
 * Calls a function on every online processor of a mask, this one only where it says so, and waits for all
 * (smp_call_function_many). Not for interrupt handlers: they may have interrupted a call that has locked this
 * processor's entries and not sent them.
 */
export function* smpCallFunctionMany(cpu: X86Cpu, kernel: Kernel, mask: number, call: SmpCall): Guest {
  const { cpus } = kernel;
  if (inInterrupt(cpu)) kernel.warn("smp_call_function_many from an interrupt handler can deadlock");
  yield cpu.load32(cpu.gsBase);
  const self = cpu.eax;
  const targets = yield* loadMask(cpu, mask, cpus);
  const online = yield* loadMask(cpu, data("online"), cpus);
  for (let i = 0; i < targets.length; i++) targets[i] &= online[i];
  const runLocal = call.runLocal === true && ((targets[self >>> 5] >>> (self & 31)) & 1) !== 0;
  removeFrom(targets, self);
  if (runLocal && weight(targets) === 0) {
    yield* withInterruptsOff(cpu, kernel.functionAt(call.func)(cpu, call.info));
    return;
  }
  if (!runLocal && kernel.behaviour.singleCallWhen === "one-target" && weight(targets) === 1) {
    yield* smpCallFunctionSingle(cpu, kernel, takeFirst(targets), call);
    return;
  }
  yield* storeMask(cpu, cpu.gsBase + PERCPU_AREA.fields.cfdMask.offset, targets);

  const ipis = new Uint32Array(maskWords(cpus));
  const rest = targets.slice();
  for (let target = takeFirst(rest); target >= 0; target = takeFirst(rest)) {
    const csd = csdOf(self, target, cpus);
    yield* waitFor(cpu, csd);
    yield* fill(cpu, kernel.bits, csd, call);
    const wasEmpty = yield* enqueue(cpu, kernel.bits, csd, target);
    if (wasEmpty || !kernel.behaviour.skipsQueuedIpis) addTo(ipis, target);
  }
  const ipiMask = cpu.gsBase + PERCPU_AREA.fields.cfdIpiMask.offset;
  yield* storeMask(cpu, ipiMask, ipis);
  const count = weight(ipis);
  if (count === 1 && kernel.behaviour.singleCallWhen === "one-ipi") {
    yield* kernel.apic.sendIpi(cpu, takeFirst(ipis.slice()), CALL_FUNCTION_SINGLE_VECTOR);
  } else if (count > 0) {
    yield* sendCallFunctionIpi(cpu, kernel, { address: ipiMask, words: ipis, self });
  }
  if (runLocal) yield* withInterruptsOff(cpu, kernel.functionAt(call.func)(cpu, call.info));
  for (let target = takeFirst(targets); target >= 0; target = takeFirst(targets)) {
    yield* waitFor(cpu, csdOf(self, target, cpus));
  }
}

/** Whether an interrupt or an NMI is being handled, and not only a system call or a fault. */
function inInterrupt(cpu: X86Cpu): boolean {
  let frame = cpu.top;
  for (let depth = cpu.depth; depth > 1; depth--, frame = frame.below) {
    const vector = frame.regs[VECTOR];
    if (vector === NMI_VECTOR || (vector >= FIRST_EXTERNAL_VECTOR && vector < 256)) return true;
  }
  return false;
}

/** A mask in memory and in registers, and who looks at it. */
interface IpiTargets {
  readonly address: number;
  readonly words: Readonly<Uint32Array>;
  readonly self: number;
}

/** To all others at once where the mask means them, else to the mask (native_send_call_func_ipi). */
function* sendCallFunctionIpi(cpu: X86Cpu, kernel: Kernel, { address, words, self }: IpiTargets): Guest {
  if (!kernel.behaviour.ipiShorthand || kernel.ipiShorthand) {
    const others = yield* loadMask(cpu, data("online"), kernel.cpus);
    removeFrom(others, self);
    if (equalMasks(words, others)) {
      yield* kernel.apic.sendIpiAllButSelf(cpu, CALL_FUNCTION_VECTOR);
      return;
    }
  }
  yield* kernel.apic.sendIpiMask(cpu, address, CALL_FUNCTION_VECTOR);
}

/** An entry on the caller's stack: an interrupt may make a call of its own before this one is done. */
function stackCsd(cpu: X86Cpu): number {
  return cpu.gsBase + PERCPU_AREA.fields.csd.offset + CALL_SINGLE_DATA.size * (cpu.depth - 1);
}

/** Locks an entry and says what to call. */
function* fill(cpu: X86Cpu, bits: LongBits, csd: number, { func, info }: SmpCall): Guest {
  yield cpu.store32(csd + FLAGS, CSD_FLAG_LOCK);
  yield storeLong(cpu, bits, csd + FUNC, func);
  yield* storeU64(cpu, bits, csd + INFO, info);
}

/** Puts an entry at the head of the target's queue. Whether the queue was empty (llist_add). */
function* enqueue(cpu: X86Cpu, bits: LongBits, csd: number, target: number): GuestValue<boolean> {
  const queue = percpu(target, "callQueue");
  let first: number;
  do {
    yield cpu.load32(queue);
    first = cpu.eax;
    yield storeLong(cpu, bits, csd + NEXT, first);
    yield cmpxchgLong(cpu, bits, queue, { expected: first, value: csd });
  } while (!cpu.zf);
  return first === 0;
}

/** Waits until the target has run the function (csd_lock_wait). */
function* waitFor(cpu: X86Cpu, csd: number): Guest {
  yield cpu.load32(csd + FLAGS);
  if (cpu.eax !== 0) yield cpu.pauseWhile(csd + FLAGS, CSD_FLAG_LOCK);
}

/** The call-function interrupts' work: runs what is in this processor's queue, oldest first. */
export function* flushCallFunctionQueue(cpu: X86Cpu, kernel: Kernel): Guest {
  const { bits } = kernel;
  yield xchgLong(cpu, bits, cpu.gsBase + PERCPU_AREA.fields.callQueue.offset, 0);
  const entries: number[] = [];
  for (let csd = cpu.eax; csd !== 0; csd = cpu.eax) {
    entries.push(csd);
    yield loadLong(cpu, bits, csd + NEXT);
  }
  for (const csd of entries.reverse()) {
    yield loadLong(cpu, bits, csd + FUNC);
    const func = kernel.functionAt(cpu.eax);
    yield* func(cpu, yield* loadU64(cpu, bits, csd + INFO));
    yield cpu.store32(csd + FLAGS, 0);
  }
}
