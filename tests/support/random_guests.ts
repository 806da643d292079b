/**
 * Random little guests: each vCPU runs a list of instructions over a few shared words, and a device stirs them now and
 * then, so that every wait ends. What came of a run is told in full, to be compared with that of another.
 *
 * @module
 */

import fc from "fast-check";
import { encodeMsi, type Guest, X2APIC_EOI, X2APIC_ICR, type X86Cpu } from "../../abi/mod.ts";
import type { MachineOptions, Vm, VmOptions } from "../../host/mod.ts";
import { DATA, enableX2apic, Rig, startAps } from "./guests.ts";
import { KERNEL_PAGE, pagingOn, PagingRig } from "./paging.ts";
import { Script } from "./threads.ts";

/** What one vCPU does next: a verb, and two numbers that it makes something of. */
export type Act = readonly [
  verb:
    | "work"
    | "load"
    | "store"
    | "add"
    | "clear"
    | "pause"
    | "spin"
    | "halt"
    | "send"
    | "urge"
    | "timer"
    | "tsc"
    | "cpuid"
    | "swap"
    | "flush",
  a: number,
  b: number,
];

/** What each vCPU does. */
export type Plot = readonly (readonly Act[])[];

const WORDS = 4;
const word = fc.nat(WORDS - 1);
const few = fc.nat(3);

/** One act. Values are few, so that spins find what they wait for, or not. */
const act: fc.Arbitrary<Act> = fc.oneof(
  fc.tuple(fc.constantFrom("work", "timer"), fc.nat(5000), few),
  fc.tuple(fc.constantFrom("load", "store", "add", "clear"), word, few),
  fc.tuple(fc.constantFrom("spin"), word, few),
  fc.tuple(fc.constantFrom("pause", "halt", "tsc", "cpuid"), few, few),
  fc.tuple(fc.constantFrom("send", "urge"), few, few),
) as fc.Arbitrary<Act>;

/** A guest of up to four vCPUs. */
export const plots: fc.Arbitrary<Plot> = fc.array(fc.array(act, { maxLength: 15 }), {
  minLength: 1,
  maxLength: 4,
});

/** A guest with tables, which it changes and forgets to flush, or flushes. */
export const translatedPlots: fc.Arbitrary<Plot> = fc.array(
  fc.array(
    fc.oneof(
      { weight: 4, arbitrary: act },
      { weight: 1, arbitrary: fc.tuple(fc.constantFrom("swap" as const, "flush" as const), few, few) },
    ),
    { maxLength: 15 },
  ),
  { minLength: 1, maxLength: 4 },
);

const VECTOR = 0x50;
/** Of a higher class: it interrupts the other one's handler. */
const URGENT = 0x90;
const X2APIC_LVTT = 0x832;
const X2APIC_TMICT = 0x838;
/** Where the words' page is in a guest with tables. */
const TRANSLATED = -0x4000_0000_0000;
/** The other frame that it may lead to. */
const OTHER = DATA + 0x2000;
const DONE = DATA + 0x1000;
const HANDLED = DATA + 0x1004;
/** How often the device stirs: seldom enough that the guest gets on between its interrupts. */
const STIR = 200_000;
/** How many steps the device takes meanwhile: what counts in explored runs. */
const STIR_STEPS = 50;
/** What it writes, which no spin waits for. */
const STIRRED = 99;

/** How a plot is run. */
export interface PlayOptions {
  /** The machine. */
  readonly machine?: MachineOptions;
  /** The virtual machine. */
  readonly vm?: VmOptions;
  /** The guest has tables: its words are where these lead; false by default. */
  readonly translated?: boolean;
  /** When it all begins, in cycles: the guest computes until then, and the device sleeps; 0 by default. */
  readonly begin?: number;
  /** Looks after every single step who is first, in place of many steps at a stretch: the slow reference. */
  readonly single?: boolean;
  /** Cycles after which somebody looks, and how they come to it: the run is over for a while, or somebody stops it. */
  readonly looks?: readonly { readonly after: number; readonly by: "deadline" | "stop" }[];
  /** What they do then. */
  readonly look?: (vm: Vm) => void;
}

/** What came of a run: equal for two runs that are the same. */
export interface Outcome {
  /** How it ended. */
  readonly end: string;
  /** The vCPUs' clocks. */
  readonly clocks: readonly number[];
  /** What the vCPUs read, in the order in which they did. */
  readonly read: readonly string[];
  /** What the words hold. */
  readonly words: readonly number[];
  /** Events by name. */
  readonly counters: Readonly<Record<string, number>>;
  /** Exits by name. */
  readonly exits: Readonly<Record<string, number>>;
  /** Every event, in bytes. */
  readonly trace: Uint8Array;
}

/** What acts are performed in. */
interface Setting {
  readonly cpus: number;
  /** The rig of a guest with tables. */
  readonly paging: PagingRig | undefined;
}

function* perform(cpu: X86Cpu, [verb, a, b]: Act, { cpus, paging }: Setting): Guest {
  const at = (paging === undefined ? DATA : TRANSLATED) + 64 * a;
  switch (verb) {
    case "swap":
      return yield cpu.store32(paging!.entry(TRANSLATED), (a % 2 === 0 ? DATA : OTHER) | KERNEL_PAGE);
    case "flush":
      return yield a % 2 === 0 ? cpu.invlpg(TRANSLATED) : cpu.movToCr3(paging!.tables.root);
    case "work":
      return yield cpu.work(a);
    case "load":
      return yield cpu.load32(at);
    case "store":
      return yield cpu.store32(at, b);
    case "add":
      return yield cpu.xadd32(at, b);
    case "clear":
      return yield cpu.lockBtr(at, b);
    case "pause":
      return yield cpu.pause();
    case "spin":
      return yield cpu.pauseWhile(at, b);
    case "halt":
      return yield cpu.hlt();
    case "send":
      return yield cpu.wrmsr(X2APIC_ICR, 0x4000 | VECTOR, a % cpus);
    case "urge":
      return yield cpu.wrmsr(X2APIC_ICR, 0x4000 | URGENT, a % cpus);
    case "timer":
      yield cpu.wrmsr(X2APIC_LVTT, VECTOR); // One-shot.
      return yield cpu.wrmsr(X2APIC_TMICT, a);
    case "tsc":
      return yield cpu.rdtsc();
    case "cpuid":
      return yield cpu.cpuid(0x4000_0000);
  }
}

/** Runs a plot to its end. Also gives the rig, for a look at what an {@linkcode Outcome} leaves out. */
export function play(plot: Plot, options: PlayOptions = {}): Outcome & { readonly rig: Rig } {
  const cpus = plot.length;
  const { begin = 0 } = options;
  const { translated = false } = options;
  const rig = new (translated ? PagingRig : Rig)({
    ...options,
    machine: { limits: { steps: 1e6 }, ...options.machine },
    vm: { vcpus: cpus, trace: 1 << 16, ...options.vm },
  });
  const paging = rig instanceof PagingRig ? rig.map(TRANSLATED, DATA) : undefined;
  const { vm } = rig;
  const { engine } = vm;
  const read: string[] = [];

  function* act(cpu: X86Cpu, index: number): Guest {
    if (paging !== undefined) yield* pagingOn(cpu, paging.tables);
    yield cpu.sti();
    for (const [place, next] of plot[index].entries()) {
      yield* perform(cpu, next, { cpus, paging });
      read.push(`${index}.${place} ${next[0]} ${cpu.eax} ${cpu.edx} ${cpu.cf}`);
    }
    yield cpu.xadd32(DONE, 1);
  }
  rig.on(VECTOR, function* handler(cpu) {
    yield cpu.sti();
    yield cpu.xadd32(HANDLED, 1);
    yield cpu.wrmsr(X2APIC_EOI, 0);
  });
  rig.on(URGENT, function* urgent(cpu) {
    yield cpu.sti();
    yield cpu.xadd32(HANDLED, 0x1_0000);
    yield cpu.wrmsr(X2APIC_EOI, 0);
  });
  rig.aps(function* ap(cpu) {
    yield* enableX2apic(cpu);
    yield cpu.rdmsr(0x802); // Its own x2APIC ID.
    yield* act(cpu, cpu.eax);
    yield cpu.cli();
    for (;;) yield cpu.hlt();
  });
  rig.start(function* bsp(cpu) {
    yield cpu.work(begin);
    yield* enableX2apic(cpu);
    if (cpus > 1) yield* startAps(cpu, cpus - 1);
    yield* act(cpu, 0);
  });
  new Script(engine, "device", function* () {
    while (rig.word(DONE) < cpus) {
      for (let n = 0; n < WORDS; n++) {
        vm.memory.setWord(DATA + 64 * n, STIRRED);
        if (translated) vm.memory.setWord(OTHER + 64 * n, STIRRED);
      }
      for (let destination = 0; destination < cpus; destination++) {
        vm.signalMsi(encodeMsi({ vector: VECTOR, destination }, "xapic"));
      }
      for (let step = 0; step < STIR_STEPS; step++) yield STIR / STIR_STEPS;
    }
  }, begin);
  if (options.single) {
    for (const vcpu of vm.vcpus) {
      vcpu.processor.exitsStraight = false;
      vcpu.burst = () => {
        engine.countStep();
        vcpu.step();
      };
    }
  }
  let clock = begin;
  for (const { after, by } of options.looks ?? []) {
    clock += after;
    if (by === "deadline") vm.machine.run(clock);
    else runToStop(rig, clock);
    options.look?.(vm);
  }
  const { end } = vm.machine.run();
  return {
    rig,
    end,
    clocks: vm.vcpus.map((vcpu) => vcpu.clock),
    read,
    words: Array.from({ length: WORDS }, (_, n) => rig.word(DATA + 64 * n)).concat(rig.word(HANDLED)),
    counters: vm.counters(),
    exits: vm.exits(),
    trace: vm.tracer.bytes(),
  };
}

/** Runs until somebody stops everything. */
function runToStop({ vm }: Rig, clock: number): void {
  const { engine } = vm;
  new Script(engine, "stopper", function* () {
    engine.stop();
    yield 0;
  }, clock);
  vm.machine.run();
}

/** An outcome without its rig. */
export function outcome({ rig: _, ...outcome }: ReturnType<typeof play>): Outcome {
  return outcome;
}
