import { assertEquals, assertLess } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import {
  BACKENDS,
  type CostProfile,
  PRIMITIVES,
  SKYLAKE_VMX,
  type Vcpu,
  type Vm,
} from "../../../host/mod.ts";
import { outcome, play, type PlayOptions, type Plot, plots } from "../../support/random_guests.ts";

/** Everything costs the same, so that equal clocks are common. */
const EVEN: CostProfile = {
  ...SKYLAKE_VMX,
  name: "even",
  costs: Object.fromEntries(
    Object.keys(PRIMITIVES).map((name) => [name, { cycles: 10, provenance: "assumed", source: "for ties" }]),
  ) as CostProfile["costs"],
};

const options: fc.Arbitrary<PlayOptions> = fc.record({
  machine: fc.record({
    pcpus: fc.integer({ min: 1, max: 4 }),
    timeSlice: fc.constantFrom(10_000, 30_000, 7_500_000),
  }),
  vm: fc.record({
    backend: fc.constantFrom(...BACKENDS),
    haltPollNs: fc.constantFrom(0, 200_000),
    costs: fc.constantFrom(SKYLAKE_VMX, EVEN),
    // Where nothing is recorded, common exits take a straight way.
    trace: fc.constantFrom(0, 1 << 16),
  }),
});

/** What a guest does not see. */
function internals({ lapic, stats, events, requests, attention, immediateExit, mode, phase }: Vcpu): unknown {
  const { page, irrPending, irrRegisters, isrCount, highestIsrCache } = lapic;
  const hints = { irrPending, irrRegisters, isrCount, highestIsrCache };
  return { page, hints, stats, events, requests, attention, immediateExit, mode, phase };
}

describe("a burst of steps", () => {
  it("is what single steps are, to the byte of the trace", () => {
    fc.assert(fc.property(plots, options, (plot, options) => {
      const slow = play(plot, { ...options, single: true });
      const fast = play(plot, options);
      assertEquals(outcome(fast), outcome(slow));
      assertEquals(fast.rig.vm.engine.steps, slow.rig.vm.engine.steps);
      assertEquals(fast.rig.vm.vcpus.map(internals), slow.rig.vm.vcpus.map(internals));
    }));
  });
});

describe("a burst of steps, in the middle of a run", () => {
  const looks = fc.array(
    fc.record({ after: fc.nat(20_000), by: fc.constantFrom<"deadline" | "stop">("deadline", "stop") }),
    { minLength: 1, maxLength: 12 },
  );

  it("has come to where single steps are, at deadlines and where it was stopped", () => {
    fc.assert(fc.property(plots, options, looks, (plot, options, looks) => {
      const seen = (single: boolean): unknown[] => {
        const all: unknown[] = [];
        const look = (vm: Vm): void => {
          const clocks = vm.vcpus.map(({ clock }) => clock);
          all.push({
            clocks,
            steps: vm.engine.steps,
            counters: vm.counters(),
            exits: vm.exits(),
            vcpus: vm.vcpus.map(internals),
          });
        };
        play(plot, { ...options, single, looks, look });
        return all;
      };
      assertEquals(seen(false), seen(true));
    }));
  });
});

describe("a PAUSE loop that is charged in bulk", () => {
  it("is what the loop is, turn by turn, to the byte of the trace", () => {
    fc.assert(fc.property(plots, options, (plot, { machine = {}, vm = {} }) => {
      const run = (bulkSpin: boolean) => outcome(play(plot, { machine, vm: { ...vm, bulkSpin } }));
      assertEquals(run(true), run(false));
    }));
  });

  it("takes steps only when something happens", () => {
    const plot: Plot = [[["spin", 0, 0]], [["work", 5000, 0], ["store", 1, 0]]];
    const steps = (bulkSpin: boolean) => play(plot, { vm: { bulkSpin } }).rig.vm.engine.steps;
    assertLess(steps(true), steps(false));
  });
});
