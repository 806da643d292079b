import { assertEquals, assertNotEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  type Experiment,
  experimentNamed,
  experimentOptions,
  type ExperimentResult,
  type ExperimentRun,
  EXPERIMENTS,
} from "../../lab/mod.ts";
import { BACKENDS, TRACEPOINTS } from "../../host/mod.ts";

/** Runs an experiment with a few of its numbers changed. */
function ran(
  name: string,
  given: Record<string, number | string> = {},
  backend: string = experimentNamed(name).backends[0],
): ExperimentResult {
  const experiment = experimentNamed(name);
  return experiment.run(experimentOptions(experiment, backend, given));
}

/** Small numbers, where counts of exits are not what is looked at. */
const SMALL: Readonly<Record<string, Record<string, number>>> = {
  "pv-eoi": { interrupts: 500, pio: 100 },
  "pv-ipi": { vcpus: 4, times: 2 },
  "ipiv": { times: 10 },
  "avic-kick": { vcpus: 5, times: 4 },
  "demand-paging": { pages: 20 },
  "tlb-shootdown": { vcpus: 2, times: 3 },
};

describe("an experiment's result", () => {
  for (const { name, backends } of EXPERIMENTS) {
    for (const backend of backends) {
      it(`is the object that is documented: ${name}, ${backend}`, () => {
        const text = JSON.stringify(ran(name, SMALL[name], backend));
        const result = JSON.parse(text);
        assertEquals(Object.keys(result), [
          "experiment",
          "options",
          "guestSemantics",
          "hostSemantics",
          "runs",
          "published",
        ]);
        assertEquals(result.experiment, name);
        assertEquals([result.options.backend, result.options.seed], [backend, 0]);
        assertEquals(Number.isInteger(result.options.vcpus), true);
        assertEquals(
          [result.guestSemantics, result.hostSemantics].every((year) => /^(20\d\d|v6\.19)$/.test(year)),
          true,
        );
        assertEquals(result.published === null || typeof result.published === "object", true);
        const names = new Set<string>(TRACEPOINTS.map((tracepoint) => tracepoint.name));
        for (const run of result.runs as ExperimentRun[]) {
          assertEquals(typeof run.name, "string");
          for (const [event, count] of Object.entries(run.counters)) {
            assertEquals([names.has(event), Number.isInteger(count) && count > 0], [true, true], event);
          }
          for (const count of Object.values(run.exits)) {
            assertEquals(Number.isInteger(count) && count > 0, true);
          }
          const exits = Object.values(run.exits).reduce((sum, count) => sum + count, 0);
          assertEquals(exits, run.counters.kvm_exit ?? 0);
          for (const field of ["cycles", "operations", "cyclesPerOperation", "exitsPerOperation"] as const) {
            assertEquals(typeof run[field], "number", `${run.name}: ${field}`); // Not null, as NaN would be.
          }
          assertEquals(run.cyclesPerOperation, run.cycles / run.operations);
          assertEquals(run.exitsPerOperation, (run.counters.kvm_exit ?? 0) / run.operations);
          for (const figure of Object.values(run.figures)) assertEquals(typeof figure, "number");
        }
        assertEquals(new Set(result.runs.map((run: ExperimentRun) => run.name)).size, result.runs.length);
      });
    }

    it(`is the same again, byte for byte: ${name}`, () => {
      const text = (): string => JSON.stringify(ran(name, { ...SMALL[name], seed: 7 }));
      assertEquals(text(), text());
    });
  }

  it("differs with the seed where something is drawn from it: when the device interrupts", () => {
    const runs = (seed: number): unknown => ran("pv-eoi", { interrupts: 20_000, pio: 20_000, seed }).runs;
    assertNotEquals(runs(1), runs(2));
  });

  it("does not where nothing is: the IPI benchmark", () => {
    const runs = (seed: number): unknown => ran("pv-ipi", { vcpus: 4, times: 2, seed }).runs;
    assertEquals(runs(1), runs(2));
  });
});

describe("PV EOI, 2012", () => {
  for (const backend of BACKENDS) {
    it(`halves a busy guest's exits, for the reason that the patch gives: ${backend}`, () => {
      const { runs, guestSemantics, hostSemantics } = ran("pv-eoi", {}, backend);
      assertEquals([guestSemantics, hostSemantics], ["2012", "2012"]);
      assertEquals(runs.map(({ name }) => name), ["without PV EOI", "with PV EOI"]);
      const [before, after] = runs.map(({ counters }) => counters);
      const interrupts = 22_000;

      // The same load: as many interrupts were sent, and all but a few that met another were taken.
      for (const counters of [before, after]) {
        assertEquals(counters.kvm_msi_set_irq, interrupts);
        assertEquals(counters.kvm_apic_accept_irq, interrupts);
        assertEquals(counters.kvm_inj_virq > 0.999 * interrupts, true);
        assertEquals(counters.kvm_inj_virq <= interrupts, true);
      }
      assertEquals(before.kvm_pio, after.kvm_pio);

      // Exits for an interrupt: 2.0 to 2.3, and 1.0 to 1.2.
      assertEquals(runs[0].exitsPerOperation >= 2 && runs[0].exitsPerOperation <= 2.3, true);
      assertEquals(runs[1].exitsPerOperation >= 1 && runs[1].exitsPerOperation <= 1.2, true);
      for (const [n, range] of [[2, 2.3], [1, 1.2]].entries()) {
        const { exitsPerInterruptWithoutPio: exits } = runs[n].figures;
        assertEquals(exits >= range[0] - 0.01 && exits <= range[1], true);
      }

      // kvm_eoi stays: each interrupt taken was ended, but for one that the end of the second may find unended.
      for (const counters of [before, after]) {
        assertEquals(counters.kvm_inj_virq - counters.kvm_eoi <= 1, true);
        assertEquals(counters.kvm_eoi <= counters.kvm_inj_virq, true);
      }
      // kvm_pv_eoi counts what was skipped, and what is left of kvm_apic and kvm_msr are the others.
      assertEquals(before.kvm_pv_eoi, undefined);
      assertEquals([before.kvm_apic, before.kvm_msr], [before.kvm_eoi, before.kvm_eoi]);
      assertEquals(after.kvm_pv_eoi > 0.99 * interrupts, true);
      assertEquals(after.kvm_pv_eoi + (after.kvm_apic ?? 0), after.kvm_eoi);
      assertEquals((after.kvm_apic ?? 0) < 0.01 * interrupts, true);
      assertEquals(after.kvm_msr, after.kvm_apic);
      // Each EOI that was skipped is an exit that was, and nothing else changed by much.
      const saved = runs[0].counters.kvm_exit - runs[1].counters.kvm_exit;
      assertEquals(Math.abs(saved - after.kvm_pv_eoi) < 0.01 * interrupts, true);
      // Nobody went to user space, and every exit was followed by an entry.
      for (const counters of [before, after]) {
        assertEquals(counters.kvm_userspace_exit, undefined);
        assertEquals(Math.abs(counters.kvm_exit - counters.kvm_entry) <= 1, true);
      }
    });
  }

  it("is measured over a second, whatever the load", () => {
    for (const given of [{}, { interrupts: 1, pio: 0 }, { interrupts: 100_000, pio: 50_000 }]) {
      const { runs } = ran("pv-eoi", given);
      assertEquals(runs.map(({ cycles }) => cycles), [2.5e9, 2.5e9]); // 2.5 GHz.
    }
  });

  it("rings the doorbell as often as it is told to", () => {
    for (const pio of [0, 1, 1000, 3174]) {
      for (const { counters } of ran("pv-eoi", { interrupts: 100, pio }).runs) {
        const rings = counters.kvm_pio ?? 0;
        assertEquals(rings <= pio && rings >= pio - 1, true, `${rings} of ${pio}`);
      }
    }
  });

  it("counts one processor's interrupts, however many others sleep", () => {
    const alone = ran("pv-eoi", { interrupts: 300, pio: 0 });
    const among = ran("pv-eoi", { interrupts: 300, pio: 0, vcpus: 8 });
    assertEquals(among.runs.map(({ counters }) => counters), alone.runs.map(({ counters }) => counters));
  });
});

describe("PV IPIs, 2018", () => {
  for (const backend of BACKENDS) {
    it(`a broadcast to 80 is 79 sends, 5, or one: ${backend}`, () => {
      const result = ran("pv-ipi", { times: 3 }, backend);
      assertEquals([result.guestSemantics, result.hostSemantics], ["2018", "2018"]);
      const sends = (setup: string, test: string): readonly number[] => {
        const { figures } = result.runs.find(({ name }) => name === `${setup}/${test}`)!;
        return [figures.icrWritesPerOperation, figures.hypercallsPerOperation];
      };
      for (const test of ["broadcast-ipi", "broadcast-lock"]) {
        assertEquals(sends("x2apic-physical/vanilla", test), [79, 0]);
        assertEquals(sends("x2apic-cluster/vanilla", test), [5, 0]); // 80 processors are 5 clusters of 16.
        assertEquals(sends("xapic/vanilla", test), [79, 0]);
        for (const apic of ["x2apic-physical", "x2apic-cluster", "xapic"]) {
          assertEquals(sends(`${apic}/pv-ipi`, test), [0, 1]);
        }
        assertEquals(sends("today, x2apic-physical/pv-ipi", test), [1, 0]);
      }
      for (const { name, figures, counters } of result.runs) {
        const test = name.slice(name.lastIndexOf("/") + 1);
        const ways = [figures.icrWritesPerOperation, figures.hypercallsPerOperation];
        // A call of nobody and one of oneself send nothing; one other processor is one ICR write everywhere.
        if (test === "dry-run" || test === "self-ipi") assertEquals(ways, [0, 0]);
        if (test === "normal-ipi") assertEquals(ways, [1, 0]);
        // Whatever was sent arrived, once.
        const targets = test.startsWith("broadcast") ? 79 : test === "normal-ipi" ? 1 : 0;
        assertEquals(counters.kvm_apic_accept_irq ?? 0, 3 * targets);
        assertEquals(counters.kvm_inj_virq ?? 0, 3 * targets);
      }
    });

    it(`the sends are exits of the sender: ${backend}`, () => {
      const result = ran("pv-ipi", { times: 3 }, backend);
      const exits = (setup: string): Readonly<Record<string, number>> =>
        result.runs.find(({ name }) => name === `${setup}/broadcast-ipi`)!.exits;
      const [msr, hypercall] = backend === "vmx" ? ["MSR_WRITE", "VMCALL"] : ["msr", "hypercall"];
      assertEquals(exits("x2apic-physical/vanilla")[msr], 3 * 79);
      assertEquals(exits("x2apic-cluster/vanilla")[msr], 3 * 5);
      assertEquals([exits("x2apic-physical/pv-ipi")[msr], exits("x2apic-physical/pv-ipi")[hypercall]], [
        undefined,
        3,
      ]);
      assertEquals(exits("today, x2apic-physical/pv-ipi")[msr], 3);
    });
  }

  it("the modes rank as published: physical, cluster, PV", () => {
    const { runs } = ran("pv-ipi", {});
    const time = (setup: string): number =>
      runs.find(({ name }) => name === `${setup}/broadcast-ipi`)!.figures.nanosecondsPerOperation;
    const times = ["x2apic-physical/vanilla", "x2apic-cluster/vanilla", "x2apic-cluster/pv-ipi"].map(time);
    assertEquals(times, times.toSorted((a, b) => b - a));
  });

  it("the numbers of processors decide how many windows and clusters there are", () => {
    for (const [vcpus, clusters, windows] of [[17, 2, 1], [128, 8, 1], [130, 9, 2], [300, 19, 3]] as const) {
      const { runs, published } = ran("pv-ipi", { vcpus, times: 1 });
      assertStrictEquals(published, null); // The published figures are for 80.
      const figures = (setup: string): Readonly<Record<string, number>> | undefined =>
        runs.find(({ name }) => name === `${setup}/broadcast-ipi`)?.figures;
      assertEquals(figures("x2apic-physical/vanilla")!.icrWritesPerOperation, vcpus - 1);
      assertEquals(figures("x2apic-cluster/vanilla")!.icrWritesPerOperation, clusters);
      assertEquals(figures("x2apic-physical/pv-ipi")!.hypercallsPerOperation, windows);
      assertEquals(figures("xapic/vanilla") === undefined, vcpus > 255);
    }
  });

  it("two processors are a broadcast to one: an IPI like any other, without the hypercall", () => {
    for (const { name, figures } of ran("pv-ipi", { vcpus: 2, times: 1 }).runs) {
      assertEquals(figures.hypercallsPerOperation, 0);
      if (/broadcast/.test(name)) assertEquals(figures.icrWritesPerOperation, 1);
    }
  });
});

describe("an experiment refuses", () => {
  const experiment: Experiment = experimentNamed("pv-ipi");
  const refused = (backend: string, given: Record<string, number>, text: string): void =>
    void assertThrows(() => experimentOptions(experiment, backend, given), RangeError, text);

  it("a name that it does not have", () => {
    assertThrows(
      () => experimentNamed("pv-spinlock"),
      RangeError,
      "Cannot run experiment pv-spinlock: allowed are",
    );
    refused("vmx", { pio: 1 }, "Cannot tell pv-ipi pio: allowed are vcpus, seed, times");
    refused("arm", {}, "Cannot run pv-ipi on backend arm: allowed are vmx, svm");
    refused("toString", {}, "Cannot run pv-ipi on backend toString");
  });

  it("a number that is out of its range, or none", () => {
    for (const vcpus of [1, 0, -1, 1025, 2.5, NaN, Infinity, 2 ** 60]) {
      refused("vmx", { vcpus }, `Cannot run pv-ipi with vcpus ${vcpus}: allowed are 2 to 1024`);
    }
    refused("svm", { seed: -1 }, "Cannot run pv-ipi with seed -1: allowed are 0 to 9007199254740991");
  });

  it("nothing that is allowed, and fills in what is not said", () => {
    assertEquals(experimentOptions(experiment, "svm", { seed: 2 ** 53 - 1 }), {
      vcpus: 80,
      seed: 2 ** 53 - 1,
      times: 20,
      backend: "svm",
    });
  });
});
