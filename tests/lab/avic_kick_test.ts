import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { GENERIC_SVM } from "../../host/mod.ts";
import {
  avicKickExperiment as avicKick,
  experimentOptions,
  type ExperimentResult,
  type ExperimentRun,
} from "../../lab/mod.ts";

const ASKED = GENERIC_SVM.costs.slowMatch.cycles;
const LOOKED_UP = GENERIC_SVM.costs.avicTarget.cycles;

function ran(given: Record<string, number | string> = {}): ExperimentResult {
  return avicKick.run(experimentOptions(avicKick, "svm", { times: 4, ...given }));
}

function runsOf({ runs }: ExperimentResult, kick: string): ExperimentRun[] {
  return runs.filter(({ name }) => name.startsWith(`${kick}/`));
}

describe("finding the halted targets of AVIC's IPIs", () => {
  const result = ran();
  const SIZES = [2, 4, 8, 16, 32, 64, 128, 256, 512];

  it("is done on machines of 2 to 512 vCPUs, in the three ways that KVM has had", () => {
    assertEquals(result.runs.map(({ name }) => name), [
      ...SIZES.map((size) => `slow/${size}`),
      ...SIZES.map((size) => `2022/${size}`),
      ...SIZES.map((size) => `v6.19/${size}`),
    ]);
    for (const { name, hostSemantics } of result.runs) {
      assertEquals(hostSemantics, name.startsWith("v6.19/") ? "v6.19" : "2022");
    }
  });

  it("takes one exit of the sender and one HLT of the target an IPI, however many others sleep", () => {
    for (const { exits, counters, operations, figures } of result.runs) {
      assertEquals(exits, { avic_incomplete_ipi: operations, hlt: operations });
      assertEquals(figures.senderExitsPerOperation, 1);
      assertEquals(counters.kvm_avic_incomplete_ipi, operations);
      assertEquals(counters.kvm_apicv_accept_irq, operations); // One was kicked.
      assertEquals(counters.kvm_vcpu_wakeup, operations);
      assertEquals(counters.kvm_apic_accept_irq, undefined); // Hardware had set the IRR.
    }
  });

  it("by asking takes a time that grows with their number", () => {
    for (const { figures } of runsOf(result, "slow")) {
      assertEquals(figures.searchCyclesPerOperation, ASKED * figures.vcpus);
    }
  });

  it("by looking up takes the same time on every machine", () => {
    for (const kick of ["2022", "v6.19"]) {
      for (const { figures } of runsOf(result, kick)) {
        assertEquals(figures.searchCyclesPerOperation, LOOKED_UP);
      }
      assertEquals(new Set(runsOf(result, kick).map((run) => run.cyclesPerOperation)).size, 1);
    }
  });

  it("is all that differs between them", () => {
    const rest = result.runs.map((run) => run.cyclesPerOperation - run.figures.searchCyclesPerOperation);
    assertEquals(new Set(rest).size, 1);
  });

  it("is not slow again where the processor is named by a logical ID", () => {
    for (const run of ran({ apic: "x2apic-cluster", vcpus: 40 }).runs) {
      const slow = run.name.startsWith("slow/");
      assertEquals(run.figures.searchCyclesPerOperation, slow ? ASKED * run.figures.vcpus : LOOKED_UP);
    }
  });

  it("ends at 255 vCPUs with xAPICs, whose ID 255 is everybody's", () => {
    const { runs } = ran({ apic: "xapic" });
    assertEquals(runs.map(({ figures }) => figures.vcpus).slice(0, 8), [2, 4, 8, 16, 32, 64, 128, 255]);
    for (const { name, exits, operations, figures } of runs) {
      assertEquals(exits, { avic_incomplete_ipi: operations, hlt: operations });
      const slow = name.startsWith("slow/");
      assertEquals(figures.searchCyclesPerOperation, slow ? ASKED * figures.vcpus : LOOKED_UP);
    }
  });

  it("is done in one way where that is asked for, up to the size that is asked for", () => {
    assertEquals(ran({ kick: "2022", vcpus: 5 }).runs.map(({ name }) => name), [
      "2022/2",
      "2022/4",
      "2022/5",
    ]);
    assertEquals(ran({ kick: "slow", vcpus: 2 }).runs.map(({ name }) => name), ["slow/2"]);
  });

  it("is AMD's alone", () => {
    assertThrows(
      () => experimentOptions(avicKick, "vmx", {}),
      RangeError,
      "Cannot run avic-kick on backend vmx: allowed are svm",
    );
  });

  it("refuses ways, drivers and sizes that there are not", () => {
    for (
      const [given, text] of [
        [{ kick: "fast" }, "kick fast: allowed are all, slow, 2022, v6.19"],
        [{ apic: "flat" }, "apic flat: allowed are x2apic-physical, x2apic-cluster, xapic"],
        [{ vcpus: 513 }, "vcpus 513: allowed are 2 to 512"],
        [{ vcpus: 1 }, "vcpus 1: allowed are 2 to 512"],
        [{ vcpus: "8" }, "vcpus 8: allowed are 2 to 512"],
      ] as const
    ) {
      assertThrows(() => ran(given), RangeError, `Cannot run avic-kick with ${text}`);
    }
  });
});

describe("the chart of looking for targets", () => {
  it("shows a line that grows and lines that do not", () => {
    const lines = avicKick.report(ran({ vcpus: 64 }), 80).split("\n");
    const marks = (kick: string): number[] => {
      const from = lines.indexOf(kick, lines.indexOf("Cycles of looking:")) + 1;
      return lines.slice(from, from + 6).map((line) => line.split("#").length - 1);
    };
    const slow = marks("slow");
    for (const [n, length] of slow.entries()) {
      if (n > 1) assertEquals(Math.abs(length - 2 * slow[n - 1]) <= 1, true);
    }
    assertEquals(slow[5] > 40, true);
    for (const kick of ["2022", "v6.19"]) assertEquals(new Set(marks(kick)).size, 1);
    assertMatch(lines.join("\n"), /\n +64 \|#+ 960\n/); // 64 vCPUs, each asked at 15 cycles.
  });
});
