/**
 * Scripts: interrupts whose arrivals are tied to the guest's own progress. The vCPUs take turns, one step after another; a
 * step that makes handlers run is over when they have. What runs where, and in which order, then follows from the
 * architecture alone, and {@linkcode foretell} says it: a model of a few lines, without hosts, costs or schedules.
 *
 * The handlers of some vectors stay: they take part in the script themselves, until a step lets them go.
 *
 * @module
 */

import fc from "fast-check";
import { APIC_MODES, type ApicMode } from "./apic.ts";

/** Handlers that end at once, of several classes, and several of one. */
export const QUICK = [0x31, 0x3f, 0x52, 0x80, 0xe1] as const;
/** Handlers that stay. */
export const STAYING = [0x41, 0x5f, 0x90, 0xd0] as const;
/** Lines' handlers. */
export const LINES = [0x38, 0x75] as const;
/** The timer's. */
export const TIMER = 0x62;
/** Ends every halt. */
const WAKES = 0xe1;

/** How an IPI names its targets. */
export type How = "physical" | "logical" | "lowest" | "self" | "all" | "others" | "broadcast";

/** A step, as one vCPU takes it. */
export type Step =
  | {
    readonly do: "ipi";
    readonly cpu: number;
    readonly how: How;
    readonly vector: number;
    readonly to: number;
  }
  | { readonly do: "msi"; readonly cpu: number; readonly vector: number; readonly to: number }
  | { readonly do: "nmi" | "restart"; readonly cpu: number; readonly to: number }
  | { readonly do: "line"; readonly cpu: number; readonly pin: number }
  | { readonly do: "tpr" | "cr8"; readonly cpu: number; readonly value: number }
  | { readonly do: Plain; readonly cpu: number };

/**
 * What a step may do besides. `leave` and `eoi`: a handler that stays goes, or ends its interrupt and stays on. `id`: an
 * xAPIC takes another ID, or its own again. `off`: an APIC is switched off and on again. `move`: it is elsewhere for a
 * while. `inhibit` and `allow`: user space wants no hardware to deliver interrupts, or does not mind any more.
 */
const PLAIN = [
  "cli",
  "sti",
  "halt",
  "timer",
  "leave",
  "eoi",
  "id",
  "off",
  "move",
  "inhibit",
  "allow",
] as const;
type Plain = (typeof PLAIN)[number];

/** A guest. */
export interface Cast {
  /** The APICs' mode. */
  readonly mode: ApicMode;
  /** How many vCPUs. */
  readonly cpus: number;
  /** Whether an xAPIC's logical destinations are of the cluster model. */
  readonly clusters: boolean;
}

const cpu = fc.nat(3);
const vector = fc.constantFrom(...QUICK, ...STAYING);
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
const plain = fc.constantFrom<Plain>(...PLAIN.filter((verb) => verb !== "move"));
/** Any step: whether it can be taken where it stands {@linkcode foretell} looks. */
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({ do: fc.constant("ipi"), cpu, how, vector, to: fc.integer({ min: 1, max: 15 }) }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("msi"), cpu, vector, to: cpu }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("nmi"), cpu, to: cpu }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("restart"), cpu, to: cpu }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("line"), cpu, pin: fc.nat(1) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constantFrom("tpr", "cr8"),
      cpu,
      value: fc.constantFrom(0, 0, 3, 4, 5, 9, 15),
    }),
  },
  { weight: 12, arbitrary: fc.record({ do: plain, cpu }) },
) as fc.Arbitrary<Step>;

/** Any guest. */
export const anyCast: fc.Arbitrary<Cast> = fc.record({
  mode: fc.constantFrom(...APIC_MODES),
  cpus: fc.integer({ min: 1, max: 4 }),
  clusters: fc.boolean(),
});
/** Any list of steps. */
export const anySteps: fc.Arbitrary<Step[]> = fc.tuple(
  fc.array(anyStep, { maxLength: 40, size: "max" }),
  fc.option(fc.record({ at: fc.nat(40), cpu }), { freq: 6 }),
).map(([steps, moved]) =>
  // What moves an APIC keeps hardware from delivering interrupts for good: seldom, and once.
  moved === null ? steps : steps.toSpliced(moved.at, 0, { do: "move", cpu: moved.cpu })
);

// The model.

interface Player {
  interruptible: boolean;
  tpr: number;
  /** Its task priority was above 0, since it started. */
  raised: boolean;
  requested: Set<number>;
  inService: Set<number>;
  /** Handlers that stay, the latest last. */
  readonly staying: { readonly vector: number; ended: boolean }[];
  halted: boolean;
  id: number;
  readonly log: string[];
}

/** What is to happen. */
export interface Foretold {
  /** The steps that can be taken, and those that bring everything to an end. */
  readonly steps: readonly Step[];
  /** Behind each step: how many handlers have run, and how many processors have started again. */
  readonly handled: readonly number[];
  /** What each vCPU does, in its order. */
  readonly logs: readonly (readonly string[])[];
}

/** The vCPUs that an IPI means (SDM 3A 11.6; the one of several that lowest priority picks is KVM's vector hashing). */
export function meant({ cpus }: Cast, step: Step & { readonly do: "ipi" }): number[] {
  const all = Array.from({ length: cpus }, (_, cpu) => cpu);
  const named = all.filter((cpu) => (step.to >> cpu) & 1);
  switch (step.how) {
    case "physical":
      return named.slice(0, 1);
    case "logical":
      return named;
    case "lowest":
      return named.length === 0 ? [] : [named[step.vector % named.length]];
    case "self":
      return [step.cpu];
    case "others":
      return all.filter((cpu) => cpu !== step.cpu);
    case "all":
    case "broadcast":
      return all;
  }
}

/** Says what a guest will do; steps that cannot be taken where they stand are left out. */
export function foretell(cast: Cast, wanted: readonly Step[]): Foretold {
  const { cpus, mode } = cast;
  const players: Player[] = Array.from({ length: cpus }, (_, id) => ({
    interruptible: true,
    tpr: 0,
    raised: false,
    requested: new Set(),
    inService: new Set(),
    staying: [],
    halted: false,
    id,
    log: [],
  }));
  const things = LINES.map(() => 0);
  const remote = LINES.map(() => false);
  const steps: Step[] = [];
  const handled: number[] = [];
  let runs = 0;

  const highest = (vectors: Set<number>) => Math.max(0, ...vectors);
  const priority = ({ tpr, inService }: Player) => Math.max(tpr, highest(inService) >> 4);
  const raise = (pin: number) => {
    if (things[pin] === 0 || remote[pin]) return;
    remote[pin] = true;
    players[pin % cpus].requested.add(LINES[pin]);
  };
  const end = (player: Player) => {
    const vector = highest(player.inService);
    player.inService.delete(vector);
    const pin = LINES.indexOf(vector as typeof LINES[number]);
    if (pin < 0) return;
    remote[pin] = false;
    raise(pin);
  };
  /** Everything that can be delivered is. */
  const settle = () => {
    for (const player of players) {
      for (;;) {
        const vector = highest(player.requested);
        if (!player.interruptible || vector >> 4 <= priority(player)) break;
        player.requested.delete(vector);
        player.inService.add(vector);
        player.halted = false;
        runs++;
        player.log.push(`${vector.toString(16)}`);
        if ((STAYING as readonly number[]).includes(vector)) {
          player.staying.push({ vector, ended: false });
          player.interruptible = false;
        } else {
          const pin = LINES.indexOf(vector as typeof LINES[number]);
          if (pin >= 0) things[pin]--;
          end(player);
        }
      }
    }
  };
  /** Takes a step. Whether that can be. */
  const take = (step: Step): boolean => {
    const player = players[step.cpu];
    if (player === undefined || player.halted) return false;
    switch (step.do) {
      case "ipi":
        if (meant(cast, step).length === 0) return false;
        for (const cpu of meant(cast, step)) players[cpu].requested.add(step.vector);
        return true;
      case "msi":
        players[step.to]?.requested.add(step.vector);
        return step.to < cpus;
      case "nmi":
        // Nothing holds an NMI back until the halt has begun.
        if (step.to >= cpus || players[step.to].halted) return false;
        players[step.to].log.push("nmi");
        runs++;
        return true;
      case "restart": {
        const { to } = step;
        if (to === 0 || to >= cpus || to === step.cpu) return false;
        // The I/O APIC would wait for an end that never comes.
        if (LINES.some((_, pin) => pin % cpus === to && (things[pin] > 0 || remote[pin]))) return false;
        const { id, log } = players[to];
        log.push("starts");
        players[to] = {
          interruptible: false,
          tpr: 0,
          raised: false,
          requested: new Set(),
          inService: new Set(),
          staying: [],
          halted: false,
          id,
          log,
        };
        runs++;
        return true;
      }
      case "line":
        things[step.pin]++;
        raise(step.pin);
        return true;
      case "tpr":
      case "cr8":
        player.tpr = step.value;
        player.raised ||= step.value > 0;
        return true;
      case "cli":
      case "sti":
        player.interruptible = step.do === "sti";
        return true;
      case "halt":
        if (players.filter(({ halted }) => !halted).length === 1) return false;
        if (!player.interruptible || priority(player) >= WAKES >> 4) return false;
        player.halted = true;
        return true;
      case "timer":
        if (!player.interruptible || TIMER >> 4 <= priority(player)) return false;
        player.requested.add(TIMER);
        return true;
      case "eoi":
        if (player.staying.at(-1)?.ended !== false) return false;
        player.staying.at(-1)!.ended = true;
        end(player);
        return true;
      case "leave": {
        const left = player.staying.pop();
        if (left === undefined) return false;
        player.log.push(`${left.vector.toString(16)} leaves`);
        if (!left.ended) end(player);
        player.interruptible = true;
        return true;
      }
      case "id":
        if (mode !== "xapic") return false;
        player.id = player.id === step.cpu ? otherId(step.cpu) : step.cpu;
        return true;
      case "off":
        // What waits then has been looked at while it could not be injected; a real APIC would have lost it.
        if (player.requested.size > 0) return false;
        // KVM leaves the TPR threshold of a disabled APIC as it was: that may be no legal entry (SDM 3C 27.2.1.1).
        if (player.raised) return false;
        player.id = step.cpu; // Switched on again, an xAPIC has its own ID.
        return true;
      case "move":
      case "inhibit":
      case "allow":
        return true;
    }
  };
  const next = (step: Step) => {
    if (!take(step)) return false;
    if (step.do !== "halt") players[step.cpu].log.push(step.do);
    settle();
    steps.push(step);
    handled.push(runs);
    return true;
  };

  for (const step of wanted) next(step);
  const awake = players.findIndex(({ halted }) => !halted);
  for (const [cpu, player] of players.entries()) {
    if (player.halted) next({ do: "ipi", cpu: awake, how: "physical", vector: WAKES, to: 1 << cpu });
  }
  // A handler that leaves may let another one in, here or elsewhere.
  for (let calm = false; !calm;) {
    calm = true;
    for (let cpu = 0; cpu < cpus; cpu++) {
      next({ do: "tpr", cpu, value: 0 });
      next({ do: "sti", cpu });
      while (next({ do: "leave", cpu })) calm = false;
    }
  }
  return { steps, handled, logs: players.map(({ log }) => log) };
}

/** The ID that an xAPIC takes besides its own. */
export function otherId(cpu: number): number {
  return 0x40 + cpu;
}
