import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { BACKENDS } from "../../../../host/mod.ts";
import {
  outcome,
  play,
  type PlayOptions,
  type Plot,
  translatedPlots,
} from "../../../support/random_guests.ts";

const machine = fc.record({
  pcpus: fc.integer({ min: 1, max: 4 }),
  timeSlice: fc.constantFrom(10_000, 30_000, 7_500_000),
  staleness: fc.boolean(),
});
const vm = fc.record({
  backend: fc.constantFrom(...BACKENDS),
  haltPollNs: fc.constantFrom(0, 200_000),
  vpid: fc.boolean(),
  hostHugePages: fc.boolean(),
});

function run(plot: Plot, options: PlayOptions) {
  return play(plot, { ...options, translated: true });
}

describe("a guest with tables that it swaps under everybody's feet", () => {
  it("runs the same again to the byte of the trace", () => {
    fc.assert(
      fc.property(translatedPlots, machine, vm, (plot, machine, vm) => {
        const first = outcome(run(plot, { machine, vm }));
        assertEquals(first.end, "finished");
        assertEquals(outcome(run(plot, { machine, vm })), first);
      }),
      { numRuns: 40 },
    );
  });

  it("runs the same under the random policy, and under the replay of its schedule", () => {
    fc.assert(
      fc.property(translatedPlots, vm, fc.nat(), fc.boolean(), (plot, vm, random, staleness) => {
        const recorded = run(plot, { vm, machine: { policy: { random }, staleness } });
        assertEquals(recorded.end, "finished");
        const first = outcome(recorded);
        const { schedule: replay } = recorded.rig.vm.machine;
        assertEquals(
          outcome(run(plot, { vm, machine: { policy: { replay, seed: random }, staleness } })),
          first,
        );
      }),
      { numRuns: 40 },
    );
  });

  it("runs the same step by step as at a stretch", () => {
    fc.assert(
      fc.property(translatedPlots, machine, vm, (plot, machine, vm) => {
        const slow = run(plot, { machine, vm, single: true });
        const fast = run(plot, { machine, vm });
        assertEquals(outcome(fast), outcome(slow));
        assertEquals(fast.rig.vm.engine.steps, slow.rig.vm.engine.steps);
      }),
      { numRuns: 60 },
    );
  });

  it("runs the same whether its PAUSE loops sleep or turn", () => {
    fc.assert(
      fc.property(translatedPlots, machine, vm, (plot, machine, vm) => {
        const of = (bulkSpin: boolean) => outcome(run(plot, { machine, vm: { ...vm, bulkSpin } }));
        assertEquals(of(true), of(false));
      }),
      { numRuns: 60 },
    );
  });

  it("runs the same whether the oracle watches or not", () => {
    fc.assert(
      fc.property(translatedPlots, machine, vm, (plot, machine, vm) => {
        const of = (staleness: boolean) => outcome(run(plot, { machine: { ...machine, staleness }, vm }));
        assertEquals(of(true), of(false));
      }),
      { numRuns: 40 },
    );
  });
});
