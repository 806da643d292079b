/**
 * A busy guest with a device: it computes, rings the device's doorbell at a steady rate, and takes the interrupts that
 * the device sends. The load behind the tables of the 2012 PV EOI series, as far as those tell.
 *
 *     deno run -P=examples guest/examples/pv_eoi.ts [--interrupts N] [--pio N] [--backend vmx|svm] [--json]
 *
 * runs it for a simulated second without and with PV EOI, and prints what KVM's tracepoints counted beside the
 * published tables.
 *
 * @module
 */

import {
  FIRST_DEVICE_VECTOR,
  type Guest,
  Kernel,
  type KernelOptions,
  rdtsc,
  type X86Cpu,
} from "@exitless/exitless";

/** The vector of the device's interrupt. */
export const DEVICE_VECTOR: number = FIRST_DEVICE_VECTOR;
/** The doorbell's port: where a virtio PCI device has its I/O BAR, plus VIRTIO_PCI_QUEUE_NOTIFY (16). */
export const DOORBELL_PORT: number = 0xc000 + 16;

/** What the guest does. */
export interface DeviceInterruptsOptions extends Omit<KernelOptions, "main" | "secondary"> {
  /** Cycles of computation between two rings of the doorbell; Infinity never rings it. */
  readonly doorbellInterval: number;
  /** Cycles of work that an interrupt's handler does. */
  readonly handlerCycles?: number;
  /** Called once the guest is up and waits for interrupts. */
  readonly ready?: () => void;
}

/** Links the guest. It runs until the end of the run. Throws `RangeError` for options that cannot be. */
export function deviceInterrupts(options: DeviceInterruptsOptions): Kernel {
  const { doorbellInterval, handlerCycles = 500, ready } = options;
  if (!(doorbellInterval >= 1)) {
    throw new RangeError(`Cannot ring a doorbell every ${doorbellInterval} cycles: allowed are 1 and more`);
  }
  const kernel = new Kernel({
    ...options,
    *main(cpu: X86Cpu): Guest {
      ready?.();
      if (doorbellInterval > FOREVER) { for (;;) yield cpu.work(FOREVER); }
      let next = yield* rdtsc(cpu);
      for (;;) {
        // Interrupts take time too: the rate is kept by the clock.
        next += doorbellInterval;
        const now = yield* rdtsc(cpu);
        if (next > now) yield cpu.work(next - now);
        yield cpu.out16(DOORBELL_PORT, 0);
      }
    },
  });
  kernel.irq(DEVICE_VECTOR, function* deviceInterrupt(cpu: X86Cpu): Guest {
    yield cpu.work(handlerCycles);
  });
  return kernel;
}

/** Computation without end, in stretches. */
const FOREVER = 2 ** 40;

if (import.meta.main) {
  // Not awaited: the experiments that the command line knows import this very file.
  import("@exitless/exitless/cli").then(({ main }) => main(["run", "pv-eoi", ...Deno.args]));
}
