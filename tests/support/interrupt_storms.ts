/**
 * Storms: vCPUs that send one another interrupts of every kind, whenever they come to it, and then sleep. A storm is over
 * when nothing can go on: whoever sleeps then with an interrupt that could be delivered has missed its wake-up.
 *
 * @module
 */

import fc from "fast-check";
import { encodeMsi, type Guest, type X86Cpu } from "../../abi/mod.ts";
import { IoEventFd } from "../../host/mod.ts";
import {
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
import { addApicvPort, allowApicv } from "./apicv.ts";
import { DATA, type Rig } from "./guests.ts";
import { type Cast, type How, meant } from "./interrupt_scripts.ts";
import type { Stage } from "./interrupt_stage.ts";
import { route } from "./ioapic.ts";
import { pir } from "./posted.ts";

const EDGES = [0x31, 0x3e, 0x41, 0x52, 0x5f, 0x80, 0xef] as const;
/** Line-triggered ones, by pin from 2 on. */
const LINES = [0x38, 0xd5] as const;
const FIRST_PIN = 2;
const NMI = 2;

/** What a vCPU does next. */
export type Gust =
  | { readonly do: "ipi"; readonly how: How; readonly vector: number; readonly to: number }
  | { readonly do: "msi"; readonly vector: number; readonly to: number }
  | { readonly do: "nmi"; readonly to: number }
  | { readonly do: "line"; readonly pin: number }
  | { readonly do: "work" | "timer" | "quiet"; readonly cycles: number }
  | { readonly do: "tpr" | "cr8"; readonly value: number }
  | { readonly do: "halt" | "inhibit" | "allow" };

/** A storm. */
export interface Storm {
  /** The guest. */
  readonly cast: Cast;
  /** What each vCPU does. */
  readonly gusts: readonly (readonly Gust[])[];
  /** By vector, the edges' and then the lines': how long its handler takes, and whether it lets others interrupt it. */
  readonly handlers: readonly { readonly cycles: number; readonly nests: boolean }[];
}

const vector = fc.constantFrom(...EDGES);
const how = fc.constantFrom<How>(
  "physical",
  "physical",
  "logical",
  "lowest",
  "self",
  "all",
  "others",
  "broadcast",
);
const cycles = fc.oneof(fc.nat(3000), fc.nat(60_000));
const anyGust = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constant("ipi"), how, vector, to: fc.integer({ min: 1, max: 15 }) }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("msi"), vector, to: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("nmi"), to: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("line"), pin: fc.nat(LINES.length - 1) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom("work", "quiet", "timer"), cycles }) },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constantFrom("tpr", "cr8"), value: fc.constantFrom(0, 4, 9, 15) }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom("halt", "halt", "inhibit", "allow") }) },
) as fc.Arbitrary<Gust>;

/** Any storm. */
export const anyStorm: fc.Arbitrary<Storm> = fc.record({
  cast: fc.record({
    mode: fc.constantFrom<ApicMode>("xapic", "x2apic"),
    cpus: fc.integer({ min: 2, max: 4 }),
    clusters: fc.constant(false),
  }),
  gusts: fc.array(fc.array(anyGust, { maxLength: 15, size: "max" }), { minLength: 4, maxLength: 4 }),
  handlers: fc.array(fc.record({ cycles: fc.nat(5000), nests: fc.boolean() }), {
    minLength: EDGES.length + LINES.length,
    maxLength: EDGES.length + LINES.length,
  }),
});

/** What a storm has left. */
export interface Aftermath {
  /** The rig. */
  readonly rig: Rig;
  /** How it ended. */
  readonly end: string;
  /** What is wrong; nothing, if all is well. */
  readonly complaints: readonly string[];
}

const UP = DATA;
const BEGIN = DATA + 4;
const RAISE = 0xa0;
const TAKE = 0xb0;
const MESSAGE = 0xc000;

/** Lets a storm loose. */
export function rage({ cast, gusts, handlers }: Storm, { machine, vm, made }: Stage = {}): Aftermath {
  const { mode, cpus } = cast;
  const rig = tryingRig({
    machine: { limits: { steps: 2e6 }, ...machine },
    vm: { vcpus: cpus, trace: 1 << 14, ...vm },
  });
  made?.(rig.vm);
  const complaints: string[] = [];
  const sent = new Map<string, number>();
  const unheard = new Set<string>();
  const running: number[][] = rig.vm.vcpus.map(() => []);
  const index = (cpu: X86Cpu) => rig.vm.vcpus.findIndex(({ processor }) => processor.context === cpu);
  const note = (vcpu: number, vector: number) => {
    const key = `${vector.toString(16)} on ${vcpu}`;
    sent.set(key, (sent.get(key) ?? 0) + 1);
    unheard.add(key);
  };
  const begins = (vcpu: number, vector: number) => {
    const key = `${vector.toString(16)} on ${vcpu}`;
    unheard.delete(key);
    const left = (sent.get(key) ?? 0) - 1;
    sent.set(key, left);
    if (left < 0) complaints.push(`${key} came more often than it was sent`);
    if (vector === NMI) return;
    const above = running[vcpu].at(-1) ?? 0;
    if (vector >> 4 <= above >> 4) complaints.push(`${key} interrupted ${above.toString(16)}`);
    running[vcpu].push(vector);
  };

  const things = addDevices(rig, note);
  for (const [i, vector] of [...EDGES, ...LINES].entries()) {
    const { cycles, nests } = handlers[i];
    const pin = LINES.indexOf(vector as typeof LINES[number]);
    rig.on(vector, function* handler(cpu) {
      const who = index(cpu);
      begins(who, vector);
      if (pin >= 0) yield cpu.out8(TAKE + pin, 0);
      if (nests) yield cpu.sti();
      yield cpu.work(cycles);
      if (nests) yield cpu.cli();
      running[who].pop();
      yield* write(cpu, mode, 0x0b0, 0);
    });
  }
  rig.on(NMI, function* nmi(cpu) {
    begins(index(cpu), NMI);
    yield cpu.load32(UP);
  });

  function* perform(cpu: X86Cpu, who: number, gust: Gust): Asking<void> {
    switch (gust.do) {
      case "ipi": {
        const targets = meant(cast, { ...gust, cpu: who });
        if (targets.length === 0) return;
        yield cpu.cli(); // The two halves of an xAPIC's ICR belong together.
        for (const target of targets) note(target, gust.vector);
        const mask = Array.from({ length: cpus }, (_, i) => gust.to & (1 << i)).reduce((a, b) => a | b);
        yield* send(cpu, mode, icr(mode, gust, targets[0], mask));
        return yield cpu.sti();
      }
      case "nmi": {
        const to = gust.to % cpus;
        yield cpu.cli();
        note(to, NMI);
        yield* send(cpu, mode, { low: 0x4400, high: mode === "xapic" ? to << 24 : to });
        return yield cpu.sti();
      }
      case "msi":
        return yield cpu.out32(MESSAGE, ((gust.to % cpus) << 8) | gust.vector);
      case "line":
        return yield cpu.out8(RAISE + gust.pin, 0);
      case "work":
        return yield cpu.work(gust.cycles);
      case "quiet":
        yield cpu.cli();
        yield cpu.work(gust.cycles);
        return yield cpu.sti();
      case "timer":
        note(who, EDGES[0]);
        yield* write(cpu, mode, 0x320, EDGES[0]);
        yield* write(cpu, mode, 0x380, gust.cycles + 1);
        return yield* sleep(cpu);
      case "tpr":
        yield* write(cpu, mode, 0x080, gust.value << 4);
        return;
      case "cr8":
        return yield cpu.movToCr8(gust.value);
      case "halt":
        return yield* sleep(cpu);
      case "inhibit":
      case "allow":
        return yield allowApicv(cpu, gust.do === "allow");
    }
  }
  function* sleep(cpu: X86Cpu): Asking<void> {
    yield cpu.cli();
    yield cpu.movToCr8(0);
    yield cpu.sti();
    yield cpu.hlt();
  }
  function* setUp(cpu: X86Cpu): Asking<void> {
    yield* enter(cpu, mode);
    yield* write(cpu, mode, 0x3e0, 0xb);
    if (mode === "xapic") yield* write(cpu, mode, 0x0d0, 1 << (24 + index(cpu)));
  }
  function* live(cpu: X86Cpu, who: number): Guest {
    yield cpu.sti();
    for (const gust of gusts[who]) yield* perform(cpu, who, gust);
    for (;;) yield* sleep(cpu);
  }
  rig.aps(function* (cpu) {
    const who = index(cpu);
    yield* setUp(cpu);
    yield cpu.xadd32(UP, 1);
    yield* until(cpu, BEGIN, 1);
    yield* live(cpu, who);
  });
  const { end } = rig.run(function* (cpu) {
    yield* setUp(cpu);
    yield* bringUp(cpu, mode, cpus - 1);
    yield* until(cpu, UP, cpus - 1);
    for (const [pin, vector] of LINES.entries()) {
      yield* route(cpu, FIRST_PIN + pin, { vector, level: true, destination: pin % cpus });
    }
    yield cpu.store32(BEGIN, 1);
    yield* live(cpu, 0);
  }, Infinity);

  if (end !== "halted") complaints.push(`it ended ${end}`);
  for (const key of unheard) complaints.push(`${key} was sent, and did not come behind that`);
  for (const [pin, left] of things.entries()) {
    if (left > 0) complaints.push(`pin ${pin}'s device has ${left} things`);
  }
  for (const [i, vcpu] of rig.vm.vcpus.entries()) {
    const left = [vectors(vcpu.lapic, 0x200), vectors(vcpu.lapic, 0x100)];
    if (vcpu.backend.name === "vmx") left.push(pir(vcpu));
    if (left.some((some) => some.length > 0)) {
      complaints.push(`vCPU ${i} is left with ${JSON.stringify(left)}`);
    }
    if (running[i].length > 0) complaints.push(`vCPU ${i} has not ended ${running[i]}`);
  }
  return { rig, end, complaints };
}

function icr(mode: ApicMode, { how, vector }: Gust & { readonly do: "ipi" }, target: number, mask: number) {
  const low = 0x4000 | vector;
  const high = (destination: number) => mode === "xapic" ? destination << 24 : destination;
  switch (how) {
    case "physical":
      return { low, high: high(target) };
    case "logical":
      return { low: low | 0x800, high: high(mask) };
    case "lowest":
      return { low: low | 0x900, high: high(mask) };
    case "self":
      return { low: low | 0x4_0000, high: 0 };
    case "all":
      return { low: low | 0x8_0000, high: 0 };
    case "others":
      return { low: low | 0xc_0000, high: 0 };
    case "broadcast":
      return { low, high: high(mode === "xapic" ? 0xff : 0xffff_ffff) };
  }
}

/** Lines that count what their devices have, and a port whose writes are messages. */
function addDevices({ vm }: Rig, note: (vcpu: number, vector: number) => void): number[] {
  addApicvPort(vm);
  vm.pioBus.add(
    new IoEventFd(MESSAGE, 4, (value) => {
      const word = Number(value);
      note(word >>> 8, word & 0xff);
      vm.signalMsi(encodeMsi({ vector: word & 0xff, destination: word >>> 8 }, "xapic"));
    }),
  );
  const things = LINES.map(() => 0);
  for (const [pin, vector] of LINES.entries()) {
    const change = (by: number) => {
      if (by > 0) note(pin % vm.vcpus.length, vector);
      things[pin] += by;
      vm.routing.setLevel(FIRST_PIN + pin, things[pin] > 0);
      return true;
    };
    vm.pioBus.add({ base: RAISE + pin, length: 1, read: () => undefined, write: () => change(1) });
    vm.pioBus.add({ base: TAKE + pin, length: 1, read: () => undefined, write: () => change(-1) });
  }
  return things;
}
