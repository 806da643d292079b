/**
 * The IPI round trip of kvm-unit-tests (x86/vmexit.c, "ipi"): the boot processor has processor 1 call a function, and
 * spins until it has. The measure of the 2021 IPI virtualization series, whose processor 1 never halts.
 *
 *     deno run -P=examples guest/examples/ipiv.ts [--times N] [--acceleration NAME] [--backend vmx|svm] [--json]
 *
 * runs it in xAPIC and x2APIC mode, on processors without and with what delivers interrupts without exits, and prints
 * exits and cycles a round trip beside the published table.
 *
 * @module
 */

import {
  APIC_EOI,
  APIC_INT_ASSERT,
  FIRST_EXTERNAL_VECTOR,
  type Guest,
  type GuestValue,
  idle,
  Kernel,
  type KernelOptions,
  type Layout,
  layout,
  loadU64,
  memoryNeeded,
  PV_DRIVERS,
  rdtsc,
  storeU64,
  type X86Cpu,
} from "@exitless/exitless";

/** The vector that asks for a function call (IPI_VECTOR). */
export const IPI_VECTOR: number = FIRST_EXTERNAL_VECTOR;
/** The processor that asks. */
export const SENDER = 0;
/** The processor that is asked. */
export const TARGET = 1;

/** The test's variables (lib/x86/smp.c). */
const SMP: Layout<"lock" | "activeCpus" | "ipiDone" | "ipiFunction" | "ipiData"> = layout("smp", {
  lock: "u32",
  activeCpus: "u32",
  ipiDone: "u32",
  ipiFunction: "u64",
  ipiData: "u64",
});

/** What the test measured: the two figures that it prints. */
export interface RoundTripTiming {
  /** Cycles from before the first round trip to behind the last. */
  readonly total: number;
  /** The same without what lies between two round trips. */
  readonly sum: number;
}

/** How the test is run. */
export interface RoundTripOptions extends Omit<KernelOptions, "main" | "secondary" | "disable"> {
  /** Round trips that are measured; a few come before them, as the test's shorter runs do. */
  readonly times: number;
  /** Called when the measurement begins. */
  readonly begin?: () => void;
  /** Called when it ends. */
  readonly end?: (timing: RoundTripTiming) => void;
}

/** Round trips before the measurement. */
const WARM_UP = 4;
/** A stretch of computation that outlasts any run. */
const LONG = 2 ** 40;

/** Links the guest. Its target goes on when the test has ended. Throws `RangeError` for options that cannot be. */
export function ipiRoundTrip(options: RoundTripOptions): Kernel {
  const { times, begin, end } = options;
  const kernel: Kernel = new Kernel({
    ...options,
    disable: PV_DRIVERS.map(({ name }) => name), // The tests have none.
    *main(cpu: X86Cpu): Guest {
      yield* measure(cpu, WARM_UP);
      begin?.();
      const timing = yield* measure(cpu, times);
      end?.(timing);
    },
    *secondary(cpu: X86Cpu): Guest {
      yield cpu.load32(cpu.gsBase);
      if (cpu.eax !== TARGET) yield* idle(cpu);
      for (;;) yield cpu.work(LONG); // "AP runs without halt", says the series.
    },
  });
  if (kernel.cpus <= TARGET) {
    throw new RangeError("Cannot run the IPI round trip: it needs at least 2 processors");
  }
  if (!Number.isInteger(times) || times < 1) {
    throw new RangeError(`Cannot run the IPI round trip ${times} times: allowed are whole numbers from 1`);
  }
  const { bits } = kernel;
  // The test's variables, behind the kernel's.
  const at = (name: keyof typeof SMP.fields): number => memoryNeeded(kernel.cpus) + SMP.fields[name].offset;
  const nop = kernel.smpFunction(function* nop(): Guest {});

  /** A test's loop: that many round trips, each between two looks at the clock. */
  function* measure(cpu: X86Cpu, count: number): GuestValue<RoundTripTiming> {
    let sum = 0;
    const first = yield* rdtsc(cpu);
    for (let i = 0; i < count; i++) {
      const before = yield* rdtsc(cpu);
      yield* onCpu(cpu);
      sum += (yield* rdtsc(cpu)) - before;
    }
    return { total: (yield* rdtsc(cpu)) - first, sum };
  }

  /** on_cpu: has the target call a function, and waits for it. */
  function* onCpu(cpu: X86Cpu): Guest {
    do {
      yield cpu.xchg32(at("lock"), 1);
    } while (cpu.eax !== 0);
    yield cpu.xadd32(at("activeCpus"), 1);
    yield cpu.store32(at("ipiDone"), 0);
    yield* storeU64(cpu, bits, at("ipiFunction"), nop);
    yield* storeU64(cpu, bits, at("ipiData"), 0);
    yield* kernel.apic.writeIcr(cpu, APIC_INT_ASSERT | IPI_VECTOR, kernel.apicIds[TARGET]);
    // The test has no PAUSE here.
    do {
      yield cpu.load32(at("ipiDone"));
    } while (cpu.eax === 0);
    yield cpu.store32(at("lock"), 0);
  }

  kernel.gate(IPI_VECTOR, function* ipiEntry(cpu: X86Cpu): Guest {
    const func = yield* loadU64(cpu, bits, at("ipiFunction"));
    const info = yield* loadU64(cpu, bits, at("ipiData"));
    yield* kernel.functionAt(func)(cpu, info);
    yield cpu.xadd32(at("activeCpus"), -1);
    // Here the sender may go on: its next IPI can come before this one has ended.
    yield cpu.store32(at("ipiDone"), 1);
    yield* kernel.apic.write(cpu, APIC_EOI, 0);
  });

  return kernel;
}

if (import.meta.main) {
  // Not awaited: the experiments that the command line knows import this very file.
  import("@exitless/exitless/cli").then(({ main }) => main(["run", "ipiv", ...Deno.args]));
}
