/**
 * The system calls of the scheduler: yield, sleep, wait and wake, and who and where one is.
 *
 * @module
 */

import { PageFault, type X86Cpu } from "../../abi/mod.ts";
import type { GuestValue } from "../kernel/cpumask.ts";
import { faultIn, getUser32Atomic, putUser32 } from "../mm/uaccess.ts";
import { currentTask, schedule } from "./core.ts";
import { taskField } from "./layout.ts";
import type { Scheduler } from "./scheduler.ts";
import {
  EAGAIN,
  EFAULT,
  EINVAL,
  ENOSYS,
  NR_exit,
  NR_futex,
  NR_getcpu,
  NR_gettid,
  NR_nanosleep,
  NR_sched_yield,
  type SyscallArguments,
  type SyscallTable,
} from "./syscalls.ts";
import { doExit, exited } from "./task.ts";
import { waitIf, type WaitKey, wake } from "./wait.ts";

/** FUTEX_WAIT. */
export const FUTEX_WAIT = 0;
/** FUTEX_WAKE. */
export const FUTEX_WAKE = 1;
/** FUTEX_PRIVATE_FLAG: nobody outside the address space takes part. All futexes here are like that. */
export const FUTEX_PRIVATE_FLAG = 128;

/** Adds them to a table. */
export function addSchedulerCalls(table: SyscallTable): void {
  table.add(NR_sched_yield, function* (cpu, sched) {
    yield* schedule(cpu, sched);
    return 0;
  });
  table.add(NR_nanosleep, function* (cpu, sched, [nanoseconds]) {
    if (nanoseconds < 0) return -EINVAL;
    yield* sched.sleep(cpu, nanoseconds);
    return 0;
  });
  table.add(NR_exit, function* (cpu, sched, [code]) {
    yield* doExit(cpu, sched, exited(code));
    return 0;
  });
  table.add(NR_gettid, function* (cpu) {
    yield cpu.load32(taskField(yield* currentTask(cpu), "pid"));
    return cpu.eax;
  });
  table.add(NR_getcpu, getcpu);
  table.add(NR_futex, futex);
}

/** Stores the processor's number, where a place for it is given. */
function* getcpu(cpu: X86Cpu, sched: Scheduler, [address]: SyscallArguments): GuestValue<number> {
  yield cpu.load32(cpu.gsBase);
  const n = cpu.eax;
  if (address === 0) return 0;
  try {
    yield* putUser32(cpu, sched.kernel, address, n);
    return 0;
  } catch (fault) {
    if (fault instanceof PageFault) return -EFAULT;
    throw fault;
  }
}

function* futex(cpu: X86Cpu, sched: Scheduler, args: SyscallArguments): GuestValue<number> {
  const [address, operation, value] = args;
  if (address % 4 !== 0) return -EINVAL;
  yield cpu.load64(taskField(yield* currentTask(cpu), "mm"));
  const key = { address, mm: cpu.eax };
  switch (operation & ~FUTEX_PRIVATE_FLAG) {
    case FUTEX_WAIT:
      return yield* futexWait(cpu, sched, key, value >>> 0);
    case FUTEX_WAKE:
      return yield* wake(cpu, sched, key, value);
    default:
      return -ENOSYS;
  }
}

/**
 * Sleeps if the word is what the caller last saw. It is read with the wait queue locked, where no fault can be served:
 * after one, the page is brought in without the lock, and all is tried again (futex_wait_setup).
 */
function* futexWait(cpu: X86Cpu, sched: Scheduler, key: WaitKey, expected: number): GuestValue<number> {
  const { kernel } = sched;
  for (;;) {
    try {
      const slept = yield* waitIf(cpu, sched, key, function* () {
        return (yield* getUser32Atomic(cpu, kernel, key.address)) === expected;
      });
      return slept ? 0 : -EAGAIN;
    } catch (fault) {
      if (!(fault instanceof PageFault)) throw fault;
    }
    if (!(yield* faultIn(cpu, kernel, key.address))) return -EFAULT;
  }
}
