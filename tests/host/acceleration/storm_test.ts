import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { LimitExceeded, type Quirk } from "../../../host/mod.ts";
import { anyStorm, rage, type Storm } from "../../support/interrupt_storms.ts";
import { type Level, LEVELS, nameOf } from "../../support/levels.ts";

const anyHost = fc.record({
  haltPollNs: fc.constantFrom(0, 200_000),
  pcpus: fc.integer({ min: 1, max: 4 }),
  timeSlice: fc.constantFrom(50_000, 300_000),
});

describe("in a storm of interrupts nobody sleeps through one, and each is handled and ended once", () => {
  for (const level of LEVELS) {
    it(`on ${nameOf(level)}, at any times, and the same happens again to the byte`, () => {
      fc.assert(
        fc.property(anyStorm, anyHost, (storm, { haltPollNs, ...machine }) => {
          const first = rage(storm, { vm: { ...level, haltPollNs }, machine });
          assertEquals(first.complaints, []);
          const again = rage(storm, { vm: { ...level, haltPollNs }, machine });
          assertEquals(again.rig.vm.tracer.bytes(), first.rig.vm.tracer.bytes());
        }),
        { numRuns: 20 },
      );
    });

    it(`on ${nameOf(level)}, in any order of threads, and the replay is the same to the byte`, () => {
      fc.assert(
        fc.property(anyStorm, anyHost, fc.nat(), (storm, { haltPollNs, ...machine }, random) => {
          const vm = { ...level, haltPollNs };
          const first = rage(storm, { vm, machine: { ...machine, policy: { random } } });
          assertEquals(first.complaints, []);
          const { schedule } = first.rig.vm.machine;
          const again = rage(storm, { vm, machine: { ...machine, policy: { replay: schedule } } });
          assertEquals(again.rig.vm.tracer.bytes(), first.rig.vm.tracer.bytes());
        }),
        { numRuns: 12 },
      );
    });
  }
});

describe("a storm finds what once was wrong", () => {
  /** A bug, where it was, on how many CPUs it shows, and a seed with which it is found soon. */
  const BUGS: readonly [quirk: Quirk, level: Level, pcpus: number, seed: number][] = [
    ["preempted-post-unnoticed", { backend: "vmx", acceleration: "ipiv" }, 2, 1],
    ["apicv-activation-keeps-svi", { backend: "vmx", acceleration: "apicv" }, 2, 1],
    ["posted-sync-forgets-irr", { backend: "vmx", acceleration: "apicv" }, 4, 2],
    ["avic-stale-is-running", { backend: "svm", acceleration: "x2avic" }, 4, 1],
    ["avic-kick-x2apic-mask", { backend: "svm", acceleration: "x2avic" }, 4, 3],
  ];
  const steps = 100_000;

  for (const [quirk, level, pcpus, seed] of BUGS) {
    const complaints = (storm: Storm, random: number, quirks: readonly Quirk[]): readonly string[] => {
      try {
        const machine = { pcpus, timeSlice: 50_000, policy: { random }, quirks, limits: { steps } };
        return rage(storm, { vm: { ...level, haltPollNs: 0, trace: 0 }, machine }).complaints;
      } catch (error) {
        assert(error instanceof LimitExceeded, `${error}`);
        return [error.message];
      }
    };
    it(`and the same storm is nothing without it (${quirk})`, () => {
      const { counterexample } = fc.check(
        fc.property(anyStorm, fc.nat(), (storm, random) => complaints(storm, random, [quirk]).length === 0),
        { numRuns: 300, seed, endOnFailure: true },
      );
      assert(counterexample !== null, "not found");
      assertEquals(complaints(...counterexample, []), []);
    });
  }
});
