/**
 * A virtual machine of s390, PowerPC or MIPS: memory, vCPUs, counted exits.
 *
 * @module
 */

import type { ByteOrder, MachineContext, MachineText } from "../../abi/mod.ts";
import type { Engine } from "../core/mod.ts";
import { type CostProfile, type Costs, costTable, freeTable } from "../cost/mod.ts";
import type { Machine } from "../machine.ts";
import { GuestMemory, type SlotOptions } from "../memory/mod.ts";
import { formatRecord, NOBODY, type TracepointSpec, Tracer } from "../trace/mod.ts";
import type { KvmExit } from "./kvm_run.ts";
import { OrderedMemory } from "./ordered_memory.ts";
import type { ArchVcpu } from "./vcpu.ts";

/** The most vCPUs of one virtual machine. */
const VCPUS = 64;

/** What virtual machines of all these architectures can be told. Everything has a default. */
export interface ArchVmOptions {
  /** How many vCPUs; 1 by default. */
  readonly vcpus?: number;
  /** Bytes of memory at address 0; 16 MiB by default. */
  readonly memory?: number;
  /** More memory slots. */
  readonly slots?: readonly SlotOptions[];
  /** Prices; the architecture's default profile otherwise. */
  readonly costs?: CostProfile;
  /** How many trace records to keep; 0, counting only, by default. */
  readonly trace?: number;
}

/** What an architecture makes its virtual machines of. */
export interface ArchShape {
  /** Its name. */
  readonly arch: "s390" | "ppc" | "mips";
  /** The byte order of memory, at the start. */
  readonly order: ByteOrder;
  /** KVM's tracepoints on it. */
  readonly tracepoints: readonly TracepointSpec[];
  /** Its exits, by number. */
  readonly exitNames: readonly string[];
  /** Prices when nothing is said. */
  readonly costs: CostProfile;
  /** The physical address of text: where a boot loader puts a function that runs at `address`. */
  readonly loadAddress: (address: number) => number;
}

/** A virtual machine. `Cpu` is the handle that its guest functions get. */
export abstract class ArchVm<Cpu extends MachineContext<Cpu>> {
  /** Its architecture. */
  readonly arch: ArchShape["arch"];
  /** The machine that it runs on. */
  readonly machine: Machine;
  /** The stepping core. */
  readonly engine: Engine;
  /** Guest memory, as bytes. */
  readonly memory: GuestMemory;
  /** Guest memory, as words in the guest's order. */
  readonly words: OrderedMemory;
  /** Prices. */
  readonly cost: Costs;
  /** Cycles of the host's clock in a millisecond. */
  readonly clockKhz: number;
  /** Events, counted and recorded. */
  readonly tracer: Tracer;
  /** How often KVM_RUN came back, by reason. */
  readonly userspaceExits: Map<KvmExit, number> = new Map();
  /** Why it has ended; undefined while it has not. */
  ending: string | undefined = undefined;
  readonly #shape: ArchShape;

  /** Memory and no vCPUs yet: the architecture's class adds them. Throws `RangeError` for options that cannot be. */
  constructor(machine: Machine, shape: ArchShape, options: ArchVmOptions) {
    this.machine = machine;
    this.engine = machine.engine;
    this.arch = shape.arch;
    this.#shape = shape;
    this.memory = new GuestMemory(machine.physical);
    this.words = new OrderedMemory(this.memory, shape.order);
    this.memory.addSlot({ base: 0, size: options.memory ?? 16 * 2 ** 20 });
    for (const slot of options.slots ?? []) this.memory.addSlot(slot);
    const profile = options.costs ?? shape.costs;
    this.cost = this.engine.explores ? freeTable() : costTable(profile);
    this.clockKhz = profile.tscKhz;
    this.tracer = new Tracer(options.trace ?? 0, shape.tracepoints);
  }

  /** The vCPUs, by index. */
  abstract readonly vcpus: readonly ArchVcpu<Cpu>[];

  /** Makes as many vCPUs as the options ask for. Throws `RangeError` for a number that cannot be. */
  protected makeVcpus<V extends ArchVcpu<Cpu>>(options: ArchVmOptions, make: (index: number) => V): V[] {
    const count = options.vcpus ?? 1;
    if (!Number.isInteger(count) || count < 1 || count > VCPUS) {
      throw new RangeError(`Cannot build a virtual machine of ${count} vCPUs: allowed are 1 to ${VCPUS}`);
    }
    return Array.from({ length: count }, (_, index) => {
      this.tracer.addVcpu(this.#shape.exitNames.length);
      return make(index);
    });
  }

  /**
   * Loads an image: writes its bytes into memory and lets the processors fetch from it. Throws `RangeError` where
   * memory is missing.
   */
  load(text: MachineText<Cpu>): void {
    text.load(this.words.order, (address, bytes) => {
      if (!this.memory.load(this.#shape.loadAddress(address), bytes)) {
        throw new RangeError(`Cannot load text at 0x${address.toString(16)}: no memory there`);
      }
    });
    for (const vcpu of this.vcpus) vcpu.code.text = text;
  }

  /** Starts the first vCPU at `entry`. */
  start(entry: number): void {
    this.vcpus[0].start(entry);
  }

  /** User space ends it. */
  shutDown(why: string): void {
    this.ending = why;
    for (const vcpu of this.vcpus) vcpu.end();
    this.engine.stop();
  }

  /** Whether user space has ended it. */
  get dead(): boolean {
    return this.ending !== undefined;
  }

  /** Whether the first vCPU's program has returned. */
  get finished(): boolean {
    return this.vcpus[0].phase === "ended";
  }

  /** Counts an event that is no vCPU's, and keeps it where records are kept. */
  protected trace(event: number, a = 0, b = 0, c = 0, d = 0, e = 0): void {
    const { tracer, engine } = this;
    tracer.counts[NOBODY + 1][event]++;
    if (tracer.recording) tracer.record(event, NOBODY, engine.now, a, b, c, d, e);
  }

  // Results.

  /** How often each event happened, by name; events that did not happen are left out. */
  counters(): Record<string, number> {
    const counters: Record<string, number> = {};
    for (const [event, { name }] of this.#shape.tracepoints.entries()) {
      const total = this.tracer.total(event);
      if (total > 0) counters[name] = total;
    }
    return counters;
  }

  /** How often each exit happened, by name; exits that did not happen are left out. */
  exits(): Record<string, number> {
    const exits: Record<string, number> = {};
    for (const { index } of this.vcpus) {
      for (const [reason, count] of this.tracer.exits(index).entries()) {
        const name = this.#shape.exitNames[reason];
        if (count > 0) exits[name] = (exits[name] ?? 0) + count;
      }
    }
    return exits;
  }

  /** The kept trace records as text, one a line. */
  traceText(): string[] {
    const { exitNames, tracepoints } = this.#shape;
    return [...this.tracer.records()].map((record) =>
      formatRecord(record, (reason) => exitNames[reason] ?? String(reason), tracepoints)
    );
  }
}
