import { assertEquals, assertNotMatch, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { KernelRig } from "../support/kernels.ts";
import {
  experimentNamed,
  experimentOptions,
  EXPERIMENTS,
  fileBytes,
  grouped,
  perfStat,
  perfStatBeside,
  Stopwatch,
  table,
  traceText,
  wrapped,
} from "../../lab/mod.ts";

describe("a table", () => {
  const HEAD = ["name", "one", "two"];
  const ROWS = [["first", "1", "22"], ["of two", "333", ""]];

  it("has its first column on the left and the others on the right, under a line", () => {
    assertEquals(table(HEAD, ROWS, 80).split("\n"), [
      "name    one  two",
      "----------------",
      "first     1   22",
      "of two  333",
    ]);
  });

  it("takes a row of one cell for a heading, whose width does not count", () => {
    const rows = [["a heading that is longer than the table"], ...ROWS];
    assertEquals(table(HEAD, rows, 16).split("\n").slice(1, 4), [
      "----------------",
      "a heading that is longer than the table",
      "first     1   22",
    ]);
  });

  it("is folded where it is too wide: each row is a paragraph, in which empty cells are left out", () => {
    assertEquals(table(HEAD, [["heading"], ["  first", "1", "22"], ["of two", "333", ""]], 10).split("\n"), [
      "heading",
      "  first",
      "    one: 1",
      "    two: 22",
      "of two",
      "  one: 333",
    ]);
  });

  it("is folded one column below its width, not at it", () => {
    assertEquals(table(HEAD, ROWS, 16).split("\n").length, 4);
    assertEquals(table(HEAD, ROWS, 15).split("\n").length, 5);
  });

  it("loses no cell at any width, and is no wider than it may be", () => {
    const cell = fc.stringMatching(/^[a-z]{1,8}$/);
    fc.assert(fc.property(
      fc.array(fc.array(cell, { minLength: 4, maxLength: 4 }), { minLength: 1, maxLength: 8 }),
      fc.integer({ min: 30, max: 90 }),
      (rows, width) => {
        const text = table(["a", "b", "c", "d"], rows, width);
        for (const row of rows) for (const one of row) assertStringIncludes(text, one);
        for (const line of text.split("\n")) assertEquals(line.length <= width, true);
      },
    ));
  });

  it("without rows is its head", () => {
    assertEquals(table(["a", "b"], [], 80), "a  b\n----");
  });
});

describe("text", () => {
  it("is wrapped at spaces; a word that is too long stands alone", () => {
    assertEquals(wrapped("one two  three\nfour", 8), "one two\nthree\nfour");
    assertEquals(wrapped("a incomprehensible b", 5), "a\nincomprehensible\nb");
    assertEquals(wrapped("", 10), "");
  });

  it("has its numbers grouped by thousands", () => {
    assertEquals([grouped(0), grouped(999), grouped(21995), grouped(1e9)], [
      "0",
      "999",
      "21,995",
      "1,000,000,000",
    ]);
    assertEquals([grouped(2.144169, 2), grouped(1, 1), grouped(1234.56, 1)], ["2.14", "1.0", "1,234.6"]);
  });
});

describe("perf stat", () => {
  it("prints tracepoints under their names, in the order of the table of 2012, without those that are 0", () => {
    const text = perfStat([
      { title: "x", counters: { kvm_exit: 12345, kvm_entry: 12345 } },
      { title: "y", counters: { kvm_exit: 3, kvm_vcpu_wakeup: 1 } },
    ], 80);
    assertEquals(text.split("\n"), [
      "                          x  y",
      "------------------------------",
      "kvm:kvm_entry        12,345  0",
      "kvm:kvm_exit         12,345  3",
      "kvm:kvm_vcpu_wakeup       0  1",
    ]);
  });

  it("stands beside published rows, in their order; a dash is a tracepoint that this host does not have", () => {
    const text = perfStatBeside(
      [{ title: "now", counters: { kvm_exit: 7, kvm_vcpu_wakeup: 1 } }],
      {
        titles: ["before", "after"],
        rows: [["kvm_age_page", 0, 2], ["kvm_exit", 49849, 29595], ["kvm_pio", 0, 0], ["kvm_skinit", 0, 0]],
      },
      80,
    );
    assertEquals(text.split("\n"), [
      "                  now  before   after",
      "-------------------------------------",
      "kvm:kvm_age_page    -       0       2",
      "kvm:kvm_exit        7  49,849  29,595",
    ]);
  });
});

describe("a stopwatch", () => {
  it("tells what happened since it was started, and leaves out what did not", () => {
    const rig = new KernelRig();
    const watch = new Stopwatch(rig.vm);
    rig.run(function* (cpu) {
      watch.restart();
      assertEquals(watch.lap(), { counters: {}, exits: {}, cycles: 0 });
      yield cpu.cpuid(0);
      yield cpu.cpuid(0);
      const { counters, exits, cycles } = watch.lap();
      assertEquals([counters, exits], [
        { kvm_entry: 2, kvm_cpuid: 2, kvm_exit: 2 },
        { CPUID: 2 },
      ]);
      assertEquals(cycles > 0, true);
      yield cpu.cpuid(0);
      assertEquals(watch.lap().counters.kvm_cpuid, 3); // Looking does not start it again.
    });
  });
});

describe("a trace as text", () => {
  it("has a line an event under its title", () => {
    const rig = new KernelRig().run(function* (cpu) {
      yield cpu.cpuid(0x4000_0000);
    });
    const lines = traceText("a run", rig.vm).trimEnd().split("\n");
    assertEquals(lines[0], "# a run: vCPU, time in cycles, event");
    assertEquals(lines.length, 1 + [...rig.vm.tracer.records()].length);
    assertEquals(
      lines.filter((line) => /vcpu0 +\d+: kvm_exit: reason CPUID rip 0x/.test(line)).length > 0,
      true,
    );
  });

  it("says how much was overwritten", () => {
    const rig = new KernelRig({ vm: { trace: 10 } }).run();
    const lines = traceText("a run", rig.vm).trimEnd().split("\n");
    assertEquals(lines[1], `# ${rig.vm.tracer.lost} earlier records were overwritten`);
    assertEquals(lines.length, 2 + 10);
  });

  it("is a file of its bytes, compressed where the name says so", async () => {
    const text = "kvm_exit\n".repeat(10_000);
    assertEquals(await fileBytes("trace.txt", text), new TextEncoder().encode(text));
    const packed = await fileBytes("trace.txt.gz", text);
    assertEquals(packed.length < 1000, true);
    const plain = new Response(packed.slice()).body!.pipeThrough(new DecompressionStream("gzip"));
    assertEquals(await new Response(plain).text(), text);
  });
});

/** Few operations, and few boots; PV IPIs have a table for 80 vCPUs alone. */
const SMALL: Readonly<Record<string, Record<string, number>>> = {
  "pv-eoi": { interrupts: 500, pio: 100 },
  "avic-kick": { times: 1, vcpus: 40 },
  "demand-paging": { pages: 20 },
  "tlb-shootdown": { times: 2, vcpus: 4 },
  hypercalls: {},
};

describe("an experiment's report", () => {
  for (const experiment of EXPERIMENTS) {
    const small = SMALL[experiment.name] ?? { times: 1 };
    const result = experiment.run(experimentOptions(experiment, experiment.backends[0], small));

    it(`fits into 80 columns: ${experiment.name}`, () => {
      for (const line of experiment.report(result, 80).split("\n")) {
        assertEquals(line.length <= 80, true, line);
      }
    });

    it(`is folded into 60, without losing a figure: ${experiment.name}`, () => {
      const wide = experiment.report(result, 200);
      const narrow = experiment.report(result, 60);
      for (const line of narrow.split("\n")) assertEquals(line.length <= 60, true, line);
      for (const figure of wide.matchAll(/\d[\d,.]*/g)) {
        assertStringIncludes(narrow, figure[0].replace(/[,.]$/, ""));
      }
    });

    it(`is text for people: ${experiment.name}`, () => {
      assertNotMatch(experiment.report(result, 100), /NaN|undefined|null|Infinity|\[object/);
    });
  }

  it("of PV EOI has the published table beside what was counted, and its ratios", () => {
    const experiment = experimentNamed("pv-eoi");
    const text = experiment.report(experiment.run(experimentOptions(experiment, "svm", {})), 100);
    const row = (name: string): string[] =>
      text.split("\n").find((line) => line.startsWith(name))!.trim().split(/ {2,}/);
    assertEquals(row("kvm:kvm_exit").slice(3), ["49,849", "29,595"]);
    assertEquals(row("kvm:kvm_pv_eoi").slice(3), ["0", "26,593"]);
    assertEquals(row("all").slice(3), ["2.36", "1.19"]); // 49,849 / 21,115 and 29,595 / 24,884
    assertEquals(row("port accesses aside").slice(3), ["2.12", "1.14"]);
    assertStringIncludes(text, "svm");
  });

  it("of PV IPIs names each setup once, with its years", () => {
    const experiment = experimentNamed("pv-ipi");
    const options = experimentOptions(experiment, "vmx", { times: 1 });
    const headings = experiment.report(experiment.run(options), 100).split("\n").filter((line) =>
      /\(guest/.test(line)
    );
    assertEquals(headings, [
      ...["x2apic-cluster", "x2apic-physical", "xapic"].flatMap((apic) => [
        `${apic}/vanilla (guest 2018, host 2018)`,
        `${apic}/pv-ipi (guest 2018, host 2018)`,
      ]),
      "today, x2apic-physical/pv-ipi (guest v6.19, host v6.19)",
    ]);
  });

  it("of PV IPIs speaks of published figures only where there are some", () => {
    const experiment = experimentNamed("pv-ipi");
    const report = (vcpus: number): string =>
      experiment.report(experiment.run(experimentOptions(experiment, "vmx", { vcpus, times: 1 })), 100);
    assertStringIncludes(report(80), "as published");
    assertNotMatch(report(8), /publish|80 processors|beside/);
  });
});
