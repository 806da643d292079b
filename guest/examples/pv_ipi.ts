/**
 * The IPI microbenchmark that the 2018 PV IPI series used (https://lkml.org/lkml/2017/12/19/141): function calls on no
 * processor, on the caller itself, on another one, on all others, and on all others that take a lock.
 *
 *     deno run -P=examples guest/examples/pv_ipi.ts [--vcpus N] [--times N] [--backend vmx|svm] [--seed S] [--json]
 *
 * runs it on 80 vCPUs in every APIC mode, vanilla and with PV IPIs, with the guest and the host of 2018 and of today,
 * and prints who exited how often beside the published table.
 *
 * @module
 */

import {
  data,
  type Guest,
  type GuestValue,
  Kernel,
  type KernelOptions,
  loadMask,
  loadU64,
  memoryNeeded,
  rdtsc,
  removeFrom,
  smpCallFunctionMany,
  smpCallFunctionSingle,
  storeU64,
  takeFirst,
  type X86Cpu,
} from "@exitless/exitless";

/** The benchmark's tests, by the names that it prints. */
export const IPI_TESTS = ["dry-run", "self-ipi", "normal-ipi", "broadcast-ipi", "broadcast-lock"] as const;

/** A test. */
export type IpiTest = (typeof IPI_TESTS)[number];

/** What one test measured: the two figures that the benchmark prints. */
export interface IpiTiming {
  /** Cycles from before the call to the function's own look at the clock, all times together; 0 for broadcasts. */
  readonly delivery: number;
  /** Cycles of all times together. */
  readonly total: number;
}

/** How the benchmark is run. */
export interface IpiBenchmarkOptions extends Omit<KernelOptions, "main"> {
  /** How often each test is done. */
  readonly times: Readonly<Record<IpiTest, number>>;
  /** Called before a test. */
  readonly begin?: (test: IpiTest) => void;
  /** Called after a test, with what it measured. */
  readonly end?: (test: IpiTest, timing: IpiTiming) => void;
}

/** Links the guest. Throws `RangeError` for options that cannot be. */
export function ipiBenchmark(options: IpiBenchmarkOptions): Kernel {
  const kernel: Kernel = new Kernel({
    ...options,
    *main(cpu: X86Cpu, kernel: Kernel): Guest {
      for (const test of IPI_TESTS) {
        options.begin?.(test);
        const timing = yield* bench(cpu, kernel, test);
        options.end?.(test, timing);
      }
    },
  });
  if (kernel.cpus < 2) throw new RangeError("Cannot run the IPI benchmark: it needs at least 2 processors");
  // The benchmark's variables, behind the kernel's.
  const time = memoryNeeded(kernel.cpus);
  const lock = time + 64;
  const handleIpi = kernel.smpFunction(function* handleIpi(cpu: X86Cpu, info: number): Guest {
    if (info === 0) return;
    const now = yield* rdtsc(cpu);
    const then = yield* loadU64(cpu, kernel.bits, info);
    yield* storeU64(cpu, kernel.bits, info, now - then);
  });
  // A test-and-set lock, as the kernel takes on a hypervisor without paravirtual spinlocks (virt_spin_lock).
  const handleIpiLock = kernel.smpFunction(function* handleIpiSpinlock(cpu: X86Cpu, info: number): Guest {
    for (;;) {
      yield cpu.xchg32(info, 1);
      if (cpu.eax === 0) break;
      yield cpu.pauseWhile(info, 1);
    }
    yield cpu.store32(info, 0);
  });

  /** Does one test as often as asked, between two looks at the clock. */
  function* bench(cpu: X86Cpu, kernel: Kernel, test: IpiTest): GuestValue<IpiTiming> {
    let delivery = 0;
    const begin = yield* rdtsc(cpu);
    for (let i = options.times[test]; i > 0; i--) delivery += yield* poke(cpu, kernel, test);
    return { delivery, total: (yield* rdtsc(cpu)) - begin };
  }

  /** Does one test once. What its function measured. */
  function* poke(cpu: X86Cpu, kernel: Kernel, test: IpiTest): GuestValue<number> {
    switch (test) {
      case "dry-run":
        return 0;
      case "self-ipi":
        return yield* timed(cpu, kernel, 0);
      case "normal-ipi":
        return yield* timed(cpu, kernel, yield* anyOther(cpu, kernel));
      case "broadcast-ipi":
        yield* smpCallFunctionMany(cpu, kernel, data("online"), { func: handleIpi, info: 0 });
        return 0;
      case "broadcast-lock":
        yield* smpCallFunctionMany(cpu, kernel, data("online"), { func: handleIpiLock, info: lock });
        return 0;
    }
  }

  function* timed(cpu: X86Cpu, kernel: Kernel, target: number): GuestValue<number> {
    const now = yield* rdtsc(cpu);
    yield* storeU64(cpu, kernel.bits, time, now);
    yield* smpCallFunctionSingle(cpu, kernel, target, { func: handleIpi, info: time });
    return yield* loadU64(cpu, kernel.bits, time);
  }

  return kernel;
}

/** The first online processor but the boot processor (cpumask_any_but). */
function* anyOther(cpu: X86Cpu, kernel: Kernel): GuestValue<number> {
  const online = yield* loadMask(cpu, data("online"), kernel.cpus);
  removeFrom(online, 0);
  return takeFirst(online);
}

if (import.meta.main) {
  // Not awaited: the experiments that the command line knows import this very file.
  import("@exitless/exitless/cli").then(({ main }) => main(["run", "pv-ipi", ...Deno.args]));
}
