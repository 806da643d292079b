/**
 * Plots: vCPUs that compute, change their task priority and send one another interrupts, and devices that send edges and
 * hold lines up, in any mix and timing. What came of a run is told by its trace, and by what the handlers noted.
 *
 * @module
 */

import fc from "fast-check";
import { encodeMsi, MSR_KVM_PV_EOI_EN, type X86Cpu } from "../../abi/mod.ts";
import { setApicvInhibit } from "../../host/kvm/apicv.ts";
import {
  type Acceleration,
  type BackendName,
  MsiSource,
  type PolicySpec,
  type Quirk,
  Thread,
  TP,
  type Vcpu,
  type Vm,
} from "../../host/mod.ts";
import {
  APIC_MODES,
  type ApicMode,
  type Asking,
  bringUp,
  enter,
  send,
  tryingRig,
  until,
  vectors,
  write,
} from "./apic.ts";
import { DATA } from "./guests.ts";
import { route } from "./ioapic.ts";
import { pir } from "./posted.ts";
import { Script } from "./threads.ts";

/**
 * The vectors of edges: of several classes, and several of some. Edges and levels do not share one: an APIC has one
 * trigger-mode bit for both, and an edge that comes upon a level makes its EOI an edge's.
 */
export const EDGES = [0x31, 0x3e, 0x41, 0x52, 0x5f, 0x80, 0xef] as const;
/** Those that are level-triggered. */
export const LEVELS = [0x38, 0x55, 0xe1] as const;
/** All of them. */
export const VECTORS: readonly number[] = [...EDGES, ...LEVELS];
/** One APIC's flag for PV EOI. */
const pvEoiFlag = (index: number) => DATA + 0x100 + 4 * index;

/** What a vCPU does. */
export type Action =
  | { readonly do: "work" | "quiet"; readonly cycles: number }
  | { readonly do: "tpr"; readonly cycles: number; readonly tpr: number }
  | { readonly do: "ipi"; readonly vector: number; readonly to: number };

/** Interrupts from outside: edges as messages, levels as lines that stay up while their device has something. */
export interface Source {
  readonly level: boolean;
  readonly vector: number;
  readonly to: number;
  readonly count: number;
  readonly start: number;
  readonly interval: number;
}

/** A plot. */
export interface Plot {
  readonly backend: BackendName;
  /** What the processor does for interrupts by itself. */
  readonly acceleration?: Acceleration;
  /** When that is inhibited, allowed again, and so on: cycles from one change to the next. */
  readonly changes?: readonly number[];
  /** Deviations of the host. */
  readonly quirks?: readonly Quirk[];
  /** How many steps it may take. */
  readonly steps?: number;
  readonly mode: ApicMode;
  readonly pvEoi: boolean;
  readonly policy: PolicySpec;
  readonly programs: readonly (readonly Action[])[];
  /** By vector: how long its handler takes, and whether it lets others interrupt it. */
  readonly handlers: readonly { readonly cycles: number; readonly nests: boolean }[];
  readonly sources: readonly Source[];
}

const cycles = fc.oneof(fc.nat(2000), fc.nat(200_000));
const anyAction: fc.Arbitrary<Action> = fc.oneof(
  fc.record({ do: fc.constantFrom("work" as const, "quiet" as const), cycles }),
  fc.record({ do: fc.constant("tpr" as const), cycles, tpr: fc.nat(255) }),
  fc.record({ do: fc.constant("ipi" as const), vector: fc.constantFrom(...EDGES), to: fc.nat(2) }),
);
/** Plots on one vendor's hardware. */
export const anyPlot = (backend: BackendName, policy: fc.Arbitrary<PolicySpec>): fc.Arbitrary<Plot> =>
  fc.record({
    backend: fc.constant(backend),
    mode: fc.constantFrom(...APIC_MODES),
    pvEoi: fc.boolean(),
    policy,
    programs: fc.array(fc.array(anyAction, { maxLength: 12 }), { minLength: 1, maxLength: 3 }),
    handlers: fc.array(fc.record({ cycles: fc.nat(20_000), nests: fc.boolean() }), {
      minLength: VECTORS.length,
      maxLength: VECTORS.length,
    }),
    sources: fc.array(
      fc.boolean().chain((level) =>
        fc.record({
          level: fc.constant(level),
          vector: fc.constantFrom(...(level ? LEVELS : EDGES)),
          to: fc.nat(2),
          count: fc.integer({ min: 1, max: 10 }),
          start: fc.nat(100_000),
          interval: fc.nat(50_000),
        })
      ),
      { maxLength: 5 },
    ),
  });

/** A device that holds a line up while it has something; its driver takes one thing at a time through a port. */
class LineDevice extends Thread {
  things = 0;
  left: number;
  readonly #vm: Vm;
  readonly #pin: number;
  readonly #interval: number;

  constructor(vm: Vm, pin: number, { count, start, interval }: Source) {
    super(vm.engine, `device on pin ${pin}`);
    this.#vm = vm;
    this.#pin = pin;
    this.#interval = interval;
    this.left = count;
    vm.pioBus.add({ base: 0x80 + pin, length: 1, read: () => undefined, write: () => this.#change(-1) });
    vm.engine.wake(this, vm.engine.now + start);
  }

  override step(): void {
    this.#change(1);
    if (--this.left > 0) this.engine.wake(this, this.clock + this.#interval);
    else this.engine.park(this);
  }

  #change(by: number): void {
    this.things = Math.max(0, this.things + by);
    this.#vm.routing.setLevel(this.#pin, this.things > 0);
  }
}

/** An interrupt is sent to a vCPU, or its handler there begins or ends. */
export interface Note {
  /** Which of them. */
  readonly what: "sent" | "begins" | "ends";
  /** Where. */
  readonly vcpu: number;
  /** The vector. */
  readonly vector: number;
}

/** What came of a plot. */
export interface Played {
  /** The virtual machine. */
  readonly vm: Vm;
  /** How often each vCPU's handlers ran: by "vCPU:vector". */
  readonly runs: Map<string, number>;
  /** All that was sent and handled, in order. */
  readonly notes: readonly Note[];
}

/** Runs a plot to its end, where nothing is on its way any more. */
export function play(
  {
    backend,
    acceleration = "none",
    changes = [],
    quirks = [],
    steps = 200_000,
    mode,
    pvEoi,
    policy,
    programs,
    handlers,
    sources,
  }: Plot,
): Played {
  const vcpus = programs.length;
  const rig = tryingRig({
    vm: { backend, acceleration, vcpus, trace: 1 << 18, haltPollNs: 0 },
    machine: { policy, quirks, limits: { steps } },
  });
  const { vm } = rig;
  const runs = new Map<string, number>();
  const notes: Note[] = [];
  const note = (what: Note["what"], vcpu: number, vector: number) => void notes.push({ what, vcpu, vector });
  const record = vm.tracer.record.bind(vm.tracer);
  vm.tracer.record = (event, vcpu, ...rest) => {
    record(event, vcpu, ...rest);
    const [, who, deliveryMode, , vector] = rest;
    if (event === TP.kvm_apic_accept_irq && deliveryMode === 0) note("sent", who!, vector!);
  };
  let started: (MsiSource | LineDevice)[] = [];
  const index = (cpu: X86Cpu) => vm.vcpus.findIndex(({ processor }) => processor.context === cpu);
  /** Level-triggered vectors: which pins' drivers their handlers call. */
  const pins = (vector: number) =>
    sources.flatMap((source, pin) => (source.level && source.vector === vector ? [pin] : []));

  for (const [i, vector] of VECTORS.entries()) {
    rig.on(vector, function* (cpu) {
      const who = index(cpu);
      runs.set(`${who}:${vector}`, (runs.get(`${who}:${vector}`) ?? 0) + 1);
      note("begins", who, vector);
      const { cycles, nests } = handlers[i];
      for (const pin of pins(vector)) yield cpu.out8(0x80 + pin, 0);
      if (nests) yield cpu.sti();
      yield cpu.work(cycles);
      if (nests) yield cpu.cli();
      note("ends", who, vector);
      if (pvEoi) {
        yield cpu.btr(pvEoiFlag(who), 0);
        if (cpu.cf) return;
      }
      yield* write(cpu, mode, 0x0b0, 0);
    });
  }

  function* setUp(cpu: X86Cpu): Asking<void> {
    yield* enter(cpu, mode);
    if (pvEoi) yield cpu.wrmsr(MSR_KVM_PV_EOI_EN, pvEoiFlag(index(cpu)) | 1);
  }
  function* perform(cpu: X86Cpu, actions: readonly Action[]): Asking<void> {
    for (const action of actions) {
      if (action.do === "ipi") {
        const to = action.to % vcpus;
        yield* cliSend(cpu, action.vector, to);
      } else if (action.do === "tpr") {
        yield* write(cpu, mode, 0x080, action.tpr);
        yield cpu.work(action.cycles);
        yield* write(cpu, mode, 0x080, 0);
      } else {
        if (action.do === "quiet") yield cpu.cli();
        yield cpu.work(action.cycles);
        if (action.do === "quiet") yield cpu.sti();
      }
    }
  }
  /** An xAPIC's ICR has two halves: no handler may come between them. */
  function* cliSend(cpu: X86Cpu, vector: number, to: number): Asking<void> {
    yield cpu.cli();
    note("sent", to, vector); // Hardware does not trace it.
    yield* send(cpu, mode, { low: 0x4000 | vector, high: mode === "xapic" ? to << 24 : to });
    yield cpu.sti();
  }
  const calm = () =>
    started.every((s) =>
      s instanceof MsiSource ? s.sent === sources[started.indexOf(s)].count : s.left === 0
    ) &&
    vm.vcpus.every(({ lapic, index }) =>
      vectors(lapic, 0x200).length === 0 && (backend === "svm" || pir(vm.vcpus[index]).length === 0) &&
      (vectors(lapic, 0x100).length === 0 || ended(vm.vcpus[index]))
    );
  /** What is in service has been ended through the flag: the host has not looked yet. */
  const ended = ({ index, pvEoi }: Vcpu) => pvEoi.pending && (rig.word(pvEoiFlag(index)) & 1) === 0;

  if (changes.length > 0) {
    new Script(vm.engine, "debugger", function* () {
      for (const [i, cycles] of changes.entries()) {
        yield cycles;
        setApicvInhibit(vm, "BLOCKIRQ", i % 2 === 0);
      }
    });
  }
  rig.aps(function* (cpu) {
    yield* setUp(cpu);
    yield cpu.xadd32(DATA, 1);
    yield* until(cpu, DATA, vcpus - 1);
    yield cpu.sti();
    yield* perform(cpu, programs[index(cpu)]);
    yield cpu.xadd32(DATA + 4, 1);
    for (;;) yield cpu.hlt();
  }).finish(function* (cpu) {
    yield* setUp(cpu);
    if (vcpus > 1) yield* bringUp(cpu, mode, vcpus - 1);
    yield* until(cpu, DATA, vcpus - 1);
    for (const [pin, { level, vector, to }] of sources.entries()) {
      if (level) yield* route(cpu, pin, { vector, level, destination: to % vcpus });
    }
    started = sources.map((source, pin) => {
      if (source.level) return new LineDevice(vm, pin, source);
      const { vector, to, count, start, interval } = source;
      return new MsiSource(vm, {
        message: encodeMsi({ vector, destination: to % vcpus }, "xapic"),
        count,
        start: vm.engine.now + start,
        interval: () => interval,
      });
    });
    yield cpu.sti();
    yield* perform(cpu, programs[0]);
    yield* until(cpu, DATA + 4, vcpus - 1);
    while (!calm()) yield cpu.work(10_000);
    yield cpu.cpuid(0); // An exit: what was ended through the flag alone is told.
    yield cpu.cli();
  }, 1e12);
  return { vm, runs, notes };
}
