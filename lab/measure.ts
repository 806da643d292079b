/**
 * What happened between two points of a run: a stopwatch over a virtual machine's counters.
 *
 * @module
 */

import { TP, type Vm } from "../host/mod.ts";

/** What happened, by the names of tracepoints and exits. What did not happen is left out. */
export interface Counts {
  /** Tracepoints. */
  readonly counters: Readonly<Record<string, number>>;
  /** Exits by reason. */
  readonly exits: Readonly<Record<string, number>>;
}

/** A stopwatch. */
export class Stopwatch {
  readonly #vm: Vm;
  #start: Counts;
  #clock: number;
  #vcpuExits: readonly number[];

  /** A stopwatch that starts now. */
  constructor(vm: Vm) {
    this.#vm = vm;
    this.#start = read(vm);
    this.#clock = vm.engine.now;
    this.#vcpuExits = vcpuExits(vm);
  }

  /** Starts again. */
  restart(): void {
    this.#start = read(this.#vm);
    this.#clock = this.#vm.engine.now;
    this.#vcpuExits = vcpuExits(this.#vm);
  }

  /** What happened since the start, and the cycles that the running thread spent. */
  lap(): Counts & { readonly cycles: number } {
    const now = read(this.#vm);
    return {
      counters: difference(now.counters, this.#start.counters),
      exits: difference(now.exits, this.#start.exits),
      cycles: this.#vm.engine.now - this.#clock,
    };
  }

  /** How often the vCPU of an index has exited since the start. */
  exitsOf(index: number): number {
    return vcpuExits(this.#vm)[index] - this.#vcpuExits[index];
  }
}

function vcpuExits(vm: Vm): number[] {
  return vm.vcpus.map(({ tracer, index }) => tracer.count(TP.kvm_exit, index));
}

function read(vm: Vm): Counts {
  return { counters: vm.counters(), exits: vm.exits() };
}

function difference(now: Counts["counters"], then: Counts["counters"]): Record<string, number> {
  const result: Record<string, number> = {};
  for (const [name, count] of Object.entries(now)) {
    const more = count - (then[name] ?? 0);
    if (more > 0) result[name] = more;
  }
  return result;
}
