import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import eoi from "../../lab/published/pv_eoi_2012.json" with { type: "json" };
import ipi from "../../lab/published/pv_ipi_2018.json" with { type: "json" };
import ipiv from "../../lab/published/ipiv_2021.json" with { type: "json" };
import { ROWS_OF_2012 } from "../../lab/mod.ts";

// Excerpts of the sources, as they print them.

/** [PATCHv4 1/5] kvm_para: guest side for eoi avoidance, 16 May 2012: "Before" and "After". */
const BEFORE = `
47,357 kvm:kvm_entry [99.98%]
0 kvm:kvm_hypercall [99.98%]
0 kvm:kvm_hv_hypercall [99.98%]
5,001 kvm:kvm_pio [99.98%]
0 kvm:kvm_cpuid [99.98%]
22,124 kvm:kvm_apic [99.98%]
49,849 kvm:kvm_exit [99.98%]
21,115 kvm:kvm_inj_virq [99.98%]
22,937 kvm:kvm_msr [99.98%]
22,207 kvm:kvm_apic_accept_irq [99.98%]
22,421 kvm:kvm_eoi [99.98%]
0 kvm:kvm_pv_eoi [99.99%]
57 kvm:kvm_emulate_insn [99.99%]
0 kvm:vcpu_match_mmio [99.99%]
2 kvm:kvm_ioapic_set_irq [99.99%]
23,609 kvm:kvm_msi_set_irq [99.99%]
131 kvm:kvm_mmio [99.99%]
226 kvm:kvm_fpu [100.00%]
0 kvm:kvm_async_pf_completed`;
const AFTER = `
28,354 kvm:kvm_entry [99.98%]
1,347 kvm:kvm_pio [99.98%]
1,931 kvm:kvm_apic [99.98%]
29,595 kvm:kvm_exit [99.98%]
24,884 kvm:kvm_inj_virq [99.98%]
1,986 kvm:kvm_msr [99.98%]
25,953 kvm:kvm_apic_accept_irq [99.98%]
26,132 kvm:kvm_eoi [99.98%]
26,593 kvm:kvm_pv_eoi [99.99%]
284 kvm:kvm_emulate_insn [99.99%]
68 kvm:vcpu_match_mmio [99.99%]
68 kvm:kvm_userspace_exit [99.99%]
2 kvm:kvm_set_irq [99.99%]
28,288 kvm:kvm_msi_set_irq [99.99%]
1 kvm:kvm_ack_irq [99.99%]
131 kvm:kvm_mmio [100.00%]
588 kvm:kvm_fpu [100.00%]
0 kvm:kvm_async_pf_completed`;

/** Commit 4180bf1b655a, 2018: the tables of its message, of 100,000 times each. */
const IPI = `
x2apic cluster mode, vanilla
Dry-run: 0, 2392199 ns
Self-IPI: 6907514, 15027589 ns
Normal IPI: 223910476, 251301666 ns
Broadcast IPI: 0, 9282161150 ns
Broadcast lock: 0, 8812934104 ns
x2apic cluster mode, pv-ipi
Dry-run: 0, 2449341 ns
Self-IPI: 6720360, 15028732 ns
Normal IPI: 228643307, 255708477 ns
Broadcast IPI: 0, 7572293590 ns => 22% performance boost
Broadcast lock: 0, 8316124651 ns
x2apic physical mode, vanilla
Dry-run: 0, 3135933 ns
Self-IPI: 8572670, 17901757 ns
Normal IPI: 226444334, 255421709 ns
Broadcast IPI: 0, 19845070887 ns
Broadcast lock: 0, 19827383656 ns
x2apic physical mode, pv-ipi
Dry-run: 0, 2446381 ns
Self-IPI: 6788217, 15021056 ns
Normal IPI: 219454441, 249583458 ns
Broadcast IPI: 0, 7806540019 ns => 154% performance boost
Broadcast lock: 0, 9143618799 ns`;

/** [PATCH 0/6] IPI virtualization support for VM, 16 July 2021: "Cycles of IPI". */
const IPIV = `
1 6106 4816 4265 3768
2 6244 4656 4404 3546
3 6165 4658 4233 3474
4 5992 4710 4363 3430
5 6083 4741 4215 3551
6 6238 4904 4304 3547
7 6164 4617 4263 3709
8 5984 4763 4518 3779
9 5931 4712 4645 3667
10 5955 4530 4332 3724
11 5897 4673 4283 3569
12 6140 4794 4178 3598
13 6183 4728 4363 3628
14 5991 4994 4509 3842
15 5866 4665 4520 3739
16 6032 4654 4229 3701
17 6050 4653 4185 3726
18 6004 4792 4319 3746
19 5961 4626 4196 3392
20 6194 4576 4433 3760
Average cycles 6059 4713.1 4337.85 3644.8
%Reduction -22.21% -15.98%`;

function number(text: string): number {
  return Number(text.replaceAll(",", ""));
}

describe("the published figures are those of their source", () => {
  for (const [name, excerpt, column] of [["before", BEFORE, 1], ["after", AFTER, 2]] as const) {
    it(`2012, ${name} PV EOI`, () => {
      const lines = excerpt.trim().split("\n");
      for (const line of lines) {
        const [, count, event] = /^([\d,]+) kvm:(\w+)/.exec(line)!;
        assertEquals(eoi.rows.find(([row]) => row === event)?.[column], number(count), event);
      }
    });
  }

  it("2012 has all 39 rows, each once, in the patch's order", () => {
    const names = eoi.rows.map(([name]) => name);
    assertEquals([names.length, new Set(names).size], [39, 39]);
    // The excerpts are in that order too.
    for (const excerpt of [BEFORE, AFTER]) {
      const printed = [...excerpt.matchAll(/kvm:(\w+)/g)].map(([, name]) => name);
      assertEquals(printed, names.filter((name) => printed.includes(String(name))));
    }
  });

  it("2012's ratios are those that its file speaks of", () => {
    const of = (event: string, column: 1 | 2): number =>
      Number(eoi.rows.find(([row]) => row === event)![column]);
    const ratio = (column: 1 | 2): number =>
      (of("kvm_exit", column) - of("kvm_pio", column)) / of("kvm_inj_virq", column);
    assertEquals([ratio(1).toFixed(2), ratio(2).toFixed(2)], ["2.12", "1.14"]);
    const { before, after } = eoi.tolerance.exitsPerInterrupt;
    assertEquals([
      before[0] <= ratio(1) && ratio(1) <= before[1],
      after[0] <= ratio(2) && ratio(2) <= after[1],
    ], [
      true,
      true,
    ]);
  });

  it("2018", () => {
    const tests = ["dry-run", "self-ipi", "normal-ipi", "broadcast-ipi", "broadcast-lock"];
    const setups: Record<string, Record<string, number[]>> = {};
    let setup = "";
    for (const line of IPI.trim().split("\n")) {
      const mode = /^x2apic (\w+) mode, (.+)$/.exec(line);
      if (mode !== null) {
        setup = `x2apic-${mode[1]}/${mode[2]}`;
        setups[setup] = {};
        continue;
      }
      const [, name, delivery, total] = /^([\w -]+): (\d+), (\d+) ns/.exec(line)!;
      setups[setup][name.toLowerCase().replace(" ", "-")] = [number(delivery), number(total)];
    }
    assertEquals(ipi.rows as unknown, setups);
    for (const rows of Object.values(setups)) assertEquals(Object.keys(rows), tests);
    assertEquals(ipi.times, 100_000);
  });

  it("2018's boosts follow from its totals", () => {
    const boost = (mode: "x2apic-cluster" | "x2apic-physical"): number =>
      ipi.rows[`${mode}/vanilla`]["broadcast-ipi"][1] / ipi.rows[`${mode}/pv-ipi`]["broadcast-ipi"][1] - 1;
    assertEquals(Math.floor(100 * boost("x2apic-cluster")), 22);
    assertEquals(Math.floor(100 * boost("x2apic-physical")), 154);
  });

  it("2021, with averages and reductions that follow from its rows", () => {
    const lines = IPIV.trim().split("\n");
    const rows = lines.slice(0, 20).map((line) => line.split(" ").slice(1).map(Number));
    assertEquals(ipiv.rows, rows);
    assertEquals(ipiv.columns, ["xapic/apicv", "xapic/ipiv", "x2apic/apicv", "x2apic/ipiv"]);
    assertEquals(ipiv.averages, lines[20].split(" ").slice(2).map(Number));
    const averages = ipiv.columns.map((_, n) => rows.reduce((sum, row) => sum + row[n], 0) / 20);
    assertEquals(ipiv.averages, averages);
    const percent = (without: number, by: number): string => `${(100 * (by / without - 1)).toFixed(2)}%`;
    const { xapic, x2apic } = ipiv.reductions;
    const reductions = [percent(averages[0], averages[1]), percent(averages[2], averages[3])];
    assertEquals(reductions, lines[21].split(" ").slice(1));
    assertEquals([`${xapic}%`, `${x2apic}%`], reductions);
  });

  it("each has its source, and says what may be compared with it", () => {
    for (const file of [eoi, ipi, ipiv]) {
      for (const text of [file.title, file.source, file.note, file.tolerance.why]) {
        assertEquals(text.length > 20, true);
      }
    }
  });
});

describe("the rows of 2012", () => {
  it("are counted by the tracepoints of today that have the same name", () => {
    const published = new Set(eoi.rows.map(([name]) => name));
    for (const [today, row] of Object.entries(ROWS_OF_2012)) {
      assertEquals([today, published.has(row)], [row, true]);
    }
  });

  it("do not include what came later", () => {
    for (const later of ["kvm_halt_poll_ns", "kvm_vcpu_wakeup"]) assertEquals(ROWS_OF_2012[later], undefined);
  });

  it("that this host has no tracepoint for are those of features that it does not model", () => {
    const modelled = new Set(Object.values(ROWS_OF_2012));
    const missing = eoi.rows.map(([name]) => String(name)).filter((name) => !modelled.has(name));
    assertEquals(missing, [
      "kvm_hv_hypercall",
      "kvm_pic_set_irq",
      "kvm_nested_vmrun",
      "kvm_nested_intercepts",
      "kvm_nested_vmexit",
      "kvm_nested_vmexit_inject",
      "kvm_nested_intr_vmexit",
      "kvm_invlpga",
      "kvm_skinit",
      "kvm_age_page",
      "kvm_try_async_get_page",
      "kvm_async_pf_doublefault",
      "kvm_async_pf_not_present",
      "kvm_async_pf_ready",
      "kvm_async_pf_completed",
    ]);
  });
});
