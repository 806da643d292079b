import { assertEquals, assertStrictEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  experimentOptions,
  type ExperimentResult,
  type ExperimentRun,
  ipivExperiment as ipiv,
} from "../../lab/mod.ts";
import published from "../../lab/published/ipiv_2021.json" with { type: "json" };

const TIMES = 50;

function ran(given: Record<string, number | string> = {}, backend = "vmx"): ExperimentResult {
  return ipiv.run(experimentOptions(ipiv, backend, { times: TIMES, ...given }));
}

function runNamed({ runs }: ExperimentResult, name: string): ExperimentRun {
  return runs.find((run) => run.name === name)!;
}

/** Exits of the sender and of the target for one IPI. */
function exits(result: ExperimentResult, name: string): readonly [sender: number, target: number] {
  const { figures } = runNamed(result, name);
  return [figures.senderExitsPerOperation, figures.targetExitsPerOperation];
}

describe("the IPI round trip of 2021 on VMX", () => {
  const result = ran();

  it("is run in both modes on processors that do more and more by themselves", () => {
    assertEquals([result.guestSemantics, result.hostSemantics], ["2021", "2021"]);
    assertEquals(result.runs.map(({ name }) => name), [
      "xapic/none",
      "xapic/apicv",
      "xapic/ipiv",
      "x2apic/none",
      "x2apic/apicv",
      "x2apic/ipiv",
    ]);
    for (const { operations } of result.runs) assertEquals(operations, TIMES);
  });

  // The accesses of apic_icr_write and of the handler, through SDM 3C 30.4 and 30.5.
  it("without help exits for each ICR access, for the kick that reaches the target, and for its EOI", () => {
    assertEquals(exits(result, "xapic/none"), [3, 2]);
    assertEquals(runNamed(result, "xapic/none").exits, { APIC_ACCESS: 4 * TIMES, EXTERNAL_INTERRUPT: TIMES });
    assertEquals(exits(result, "x2apic/none"), [1, 2]);
    assertEquals(runNamed(result, "x2apic/none").exits, { MSR_WRITE: 2 * TIMES, EXTERNAL_INTERRUPT: TIMES });
  });

  it("with APICv leaves the target alone, and the sender one exit: of another kind in each mode", () => {
    assertEquals(exits(result, "xapic/apicv"), [1, 0]);
    assertEquals(runNamed(result, "xapic/apicv").exits, { APIC_WRITE: TIMES });
    assertEquals(exits(result, "x2apic/apicv"), [1, 0]);
    assertEquals(runNamed(result, "x2apic/apicv").exits, { MSR_WRITE: TIMES });
  });

  it("with IPI virtualization has no exit, and leaves KVM nothing to trace", () => {
    for (const name of ["xapic/ipiv", "x2apic/ipiv"]) {
      assertEquals(exits(result, name), [0, 0]);
      assertEquals([runNamed(result, name).exits, runNamed(result, name).counters], [{}, {}]);
    }
  });

  it("with APICv posts what it accepts, and injects and ends nothing by itself", () => {
    for (const mode of ["xapic", "x2apic"]) {
      const { counters } = runNamed(result, `${mode}/apicv`);
      assertEquals([counters.kvm_apic_accept_irq, counters.kvm_apicv_accept_irq], [TIMES, TIMES]);
      assertEquals([counters.kvm_inj_virq, counters.kvm_eoi], [undefined, undefined]);
      const without = runNamed(result, `${mode}/none`).counters;
      assertEquals([without.kvm_inj_virq, without.kvm_eoi], [TIMES, TIMES]);
      assertEquals(without.kvm_apicv_accept_irq, undefined);
    }
  });

  it("takes less time with each exit less, in either mode", () => {
    for (const mode of ["xapic", "x2apic"]) {
      const cycles = ["none", "apicv", "ipiv"].map((level) =>
        runNamed(result, `${mode}/${level}`).cyclesPerOperation
      );
      assertEquals(cycles, cycles.toSorted((a, b) => b - a));
      assertEquals(new Set(cycles).size, 3);
    }
  });

  it("takes what its steps cost, and no total of anybody's: whatever the number of round trips", () => {
    const once = ran({ times: 1 });
    for (const { name, cyclesPerOperation, figures } of result.runs) {
      const single = runNamed(once, name);
      assertEquals(single.figures.roundTripCycles, figures.roundTripCycles);
      // What lies between two round trips is a look at the clock.
      assertEquals(cyclesPerOperation > figures.roundTripCycles, true);
      assertEquals(cyclesPerOperation - figures.roundTripCycles < 100, true);
    }
  });

  it("stands beside the published rows where it is their test: two vCPUs", () => {
    assertEquals(result.published, published);
    const more = ran({ vcpus: 4, times: 5 });
    assertStrictEquals(more.published, null);
    // The others sleep: they change nothing.
    for (const { name } of more.runs) assertEquals(exits(more, name), exits(result, name));
  });

  it("is told on which processor", () => {
    assertEquals(ran({ acceleration: "apicv", times: 1 }).runs.map(({ name }) => name), [
      "xapic/apicv",
      "x2apic/apicv",
    ]);
    assertThrows(
      () => ran({ acceleration: "avic" }),
      RangeError,
      "Cannot run ipiv with acceleration avic on vmx: allowed are all, none, apicv, ipiv",
    );
    assertThrows(
      () => ran({ acceleration: "posted" }),
      RangeError,
      "Cannot run ipiv with acceleration posted: allowed are all, none, apicv, ipiv, avic, x2avic",
    );
  });
});

describe("the same round trip on SVM", () => {
  const result = ran({}, "svm");

  it("has no exit in xAPIC mode with AVIC, and in x2APIC mode with x2AVIC", () => {
    assertEquals([result.hostSemantics, result.published], ["2022", null]);
    assertEquals([exits(result, "xapic/none"), exits(result, "x2apic/none")], [[3, 2], [1, 2]]);
    for (const name of ["xapic/avic", "xapic/x2avic", "x2apic/x2avic"]) {
      assertEquals([exits(result, name), runNamed(result, name).counters], [[0, 0], {}]);
    }
  });

  it("in x2APIC mode without x2AVIC spares the target the kick, which is a doorbell, but not its EOI", () => {
    assertEquals(exits(result, "x2apic/avic"), [1, 1]);
    assertEquals(runNamed(result, "x2apic/avic").exits, { msr: 2 * TIMES });
    assertEquals(runNamed(result, "x2apic/avic").counters.kvm_avic_doorbell, TIMES);
  });
});

describe("the report of the IPI round trip", () => {
  it("has the twenty published rows with their averages and reductions, above what was simulated", () => {
    const lines = ipiv.report(ran(), 100).split("\n").map((line) => line.trim().split(/ {2,}/));
    for (const [n, row] of published.rows.entries()) {
      const cells = lines.find(([first, ...rest]) => first === String(n + 1) && rest.length === 4)!;
      assertEquals(cells.slice(1), row.map((cycles) => cycles.toLocaleString("en-US")));
    }
    const averages = ["6,059", "4,713.1", "4,337.85", "3,644.8"];
    assertEquals(lines.find(([first]) => first === "average")!.slice(1), averages);
    assertEquals(lines.find(([first]) => first === "reduction")!.slice(1), ["-22.21%", "-15.98%"]);
    const simulated = lines.find(([first]) => first === "cycles")!;
    assertEquals(simulated.length, 5);
  });

  it("compares only what was run: with one level there is nothing to subtract", () => {
    const text = ipiv.report(ran({ acceleration: "ipiv" }), 100);
    assertEquals(text.includes("an exit less saves"), false);
    assertStringIncludes(
      ipiv.report(ran(), 100).replaceAll("\n", " "),
      "where the series saves 1,346 and 693",
    );
    const svm = ipiv.report(ran({}, "svm"), 100);
    assertEquals(/series|published/.test(svm), false);
  });
});
