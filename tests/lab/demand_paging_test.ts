import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { PHASES } from "../../guest/examples/demand_paging.ts";
import { BACKENDS } from "../../host/mod.ts";
import {
  demandPagingExperiment as experiment,
  experimentOptions,
  type ExperimentRun,
} from "../../lab/mod.ts";

const PAGES = 64;

function ran(backend: string, pages: number = PAGES): Readonly<Record<string, ExperimentRun>> {
  const { runs } = experiment.run(experimentOptions(experiment, backend, { pages }));
  assertEquals(runs.map(({ name }) => name), [...PHASES]);
  return Object.fromEntries(runs.map((run) => [run.name, run]));
}

for (const backend of BACKENDS) {
  describe(`demand paging (${backend})`, () => {
    const runs = ran(backend);

    it("faults once for each page that is read first, once more for its first write, and once for a write at once", () => {
      const faults = (name: string): number => runs[name].figures.faultsPerOperation;
      assertEquals([faults("read"), faults("write after read"), faults("write")], [1, 1, 1]);
    });

    it("never faults for pages that are there", () => {
      assertEquals(runs["read again"].figures.faultsPerOperation, 0);
      assertEquals(runs["read again"].exitsPerOperation, 0);
    });

    it("costs a page that is read first no frame, and so the host no fault of its own", () => {
      assertLess(runs["read"].exitsPerOperation, 0.1);
      assert(runs["write after read"].exitsPerOperation >= 1);
    });

    it("clears a page for each that is written, 512 stores, and none for one that is read", () => {
      assertGreater(runs["write after read"].cyclesPerOperation, 512);
      assertGreater(runs["write"].cyclesPerOperation, 512);
      assertGreater(runs["write after read"].cyclesPerOperation, runs["read"].cyclesPerOperation + 512);
      assertLess(runs["read again"].cyclesPerOperation, runs["read"].cyclesPerOperation);
    });

    it("walks at least twice for a fault: the walk that fails, and the one that finds the page", () => {
      assert(runs["read"].figures.walksPerOperation >= 2);
      // The second dimension's accesses count: more than the four of the guest's tables (SDM 3C 29.3.2, APM 2 15.25).
      for (const name of ["read", "write"]) {
        assert(runs[name].figures.walkAccessesPerOperation > 4 * 2 - 4);
      }
    });
  });
}

describe("the demand-paging experiment", () => {
  it("reads more pages than the TLB holds by walking, without a fault", () => {
    const { figures } = ran("vmx", 4096)["read again"];
    assertEquals(figures.faultsPerOperation, 0);
    assertGreater(figures.walksPerOperation, 0.9);
  });

  it("reports a row for each phase", () => {
    const text = experiment.report(experiment.run(experimentOptions(experiment, "svm", { pages: 8 })), 100);
    for (const phase of PHASES) assertStringIncludes(text, phase);
  });

  it("refuses numbers of pages and of vCPUs that it has no room for", () => {
    for (const [name, value] of [["pages", 0], ["pages", 8193], ["vcpus", 2]] as const) {
      assertThrows(
        () => experimentOptions(experiment, "vmx", { [name]: value }),
        RangeError,
        `${name} ${value}`,
      );
    }
  });
});
