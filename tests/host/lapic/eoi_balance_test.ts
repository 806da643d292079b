import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { encodeMsi, MSR_KVM_PV_EOI_EN, type X86Cpu } from "../../../abi/mod.ts";
import {
  type BackendName,
  BACKENDS,
  MsiSource,
  type PolicySpec,
  Thread,
  TP,
  type Vcpu,
  type Vm,
} from "../../../host/mod.ts";
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
} from "../../support/apic.ts";
import { DATA } from "../../support/guests.ts";
import { route } from "../../support/ioapic.ts";

/**
 * The vectors of a story: several classes, and several vectors in some. Edges and levels do not share one: an APIC has
 * one trigger-mode bit for both, and an edge that comes upon a level makes its EOI an edge's.
 */
const EDGES = [0x31, 0x3e, 0x41, 0x52, 0x5f, 0x80, 0xef] as const;
const LEVELS = [0x38, 0x55, 0xe1] as const;
const VECTORS = [...EDGES, ...LEVELS];
/** One APIC's flag for PV EOI. */
const pvEoiFlag = (index: number) => DATA + 0x100 + 4 * index;

/** What a vCPU does. */
type Action =
  | { readonly do: "work" | "quiet"; readonly cycles: number }
  | { readonly do: "tpr"; readonly cycles: number; readonly tpr: number }
  | { readonly do: "ipi"; readonly vector: number; readonly to: number };

/** Interrupts from outside: edges as messages, levels as lines that stay up while their device has something. */
interface Source {
  readonly level: boolean;
  readonly vector: number;
  readonly to: number;
  readonly count: number;
  readonly start: number;
  readonly interval: number;
}

interface Plot {
  readonly backend: BackendName;
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
const anyPlot = (backend: BackendName, policy: fc.Arbitrary<PolicySpec>): fc.Arbitrary<Plot> =>
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

/** Runs a plot to its end, where nothing is on its way any more. Tells how often each vCPU's handlers ran. */
function play(
  { backend, mode, pvEoi, policy, programs, handlers, sources }: Plot,
): { vm: Vm; runs: Map<string, number> } {
  const vcpus = programs.length;
  const rig = tryingRig({
    vm: { backend, vcpus, trace: 1 << 18, haltPollNs: 0 },
    machine: { policy, limits: { steps: 200_000 } },
  });
  const { vm } = rig;
  const runs = new Map<string, number>();
  let started: (MsiSource | LineDevice)[] = [];
  const index = (cpu: X86Cpu) => vm.vcpus.findIndex(({ processor }) => processor.context === cpu);
  /** Level-triggered vectors: which pins' drivers their handlers call. */
  const pins = (vector: number) =>
    sources.flatMap((source, pin) => (source.level && source.vector === vector ? [pin] : []));

  for (const [i, vector] of VECTORS.entries()) {
    rig.on(vector, function* (cpu) {
      const who = index(cpu);
      runs.set(`${who}:${vector}`, (runs.get(`${who}:${vector}`) ?? 0) + 1);
      const { cycles, nests } = handlers[i];
      for (const pin of pins(vector)) yield cpu.out8(0x80 + pin, 0);
      if (nests) yield cpu.sti();
      yield cpu.work(cycles);
      if (nests) yield cpu.cli();
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
    yield* send(cpu, mode, { low: 0x4000 | vector, high: mode === "xapic" ? to << 24 : to });
    yield cpu.sti();
  }
  const calm = () =>
    started.every((s) =>
      s instanceof MsiSource ? s.sent === sources[started.indexOf(s)].count : s.left === 0
    ) &&
    vm.vcpus.every(({ lapic, index }) =>
      vectors(lapic, 0x200).length === 0 && (vectors(lapic, 0x100).length === 0 || ended(vm.vcpus[index]))
    );
  /** What is in service has been ended through the flag: the host has not looked yet. */
  const ended = ({ index, pvEoi }: Vcpu) => pvEoi.pending && (rig.word(pvEoiFlag(index)) & 1) === 0;

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
  return { vm, runs };
}

/** Goes through a run's events and asserts the balance. */
function assertBalance({ vm, runs }: ReturnType<typeof play>): void {
  assertEquals(vm.tracer.lost, 0);
  const inService: number[][] = vm.vcpus.map(() => []);
  const injected = new Map<string, number>();
  /** By vCPU and vector: what was taken since the last injection. */
  const waiting = new Map<string, number>();
  for (const { event, vcpu, args } of vm.tracer.records()) {
    if (event === TP.kvm_apic_accept_irq && args[1] === 0) {
      const key = `${args[0]}:${args[3]}`;
      waiting.set(key, (waiting.get(key) ?? 0) + 1);
    } else if (event === TP.kvm_inj_virq && args[1] === 0) {
      const [vector] = args;
      const key = `${vcpu}:${vector}`;
      assert((waiting.get(key) ?? 0) > 0, `vector ${vector} came to vCPU ${vcpu} though nobody sent it`);
      waiting.delete(key);
      injected.set(key, (injected.get(key) ?? 0) + 1);
      const above = Math.max(0, ...inService[vcpu]);
      assert(vector >> 4 > above >> 4, `vector ${vector} interrupted ${above} on vCPU ${vcpu}`);
      inService[vcpu].push(vector);
    } else if (event === TP.kvm_eoi) {
      const [who, vector] = args;
      assertEquals(vector | 0, inService[who].at(-1) ?? -2, `the EOI of vCPU ${who}`);
      inService[who].pop();
    }
  }
  assertEquals(inService, vm.vcpus.map(() => []), "still in service");
  assertEquals([...waiting], [], "sent and never delivered");
  assertEquals(new Map([...runs].sort()), new Map([...injected].sort()), "runs of handlers, and injections");
  for (const { lapic } of vm.vcpus) assertEquals([vectors(lapic, 0x200), vectors(lapic, 0x100)], [[], []]);
  assertEquals(vm.ioapic.irr, 0, "lines");
  for (const low of vm.ioapic.low) assertEquals(low & 0x4000, 0, "remote IRR");
}

describe("every interrupt that is sent is delivered, and ended once, by the handler that it began", () => {
  for (const backend of BACKENDS) {
    it(`in any mix of vectors, triggers, priorities and timings (${backend})`, () => {
      fc.assert(
        fc.property(anyPlot(backend, fc.constant("timed" as const)), (plot) => assertBalance(play(plot))),
        { numRuns: 120, seed: 70 },
      );
    });

    it(`in any order of the host's threads (${backend})`, () => {
      fc.assert(
        fc.property(anyPlot(backend, fc.nat(1_000_000).map((random) => ({ random }))), (plot) => {
          assertBalance(play(plot));
        }),
        { numRuns: 120, seed: 80 },
      );
    });
  }

  it("is a balance that can be upset: an EOI too many is noticed, and one too few", () => {
    const plot: Plot = {
      backend: "vmx",
      mode: "x2apic",
      pvEoi: false,
      policy: "timed",
      programs: [[{ do: "ipi", vector: 0x52, to: 0 }]],
      handlers: VECTORS.map(() => ({ cycles: 0, nests: false })),
      sources: [],
    };
    assertBalance(play(plot));
    const run = play(plot);
    const { lapic } = run.vm.bootstrap;
    run.vm.engine.running = run.vm.bootstrap;
    lapic.eoi();
    let noticed = "";
    try {
      assertBalance(run);
    } catch (error) {
      noticed = (error as Error).message;
    }
    assert(noticed.includes("the EOI of vCPU 0"), noticed);
  });
});
