import { assertEquals, assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import * as abi from "../../../abi/mod.ts";
import { highOf, lowOf, VMX_CONTROLS, VMX_FEATURES } from "../../../abi/mod.ts";
import { VMX_PROCESSORS, VmxCapabilities, type VmxProcessor } from "../../../host/mod.ts";

const PROCESSORS = Object.keys(VMX_PROCESSORS) as VmxProcessor[];
const WORDS = ["pin", "primary", "secondary", "exit", "entry"] as const;

/** Any list of control features, with what each needs. */
const features = fc.subarray([
  ...[
    "vnmi",
    "preemption_timer",
    "posted_intr",
    "invvpid",
    "vtpr",
    "mtf",
    "vapic",
    "vpid",
    "vapic_reg",
    "vid",
  ],
  ...["ple", "virtual_x2apic", "rdtscp", "invpcid", "tsc_scaling", "ipi_virt", "wbinvd_exiting", "xsaves"],
]);

describe("a processor's capability MSRs", () => {
  it("say of each control whether it can be set, as the list of features does", () => {
    fc.assert(fc.property(features, (list) => {
      const processor = new VmxCapabilities([...list, "ept"]);
      const msrs = {
        pin: abi.IA32_VMX_PINBASED_CTLS,
        primary: abi.IA32_VMX_PROCBASED_CTLS,
        secondary: abi.IA32_VMX_PROCBASED_CTLS2,
      };
      for (const [word, msr] of Object.entries(msrs) as ["pin", number][]) {
        const allowed1 = highOf(processor.read(msr)!);
        for (const { feature, mask } of VMX_CONTROLS[word]) {
          // Controls of the default1 class can be set anyhow: CR3 exiting is every processor's.
          assertEquals((allowed1 & mask) !== 0, processor.has(feature!), feature);
        }
      }
      const tertiary = processor.read(abi.IA32_VMX_PROCBASED_CTLS3);
      assertEquals(tertiary, list.includes("ipi_virt") ? 0x10n : undefined);
      assertEquals(
        processor.has("apicv"),
        ["vtpr", "vapic_reg", "vid", "posted_intr"].every(processor.has, processor),
      );
    }));
  });

  it("have the default1 class where nobody knows better (SDM 3D A.2)", () => {
    const processor = new VmxCapabilities("ipiv");
    assertEquals(lowOf(processor.read(abi.IA32_VMX_PINBASED_CTLS)!), 0x0000_0016);
    assertEquals(lowOf(processor.read(abi.IA32_VMX_PROCBASED_CTLS)!), 0x0401_e172);
    assertEquals(lowOf(processor.read(abi.IA32_VMX_EXIT_CTLS)!), 0x0003_6dff);
    assertEquals(lowOf(processor.read(abi.IA32_VMX_ENTRY_CTLS)!), 0x0000_11ff);
    // What real processors read since Nehalem: CR3 exiting and the debug controls need not be 1.
    assertEquals(lowOf(processor.read(abi.IA32_VMX_TRUE_PINBASED_CTLS)!), 0x0000_0016);
    assertEquals(lowOf(processor.read(abi.IA32_VMX_TRUE_PROCBASED_CTLS)!), 0x0400_6172);
    assertEquals(lowOf(processor.read(abi.IA32_VMX_TRUE_EXIT_CTLS)!), 0x0003_6dfb);
    assertEquals(lowOf(processor.read(abi.IA32_VMX_TRUE_ENTRY_CTLS)!), 0x0000_11fb);
    assertEquals(lowOf(processor.read(abi.IA32_VMX_PROCBASED_CTLS2)!), 0, "secondary controls have no class");
  });

  it("let each bit that must be 1 be 1, and agree with what VM entry takes", () => {
    for (const name of PROCESSORS) {
      for (const trueControls of [true, false]) {
        const processor = new VmxCapabilities(name, { trueControls });
        assertEquals(((processor.read(abi.IA32_VMX_BASIC)! >> 55n) & 1n) === 1n, trueControls);
        for (const word of WORDS) {
          const { mustBe1, mayBe1 } = processor.allowed(word);
          assertEquals(mustBe1 & ~mayBe1, 0, word);
        }
        const msr = trueControls ? abi.IA32_VMX_TRUE_PROCBASED_CTLS : abi.IA32_VMX_PROCBASED_CTLS;
        const value = processor.read(msr)!;
        const { mustBe1, mayBe1 } = processor.allowed("primary");
        assertEquals([mustBe1 >>> 0, mayBe1 >>> 0], [lowOf(value), highOf(value)]);
      }
    }
  });

  it("are all there up to what the processor has, and raise #GP beyond", () => {
    const missing = (processor: VmxCapabilities): number[] => {
      const found: number[] = [];
      for (let msr = 0x47f; msr <= 0x493; msr++) if (processor.read(msr) === undefined) found.push(msr);
      return found;
    };
    assertEquals(missing(new VmxCapabilities(["ipi_virt", "vmfunc", "ept"])), [0x47f, 0x493]);
    assertEquals(missing(new VmxCapabilities("ipiv")), [0x47f, 0x491, 0x493]);
    assertEquals(missing(new VmxCapabilities("apicv")), [0x47f, 0x491, 0x492, 0x493]);
    assertEquals(missing(new VmxCapabilities([], { trueControls: false })), [
      ...[0x47f, 0x48b, 0x48c],
      ...[0x48d, 0x48e, 0x48f, 0x490, 0x491, 0x492, 0x493],
    ]);
  });

  it("describe the VMCS, EPT and VPIDs", () => {
    const processor = new VmxCapabilities("apicv");
    const basic = processor.read(abi.IA32_VMX_BASIC)!;
    assertEquals((basic >> 32n) & 0x1fffn, 4096n, "bytes");
    assertEquals((basic >> 50n) & 0xfn, 6n, "write-back");
    assertEquals((basic >> 48n) & 1n, 0n, "64-bit addresses");
    // The highest index among the fields: that of the PID-pointer table, 0x2042.
    assertEquals(processor.read(abi.IA32_VMX_VMCS_ENUM), 0x42n);
    // Four levels, UC and WB, 2 MiB and 1 GiB pages, INVEPT by context and for all, A/D flags, execute-only.
    assertEquals(processor.ept, 0x0633_4141);
    assertEquals(processor.vpid, 0xf01);
    assertEquals(new VmxCapabilities("none").ept & abi.VMX_EPT_AD_BIT, 0);
    assertEquals(new VmxCapabilities(["vpid"]).vpid, 0, "VPIDs without INVVPID");
  });
});

describe("a list of features", () => {
  it("makes the three processors, each with all that the one before has", () => {
    const lists = PROCESSORS.map((name) => new VmxCapabilities(name).features);
    assertEquals(PROCESSORS, ["none", "apicv", "ipiv"]);
    for (const [i, list] of lists.entries()) {
      if (i > 0) assertEquals(lists[i - 1].filter((name) => !list.includes(name)), []);
    }
    const has = (name: string) => lists.map((list) => list.includes(name));
    assertEquals(has("flexpriority"), [true, true, true]);
    assertEquals(has("apicv"), [false, true, true]);
    assertEquals(has("posted_intr"), [false, true, true]);
    assertEquals(has("ipi_virt"), [false, false, true]);
    assertEquals(has("tertiary_controls"), [false, false, true]);
  });

  it("can be the line that /proc/cpuinfo prints", () => {
    const line =
      "vnmi preemption_timer posted_intr invvpid ept_x_only ept_ad ept_1gb flexpriority apicv tsc_offset " +
      "vtpr mtf vapic ept vpid unrestricted_guest vapic_reg vid ple shadow_vmcs pml ept_mode_based_exec tsc_scaling";
    const processor = new VmxCapabilities(line.split(" "));
    const shown = VMX_FEATURES.filter(({ shown, name }) => shown && processor.has(name)).map(({ name }) =>
      name
    );
    assertEquals(shown.join(" "), line);
  });

  it("is refused for what cannot be, naming what is missing or allowed", () => {
    const cases: readonly [features: string[] | string, message: string][] = [
      [
        ["vapic_rge"],
        "Cannot build a processor with VMX feature vapic_rge: allowed are intr_exiting, nmi_exiting, vnmi",
      ],
      [
        ["apicv", "vtpr", "vid"],
        "Cannot build a processor with VMX feature apicv: it lacks vapic_reg, posted_intr",
      ],
      [["flexpriority"], "Cannot build a processor with VMX feature flexpriority: it lacks vtpr, vapic"],
      [["unrestricted_guest"], "Cannot build a processor with VMX feature unrestricted_guest: it lacks ept"],
      ["avic", "Cannot build processor avic: allowed are none, apicv, ipiv, or a list of features"],
    ];
    for (const [list, message] of cases) {
      assertThrows(() => new VmxCapabilities(list as VmxProcessor), RangeError, message);
    }
    assertThrows(
      () => new VmxCapabilities("none", { physicalAddressBits: 53 }),
      RangeError,
      "Cannot build a processor with 53 physical-address bits: allowed are 32 to 52",
    );
  });
});
