/**
 * IPIs to processors that sleep: the boot processor sends one to each of the others in turn, and waits until it has been
 * taken and the target sleeps again. What the 2022 AVIC patch speaks of: to hardware a halted target is not running, and
 * the host has to find and wake it.
 *
 *     deno run -P=examples guest/examples/avic_kick.ts [--vcpus N] [--times N] [--apic NAME] [--kick NAME] [--json]
 *
 * runs it on 2 to 512 vCPUs, with each way that KVM has had of finding the target, and prints the cycles that it takes.
 *
 * @module
 */

import {
  FIRST_DEVICE_VECTOR,
  type Guest,
  type GuestValue,
  Kernel,
  type KernelOptions,
  memoryNeeded,
  rdtsc,
  type X86Cpu,
} from "@exitless/exitless";

/** The vector of the IPIs. */
export const WAKE_VECTOR: number = FIRST_DEVICE_VECTOR;

/** How the guest is run. */
export interface IpiToSleepersOptions extends Omit<KernelOptions, "main" | "secondary"> {
  /** IPIs that are measured; one to each processor comes before them. */
  readonly times: number;
  /** Called when the measurement begins. */
  readonly begin?: () => void;
  /** Called when it ends, with the cycles that the sender spent on sending. */
  readonly end?: (sending: number) => void;
}

/** Cycles until whoever took an IPI certainly sleeps again: it ends its interrupt, halts, and the host lets go of it. */
const SETTLE = 50_000;

/** Links the guest. Throws `RangeError` for options that cannot be. */
export function ipiToSleepers(options: IpiToSleepersOptions): Kernel {
  const { times, begin, end } = options;
  const kernel: Kernel = new Kernel({
    ...options,
    *main(cpu: X86Cpu, kernel: Kernel): Guest {
      yield cpu.work(SETTLE);
      for (let i = 1; i < kernel.cpus; i++) yield* wake(cpu, kernel, i);
      begin?.();
      let sending = 0;
      for (let i = 0; i < times; i++) sending += yield* wake(cpu, kernel, 1 + i % (kernel.cpus - 1));
      end?.(sending);
    },
  });
  if (kernel.cpus < 2) throw new RangeError("Cannot wake processors: it takes at least 2");
  if (!Number.isInteger(times) || times < 1) {
    throw new RangeError(`Cannot wake processors ${times} times: allowed are whole numbers from 1`);
  }
  // How many IPIs have been taken, behind the kernel's variables.
  const taken = memoryNeeded(kernel.cpus);
  kernel.irq(WAKE_VECTOR, function* wakeUp(cpu: X86Cpu): Guest {
    yield cpu.xadd32(taken, 1);
  });

  /** Wakes one processor. The cycles until the sender could go on. */
  function* wake(cpu: X86Cpu, kernel: Kernel, target: number): GuestValue<number> {
    yield cpu.load32(taken);
    const before = cpu.eax;
    const begin = yield* rdtsc(cpu);
    yield* kernel.apic.sendIpi(cpu, target, WAKE_VECTOR);
    const sending = (yield* rdtsc(cpu)) - begin;
    yield cpu.pauseWhile(taken, before);
    yield cpu.work(SETTLE);
    return sending;
  }

  return kernel;
}

if (import.meta.main) {
  // Not awaited: the experiments that the command line knows import this very file.
  import("@exitless/exitless/cli").then(({ main }) => main(["run", "avic-kick", ...Deno.args]));
}
