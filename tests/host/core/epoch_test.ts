import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { BACKENDS } from "../../../host/mod.ts";
import { play, type PlayOptions, type Plot, plots } from "../../support/random_guests.ts";

/** Small integers count from an epoch that moves on when they reach 2^29. */
const MOVES = 2 ** 29;
/** Late enough for everybody to have had a slice and gone to sleep. */
const SOON = 40_000_000;

/** What came of a run, with times counted from its beginning. */
function relative(plot: Plot, options: PlayOptions, begin: number) {
  const { rig, end, clocks, words, counters, exits } = play(plot, { ...options, begin });
  const shift = begin - SOON;
  return {
    ...{ end, words, counters, exits },
    clocks: clocks.map((clock, index) => index < plot.length ? clock - shift : 0),
    events: [...rig.vm.tracer.records()].filter(({ time }) => time >= begin).map(({ time, vcpu, event }) =>
      `${time - shift} ${vcpu} ${event}`
    ),
  };
}

describe("the epoch", () => {
  it("may move on at any time of a run: it is the same run as one that begins earlier", () => {
    const options: fc.Arbitrary<PlayOptions> = fc.record({
      machine: fc.record({
        pcpus: fc.integer({ min: 1, max: 4 }),
        timeSlice: fc.constantFrom(10_000, 7_500_000),
      }),
      vm: fc.record({ backend: fc.constantFrom(...BACKENDS), haltPollNs: fc.constantFrom(0, 200_000) }),
    });
    // From before the run's first exit to behind its end, and epochs later. Timers expire at whole nanoseconds.
    const begin = fc.oneof(
      fc.nat(70_000).map((before) => MOVES - MOVES % 10 - 10 * before),
      fc.nat(500_000_000).map((n) => SOON + 10 * n),
    );
    fc.assert(
      fc.property(plots, options, begin, (plot, options, begin) => {
        assertEquals(relative(plot, options, begin), relative(plot, options, SOON));
      }),
      { numRuns: 60 },
    );
  });
});
