/**
 * Kernels under test: a kernel in a virtual machine of its own, and what the host's tracepoints saw of it.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { type Guest, RAX, RBX, RCX, RDX, RSI, u64 } from "../../abi/mod.ts";
import {
  type ApicName,
  data,
  Kernel,
  type KernelOptions,
  type KernelProgram,
  percpu,
} from "../../guest/mod.ts";
import {
  Machine,
  type MachineOptions,
  type RunResult,
  TP,
  type Tracepoint,
  type Vm,
  type VmOptions,
} from "../../host/mod.ts";

/** The APIC drivers. */
export const APICS: readonly ApicName[] = ["x2apic-physical", "x2apic-cluster", "xapic"];
/** The widths of a long. */
export const WIDTHS = [64, 32] as const;

/** How a kernel under test is made: a kernel's options, and those of what is beneath it. */
export interface KernelRigOptions extends Partial<KernelOptions> {
  /** The machine. */
  readonly machine?: MachineOptions;
  /** The virtual machine. It has a vCPU for each of the kernel's processors unless it says otherwise. */
  readonly vm?: VmOptions;
}

/** A hypercall as the host finds it in the registers. */
export interface SeenHypercall {
  /** RAX. */
  readonly nr: bigint;
  /** RBX, RCX, RDX, RSI. */
  readonly args: readonly [bigint, bigint, bigint, bigint];
}

/** An event's vCPU and argument words. */
export interface SeenEvent {
  /** Whose. */
  readonly vcpu: number;
  /** Its five words. */
  readonly args: readonly number[];
}

const RING = 1 << 16;

/** A kernel, not yet started: interrupts and functions can still be linked. */
export class KernelRig {
  /** The kernel. */
  readonly kernel: Kernel;
  /** Its virtual machine. */
  readonly vm: Vm;
  #program: KernelProgram = nothing;
  #from = 0;
  #hypercalls: SeenHypercall[] = [];

  /** Builds both. */
  constructor({ machine, vm, ...options }: KernelRigOptions = {}) {
    this.kernel = new Kernel({ main: (cpu, kernel) => this.#program(cpu, kernel), ...options });
    const { apicIds } = this.kernel;
    const wide = Math.max(...apicIds) >= 255;
    this.vm = new Machine({ limits: { steps: 1e8, cycles: 1e12 }, ...machine }).createVm({
      vcpuIds: apicIds,
      trace: RING,
      // What QEMU asks for where there are more than 255 processors.
      x2apicApi32BitIds: wide,
      x2apicApiDisableBroadcastQuirk: wide,
      ...vm,
    });
    this.#watchHypercalls();
  }

  /** Loads the kernel and runs `program` on the boot processor, until all is quiet. How that ended. */
  go(program: KernelProgram = nothing, deadline?: number): RunResult["end"] {
    this.#program = program;
    this.vm.load(this.kernel.text);
    this.vm.start(this.kernel.entry, this.kernel.bits === 64 ? "64-bit" : "32-bit");
    return this.vm.machine.run(deadline).end;
  }

  /** Runs a program that must return. */
  run(program: KernelProgram = nothing): this {
    assertEquals(this.go(program), "finished");
    return this;
  }

  // What the host saw.

  /** Forgets what was seen so far: {@linkcode seen} and its like begin here. */
  mark(): void {
    this.#from = [...this.vm.tracer.records()].length;
    this.#hypercalls = [];
  }

  /** The events of a tracepoint since the mark, oldest first. */
  seen(name: Tracepoint): SeenEvent[] {
    assertEquals(this.vm.tracer.lost, 0);
    const event = TP[name];
    return [...this.vm.tracer.records()].slice(this.#from).filter((record) => record.event === event);
  }

  /** The IPIs that were sent through the ICR, or the self-IPI register, since the mark: low half, destination. */
  sends(): [low: number, destination: number][] {
    return this.seen("kvm_apic_ipi").map(({ args }) => [args[0], args[1]]);
  }

  /** The vCPU numbers of those who were offered an interrupt with a vector since the mark, in order. */
  offered(vector: number): number[] {
    return this.seen("kvm_apic_accept_irq").filter(({ args }) => args[3] === vector).map(({ args }) =>
      args[0]
    );
  }

  /** The hypercalls since the mark. */
  hypercalls(): readonly SeenHypercall[] {
    return this.#hypercalls;
  }

  /** The values that were written to an MSR since the mark, by writer. */
  written(msr: number): [vcpu: number, value: bigint][] {
    return this.seen("kvm_msr").filter(({ args }) => args[0] === 1 && args[1] === msr)
      .map(({ vcpu, args }) => [vcpu, u64(args[2], args[3])]);
  }

  // What is in guest memory.

  /** The processors in one of the kernel's masks. */
  mask(name: "online" | "present" | "bootedOnce" | "dead"): number[] {
    return Array.from({ length: this.kernel.cpus }, (_, n) => n).filter((n) =>
      (this.vm.memory.word(data(name) + 4 * (n >>> 5)) >>> (n & 31)) & 1
    );
  }

  /** How often a processor took an interrupt. */
  irqs(cpu: number, vector: number): number {
    return this.vm.memory.word(this.kernel.irqCounter(cpu, vector));
  }

  /** The PV EOI flag of a processor: the word that the host writes into. */
  eoiFlag(cpu: number): number {
    return this.vm.memory.word(percpu(cpu, "kvmApicEoi"));
  }

  #watchHypercalls(): void {
    const { tracer, vcpus } = this.vm;
    const record = tracer.record.bind(tracer);
    tracer.record = (event, vcpu, ...rest) => {
      record(event, vcpu, ...rest);
      if (event !== TP.kvm_hypercall) return;
      const { regs } = vcpus[vcpu].processor;
      const value = (word: number): bigint => u64(regs[word], regs[word + 1]);
      this.#hypercalls.push({
        nr: value(RAX),
        args: [value(RBX), value(RCX), value(RDX), value(RSI)],
      });
    };
  }
}

function* nothing(): Guest {}
