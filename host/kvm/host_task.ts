/**
 * A thread of the host that is no vCPU's: QEMU's that migrates a guest, kswapd. What it does may have to wait for vCPUs to
 * leave guest mode, or for anything else that takes steps.
 *
 * @module
 */

import { type Engine, type Steps, Thread } from "../core/mod.ts";

/**
 * Does something once, and ends.
 *
 * @example The host takes a page away that a guest uses
 * ```ts
 * import { HostTask, Machine, Text, type X86Cpu } from "@exitless/exitless";
 * import { assertEquals } from "@std/assert";
 *
 * const text = new Text();
 * const entry = text.add(function* main(cpu: X86Cpu) {
 *   yield cpu.store32(0x1000, 7);
 *   yield cpu.work(100_000); // Meanwhile the page goes.
 *   yield cpu.load32(0x1000); // And comes back: the vCPU's thread waits for the disk.
 *   assertEquals(cpu.rax, 7n);
 * });
 * const vm = new Machine().createVm({ memory: 2 ** 21, disk: { pages: 512, latency: 200_000 } });
 * vm.load(text);
 * vm.start(entry);
 * const kswapd = new HostTask(vm.engine, "kswapd", vm.evict(0x1000, 4096), 50_000);
 * vm.machine.run();
 * assertEquals(kswapd.result, 1);
 * assertEquals(vm.bootstrap.stats.pf_waits, 1);
 * ```
 */
export class HostTask<T = void> extends Thread {
  /** What it came to; undefined while it has not ended. */
  result: T | undefined = undefined;
  /** It has ended. */
  done = false;
  readonly #steps: Steps<T>;

  /** Begins at clock `at`, and does what `steps` do, a step each. */
  constructor(engine: Engine, name: string, steps: Steps<T>, at: number = 0) {
    super(engine, name);
    this.#steps = steps;
    engine.wake(this, at);
  }

  /** Up to the next `yield`. */
  override step(): void {
    const { done, value } = this.#steps.next();
    if (done !== true) return;
    this.done = true;
    this.result = value;
    this.engine.park(this);
  }
}
