/**
 * What a page would run: a guest of two processors, one of which interrupts the other.
 *
 * @module
 */

import { Kernel, Machine } from "../../mod.ts";

const VECTOR = 0x40;

/** Runs the guest, and tells how it ended and what KVM counted. */
export function story(): { end: string; handled: number; counters: Record<string, number> } {
  let handled = 0;
  const kernel = new Kernel({
    cpus: 2,
    *main(cpu, kernel) {
      yield* kernel.apic.sendIpi(cpu, 1, VECTOR);
      yield cpu.work(100_000);
    },
  });
  kernel.irq(VECTOR, function* handler(cpu) {
    yield cpu.work(100);
    handled++;
  });
  const vm = new Machine().createVm({ vcpus: 2 });
  vm.load(kernel.text);
  vm.start(kernel.entry);
  const { end } = vm.machine.run();
  return { end, handled, counters: vm.counters() };
}
