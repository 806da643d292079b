import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { BACKENDS, formatSchedule } from "../../../host/mod.ts";
import { outcome, play, plots } from "../../support/random_guests.ts";

describe("the same guest, seed and options", () => {
  const backend = fc.constantFrom(...BACKENDS);

  it("give the same run to the byte under the timed policy", () => {
    fc.assert(
      fc.property(plots, backend, fc.integer({ min: 1, max: 4 }), (plot, backend, pcpus) => {
        const options = { vm: { backend }, machine: { pcpus, timeSlice: 30_000 } };
        const first = outcome(play(plot, options));
        assertEquals(first.end, "finished");
        assertEquals(outcome(play(plot, options)), first);
      }),
      { numRuns: 40 },
    );
  });

  it("give the same run to the byte under the random policy, and under the replay of its schedule", () => {
    fc.assert(
      fc.property(plots, backend, fc.nat(), (plot, backend, random) => {
        const vm = { backend };
        const recorded = play(plot, { vm, machine: { policy: { random } } });
        assertEquals(recorded.end, "finished");
        const first = outcome(recorded);
        assertEquals(outcome(play(plot, { vm, machine: { policy: { random } } })), first);
        const { schedule } = recorded.rig.vm.machine;
        for (const replay of [schedule, formatSchedule(schedule)]) {
          assertEquals(outcome(play(plot, { vm, machine: { policy: { replay, seed: random } } })), first);
        }
      }),
      { numRuns: 40 },
    );
  });
});
