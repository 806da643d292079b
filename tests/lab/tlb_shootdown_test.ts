import {
  assertEquals,
  assertGreater,
  assertInstanceOf,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { tlbShootdown } from "../../guest/examples/tlb_shootdown.ts";
import { BACKENDS, Machine, StaleTranslation } from "../../host/mod.ts";
import {
  ExperimentFailed,
  experimentOptions,
  type ExperimentRun,
  tlbShootdownExperiment as experiment,
} from "../../lab/mod.ts";

function ran(backend: string, given: Record<string, number | string> = {}): readonly ExperimentRun[] {
  return experiment.run(experimentOptions(experiment, backend, { times: 3, vcpus: 4, ...given })).runs;
}

for (const backend of BACKENDS) {
  describe(`a shootdown (${backend})`, () => {
    it("interrupts every other processor once, and has each flush once: none where there is one alone", () => {
      for (const [pages, vcpus] of [[1, 4], [34, 2]]) {
        const runs = ran(backend, { pages, vcpus, times: pages === 1 ? 3 : 1 });
        assertEquals(runs.map(({ name }) => name), vcpus === 4 ? ["1", "2", "4"] : ["1", "2"]);
        for (const { name, figures } of runs) {
          assertEquals(figures.ipisPerOperation, Number(name) - 1);
          assertEquals(figures.flushesPerOperation, Number(name));
        }
      }
    });

    it("leaves no translation of a page that was freed in use: every use is judged, and none is wrong", () => {
      for (const { figures } of ran(backend)) {
        assertGreater(figures.judgedUses, 0);
        assertEquals(figures.wrongReads, 0);
      }
    });

    it("takes longer the more processors there are, and less where hardware delivers its IPIs", () => {
      const without = ran(backend).map(({ cyclesPerOperation }) => cyclesPerOperation);
      assertEquals(without, [...without].sort((a, b) => a - b));
      const acceleration = backend === "vmx" ? "ipiv" : "x2avic";
      const helped = ran(backend, { acceleration });
      assertGreater(without[2], helped[2].cyclesPerOperation);
      // To all others the kernel sends by the ICR's shorthand, which IPI virtualization leaves to KVM (SDM 3C 30.1.6).
      const shorthand = backend === "vmx" ? 1 : 0;
      assertEquals(helped.map(({ exitsPerOperation }) => exitsPerOperation), [0, 0, shorthand]);
    });

    it("that forgets a processor ends in the oracle's words, whatever the number of pages", () => {
      for (const pages of [1, 34]) {
        const failure = assertThrows(
          () => ran(backend, { pages, vcpus: 2, quirk: "skip-one-cpu" }),
          ExperimentFailed,
        );
        assertStringIncludes(
          failure.message,
          "tlb-shootdown on 2 vCPUs: Cannot use the cached translation of 0x",
        );
        assertStringIncludes(failure.message, "on CPU 1");
        assertInstanceOf(failure.cause, StaleTranslation);
        assertEquals([failure.cause.blame, failure.cause.cpu], ["software", 1]);
        assertEquals(failure.cause.missed?.operation, "INVLPG");
      }
    });

    it("that forgets a processor lets its program read somebody else's page, where no oracle watches", () => {
      const vm = new Machine().createVm({ backend, vcpus: 3 });
      let wrong = -1;
      const kernel = tlbShootdown({
        cpus: 3,
        times: 4,
        pages: 1,
        paging: { shootdownForgets: 2 },
        over: (count) => wrong = count,
      });
      vm.load(kernel.text);
      vm.start(kernel.entry);
      assertEquals(vm.machine.run().end, "finished");
      assertGreater(wrong, 0);
    });
  });
}

describe("the tlb-shootdown experiment", () => {
  it("refuses to forget the only processor, and acceleration that the vendor does not have", () => {
    assertThrows(() => ran("vmx", { vcpus: 1, quirk: "skip-one-cpu" }), RangeError, "one alone");
    assertThrows(() => ran("vmx", { acceleration: "avic" }), RangeError, "allowed are none, apicv, ipiv");
  });

  it("shows a row for each number of processors, with the failures that there were: none", () => {
    const result = experiment.run(experimentOptions(experiment, "vmx", { times: 2, vcpus: 3 }));
    const text = experiment.report(result, 100);
    for (const row of [/^1 .* 0$/m, /^2 .* 0$/m, /^3 .* 0$/m]) assertEquals(row.test(text), true, text);
    const runs = result.runs.map((run) => ({ ...run, figures: { ...run.figures, wrongReads: 7 } }));
    const wrong = experiment.report({ ...result, runs }, 100);
    assertEquals(wrong.match(/^[123] .* 7$/gm)?.length, 3, wrong);
  });
});
