import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import type { PolicySpec } from "../../../host/mod.ts";
import { vectors } from "../../support/apic.ts";
import { anyCast, anySteps, type Cast, foretell, type Foretold } from "../../support/interrupt_scripts.ts";
import { perform, type Stage } from "../../support/interrupt_stage.ts";
import { type Level, LEVELS, nameOf } from "../../support/levels.ts";
import { pir } from "../../support/posted.ts";

/** A guest does what was foretold on one level, and leaves nothing behind. */
function assertForetold(cast: Cast, foretold: Foretold, level: Level, stage: Stage = {}): void {
  const { rig, end, logs } = perform(cast, foretold, { ...stage, vm: { ...level, ...stage.vm } });
  assertEquals(logs, foretold.logs, nameOf(level));
  assertEquals(end, "finished", nameOf(level));
  for (const vcpu of rig.vm.vcpus) {
    assertEquals([vectors(vcpu.lapic, 0x200), vectors(vcpu.lapic, 0x100)], [[], []], nameOf(level));
    if (level.backend === "vmx") assertEquals(pir(vcpu), [], nameOf(level));
  }
}

const anyStage = fc.record({
  vm: fc.record({ haltPollNs: fc.constantFrom(0, 200_000) }),
  pcpus: fc.integer({ min: 1, max: 4 }),
});

describe("where interrupts arrive by the guest's own progress, the same handlers run in the same order", () => {
  for (const level of LEVELS) {
    it(`on ${nameOf(level)}, whatever it is sent, and by whom`, () => {
      fc.assert(
        fc.property(anyCast, anySteps, anyStage, (cast, steps, { vm, pcpus }) => {
          const foretold = foretell(cast, steps);
          assertForetold(cast, foretold, level, { vm, machine: { pcpus, timeSlice: 300_000 } });
        }),
        { numRuns: 40 },
      );
    });

    it(`on ${nameOf(level)}, under any schedule`, () => {
      fc.assert(
        fc.property(anyCast, anySteps, anyStage, fc.nat(), (cast, steps, { vm, pcpus }, seed) => {
          const policy: PolicySpec = { random: seed };
          assertForetold(cast, foretell(cast, steps), level, { vm, machine: { policy, pcpus } });
        }),
        { numRuns: 20 },
      );
    });
  }
});
