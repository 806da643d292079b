import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { command } from "../../lab/cli.ts";
import { ACCELERATIONS, BACKENDS } from "../../host/mod.ts";
import { type ExplainedMachine, explanationText } from "../../lab/mod.ts";

function text(...args: string[]): string {
  const { out, err, code } = command(["explain", ...args], 100);
  assertEquals([err, code], ["", 0]);
  return out;
}

function machines(...args: string[]): ExplainedMachine[] {
  return JSON.parse(text(...args, "--json")).machines;
}

function refused(...args: string[]): string {
  const { out, err, code } = command(["explain", ...args], 80);
  assertEquals([out, code], ["", 2]);
  assertEquals(err.split("\n").length, 1);
  return err;
}

/** What a machine says of a path. */
function why(machine: ExplainedMachine, path: string): string {
  const rows = machine.explanations.filter((row) => row.path === path);
  return rows.map((row) => `${row.inUse ? "yes" : "no"}: ${row.why}`).join(" | ");
}

describe("explain", () => {
  it("boots a machine of today with all that its vendor's processors have", () => {
    for (const backend of BACKENDS) {
      const [machine, ...others] = machines("--backend", backend);
      assertEquals(others, []);
      const { name, acceleration, hostSemantics, vcpus } = machine;
      assertEquals([machine.backend, acceleration], [backend, ACCELERATIONS[backend].at(-1)!]);
      assertEquals([name, hostSemantics, vcpus], ["x2apic-physical guest of v6.19", "v6.19", 2]);
      for (const row of machine.explanations) assertEquals(row.vcpus, [0, 1]);
      const path = backend === "vmx" ? "IPI virtualization" : "x2AVIC";
      assertMatch(why(machine, path), /^yes: /);
    }
  });

  it("puts a machine together as it is told", () => {
    const [off] = machines("--acceleration", "ipiv", "--ipiv", "off");
    assertEquals(why(off, "IPI virtualization"), "no: module parameter enable_ipiv is off");
    const [without] = machines("--apicv", "off", "--backend", "svm");
    assertEquals(why(without, "AVIC"), "no: module parameter avic is off");
    const [xapic] = machines("--apic", "xapic", "--host", "2021", "--vcpus", "1");
    assertEquals(why(xapic, "x2APIC virtualization"), "no: the local APIC is in xAPIC mode");
    assertEquals([xapic.hostSemantics, xapic.vcpus], ["2021", 1]);
    const [old] = machines("--guest", "2012", "--acceleration", "none");
    assertEquals(old.name, "x2apic-physical guest of 2012");
    const [large] = machines("--backend", "svm", "--vcpus", "520");
    assertMatch(why(large, "AVIC"), /^no: inhibited by PHYSICAL_ID_TOO_BIG/);
  });

  it("asks each machine of an experiment, with the experiment's options", () => {
    const found = machines("ipiv", "--times", "1", "--acceleration", "apicv");
    assertEquals(found.map(({ name }) => name), ["xapic/apicv", "x2apic/apicv"]);
    assertEquals(found.map((machine) => why(machine, "ICR fast path")), [
      "no: the local APIC is in xAPIC mode",
      "yes: for one fixed IPI to one physical ID",
    ]);
    const eoi = machines("pv-eoi", "--interrupts", "10", "--pio", "1");
    assertEquals(eoi.map(({ name }) => name), ["without PV EOI", "with PV EOI"]);
    assertEquals(why(eoi[0], "PV EOI"), "no: the guest has not enabled it");
    assertMatch(why(eoi[1], "PV EOI"), /^yes: /);
  });

  it("prints one object as JSON", () => {
    const ofOne = JSON.parse(text("--json"));
    assertEquals(Object.keys(ofOne), ["experiment", "machines"]);
    assertEquals(ofOne.experiment, null);
    assertEquals(JSON.parse(text("pv-eoi", "--json")).experiment, "pv-eoi");
    for (const row of ofOne.machines[0].explanations) {
      assertEquals(Object.keys(row).toSorted(), ["inUse", "path", "vcpus", "why"]);
    }
  });

  it("says once what several machines say alike", () => {
    const out = text("avic-kick", "--vcpus", "8", "--times", "1", "--kick", "slow");
    assertMatch(out, /^slow\/2, slow\/4, slow\/8: svm with x2avic, host of 2022\n/);
    assertEquals(out.split("\n\n").length, 1);
    // Six setups of 2018, of which neither the APIC's destinations nor the guest's drivers matter to the host.
    const ipi = text("pv-ipi", "--vcpus", "3", "--times", "1");
    assertStringIncludes(ipi, "x2apic-cluster/vanilla, x2apic-cluster/pv-ipi, x2apic-physical/vanilla");
  });

  it("has a line a path that tells whether it is in use, and why", () => {
    const lines = text("--acceleration", "apicv").split("\n");
    assertEquals(lines[0], "x2apic-physical guest of v6.19: vmx with apicv, host of v6.19");
    assertEquals(lines.filter((line) => line.startsWith("APICv ")), [
      "APICv                   yes  nothing inhibits it",
    ]);
    assertEquals(lines.filter((line) => line.startsWith("PV EOI ")), [
      "PV EOI                  no   APICv ends interrupts: it is never armed",
    ]);
  });

  it("fits any terminal", () => {
    for (const columns of [40, 60, 80]) {
      const { out } = command(["explain", "--backend", "svm"], columns);
      for (const line of out.split("\n").slice(1)) assertEquals(line.length <= columns, true, line);
    }
  });
});

describe("explain refuses, in one line that names what is allowed,", () => {
  it("machines that cannot be", () => {
    assertEquals(
      refused("--acceleration", "avic"),
      "Cannot build a vmx processor with avic: allowed are none, apicv, ipiv",
    );
    assertEquals(
      refused("--acceleration", "posted"),
      "Cannot explain a machine with acceleration posted: allowed are most, none, apicv, ipiv, avic, x2avic",
    );
    assertEquals(
      refused("--host", "2013"),
      "Cannot explain a machine with host 2013: allowed are 2012, 2018, 2021, 2022, v6.19",
    );
    assertEquals(
      refused("--guest", "toString"),
      "Cannot explain a machine with guest toString: allowed are 2012, 2018, 2021, 2022, v6.19",
    );
    assertEquals(refused("--backend", "arm"), "Cannot explain backend arm: allowed are vmx, svm");
    assertEquals(refused("--vcpus", "0"), "Cannot explain a machine with vcpus 0: allowed are 1 to 1024");
    assertEquals(refused("--vcpus", "two"), 'Cannot use "two" for --vcpus: allowed are 1 to 1024');
    assertEquals(refused("--apicv", "yes"), "Cannot explain a machine with apicv yes: allowed are on, off");
    assertEquals(
      refused("--apic", "xapic", "--vcpus", "300"),
      "Cannot drive APIC ID 255 with xapic: allowed are 0 to 254",
    );
  });

  it("options that it does not have, or an experiment has not", () => {
    assertEquals(
      refused("--trace", "file"),
      "Cannot explain a machine: Unknown option '--trace'; allowed are --vcpus, --acceleration, --host, --guest, " +
        "--apic, --apicv, --ipiv, --backend, --json",
    );
    assertEquals(
      refused("pv-ipi", "--host", "2012"),
      "Cannot explain pv-ipi: Unknown option '--host'; allowed are --vcpus, --seed, --times, --backend, --json",
    );
    assertEquals(
      refused("avic-kick", "--backend", "vmx"),
      "Cannot run avic-kick on backend vmx: allowed are svm",
    );
    assertMatch(refused("pv-tlb"), /^Cannot run experiment pv-tlb: allowed are /);
    assertMatch(refused("--json=no"), /does not take an argument; allowed are /);
  });
});

describe("explanations as text", () => {
  const ROW = { path: "PV EOI", inUse: true, why: "enabled" };

  it("name the vCPUs that an answer is for, unless it is for all", () => {
    const line = (vcpus: number[], all: number): string => explanationText([{ ...ROW, vcpus }], all, 80);
    assertEquals(line([0, 1, 2], 3), "PV EOI  yes  enabled");
    assertEquals(line([1], 3), "PV EOI  yes  vCPU 1: enabled");
    assertEquals(line([0, 1], 3), "PV EOI  yes  vCPUs 0-1: enabled");
    assertEquals(line([0, 2, 3, 4, 7], 9), "PV EOI  yes  vCPUs 0, 2-4, 7: enabled");
  });

  it("lose no word at any width, and keep within it", () => {
    const words = fc.array(fc.stringMatching(/^[a-z]{1,10}$/), { minLength: 1, maxLength: 20 });
    fc.assert(fc.property(words, fc.integer({ min: 20, max: 100 }), fc.boolean(), (words, width, inUse) => {
      const found = explanationText([{ path: "a path", inUse, why: words.join(" "), vcpus: [0] }], 1, width);
      for (const line of found.split("\n")) assertEquals(line.length <= width, true, line);
      assertEquals(found.split(/\s+/), ["a", "path", inUse ? "yes" : "no", ...words]);
    }));
  });

  it("of nothing are nothing", () => assertEquals(explanationText([], 1, 80), ""));
});
