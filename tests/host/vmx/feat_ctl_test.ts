import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import fc from "fast-check";
import { FEAT_CTL_LOCKED, VMX_FEATURES } from "../../../abi/mod.ts";
import { HOST_SEMANTICS, initFeatCtl, VMX_PROCESSORS, VmxCapabilities } from "../../../host/mod.ts";

const IPIV = new VmxCapabilities("ipiv");
const INSIDE = 2;
const OUTSIDE = 4;

describe("Linux at boot", () => {
  it("enables VMX and locks IA32_FEATURE_CONTROL where firmware left that to it", () => {
    // What an unlocked register says besides does not count.
    for (const featCtl of [0, OUTSIDE, 0xff00]) {
      const { vmx, featCtl: now } = initFeatCtl(IPIV, { featCtl });
      assertEquals([vmx.on, now], [true, FEAT_CTL_LOCKED | OUTSIDE]);
    }
    assertEquals(initFeatCtl(IPIV, { tboot: true }).featCtl, FEAT_CTL_LOCKED | OUTSIDE | INSIDE);
  });

  it("has no VMX, and no features of it, where firmware locked it away", () => {
    const cases: readonly [featCtl: number, tboot: boolean, why: string][] = [
      [FEAT_CTL_LOCKED, false, "VMX (outside TXT) disabled by BIOS"],
      [FEAT_CTL_LOCKED | INSIDE, false, "VMX (outside TXT) disabled by BIOS"],
      [FEAT_CTL_LOCKED | OUTSIDE, true, "VMX (inside TXT) disabled by BIOS"],
    ];
    for (const [featCtl, tboot, why] of cases) {
      const found = initFeatCtl(IPIV, { featCtl, tboot });
      assertEquals(found, {
        vmx: { on: false, why },
        featCtl,
        words: [0, 0, 0, 0, 0],
        vmxFlags: [],
        flags: [],
      });
    }
    const missing = initFeatCtl(IPIV, { featCtl: undefined });
    assertEquals(missing.vmx, { on: false, why: "the processor has no MSR IA32_FEATURE_CONTROL" });
    assertEquals(missing.featCtl, undefined);
  });

  it("uses VMX that firmware enabled and locked", () => {
    assertEquals(initFeatCtl(IPIV, { featCtl: FEAT_CTL_LOCKED | OUTSIDE }).vmx.on, true);
    assertEquals(initFeatCtl(IPIV, { featCtl: FEAT_CTL_LOCKED | INSIDE, tboot: true }).vmx.on, true);
  });

  it("keeps a word of features for each control word, and two for the tertiary controls", () => {
    const { words } = initFeatCtl(IPIV);
    assertEquals(words.length, 5);
    assertEquals(words[1], Number(IPIV.read(0x482)! >> 32n), "allowed-1 of the primary controls");
    assertEquals(words[2], Number(IPIV.read(0x48b)! >> 32n), "of the secondary ones");
    assertEquals(
      [words[3], words[4]],
      [0x10, 0],
      "IPI virtualization: the MSR is one mask, its low half first",
    );
    const high = Object.create(IPIV, {
      read: { value: (msr: number) => msr === 0x492 ? 0x8000_0001_0000_0010n : IPIV.read(msr) },
    }) as VmxCapabilities;
    assertEquals(initFeatCtl(high).words.slice(3), [0x10, 0x8000_0001]);
  });

  it("before the patches of 2021 has no words for tertiary controls", () => {
    const { words, vmxFlags } = initFeatCtl(IPIV, { behaviour: HOST_SEMANTICS["2018"] });
    assertEquals(words.slice(3), [0, 0]);
    assertEquals(vmxFlags.includes("ipi_virt"), false);
    assertEquals(vmxFlags.includes("apicv"), true);
  });

  it("puts EPT, VPIDs and aggregates where the pin-based controls leave room", () => {
    const pin = Number(IPIV.read(0x481)! >> 32n);
    const { words } = initFeatCtl(IPIV);
    assertEquals(words[0] & 0xffff, pin);
    // INVVPID 16, execute-only 17, A/D 18, 1 GiB 19; FLEXPRIORITY 24, APICV 25.
    assertEquals(words[0] >>> 16, 0b11_0000_1111);
    assertEquals(initFeatCtl(new VmxCapabilities("none")).words[0] >>> 16, 0b01_0000_1011);
    assertEquals(initFeatCtl(new VmxCapabilities(["vapic_reg", "vid", "posted_intr"])).words[0] >>> 16, 0);
  });

  it("finds APICv where all that it is made of is there", () => {
    // A processor that contradicts itself: each part without one other.
    const VTPR = 1n << 53n, REGISTERS = 1n << 40n, DELIVERY = 1n << 41n, POSTED = 1n << 39n;
    const apicv = (primary: bigint, secondary: bigint, pin: bigint) => {
      const read = (msr: number) => ({ 0x481: pin, 0x482: primary, 0x48b: secondary })[msr];
      return initFeatCtl({ read }).vmxFlags.includes("apicv");
    };
    assertEquals(apicv(VTPR, REGISTERS | DELIVERY, POSTED), true);
    assertEquals(apicv(0n, REGISTERS | DELIVERY, POSTED), false);
    assertEquals(apicv(VTPR, DELIVERY, POSTED), false);
    assertEquals(apicv(VTPR, REGISTERS, POSTED), false);
    assertEquals(apicv(VTPR, REGISTERS | DELIVERY, 0n), false);
  });

  it("prints the features that a processor was made of", () => {
    for (const name of ["none", "apicv", "ipiv"] as const) {
      const shown = VMX_FEATURES.filter((spec) => spec.shown).map((spec) => spec.name);
      const listed = new Set<string>([...VMX_PROCESSORS[name], "tsc_offset"]);
      assertEquals(initFeatCtl(new VmxCapabilities(name)).vmxFlags, shown.filter((flag) => listed.has(flag)));
    }
    const { vmxFlags } = initFeatCtl(IPIV);
    assertEquals(vmxFlags.includes("virtual_x2apic"), false, "no name in /proc/cpuinfo");
    assertEquals(vmxFlags.at(-1), "ipi_virt");
  });

  it("never prints EPTP switching: of IA32_VMX_VMFUNC it reads the other half", () => {
    const processor = new VmxCapabilities(["ept", "vmfunc", "eptp_switching"]);
    assertEquals(processor.read(0x491), 1n);
    assertEquals(initFeatCtl(processor).vmxFlags.includes("eptp_switching"), false);
  });

  it("shows a processor's flag vpid where there are virtual NMIs: it looks in the wrong word", () => {
    const some = fc.subarray(["vtpr", "vapic", "vnmi", "ept", "ept_ad", "vpid"]);
    fc.assert(fc.property(some, (list) => {
      const features = list.includes("ept_ad") ? [...list, "ept"] : list;
      const has = (name: string) => features.includes(name);
      assertEquals(initFeatCtl(new VmxCapabilities(features)).flags, [
        ...has("vtpr") ? ["tpr_shadow"] : [],
        ...has("vtpr") && has("vapic") ? ["flexpriority"] : [],
        ...has("vnmi") ? ["vnmi"] : [],
        ...has("ept") ? ["ept"] : [],
        ...has("ept_ad") ? ["ept_ad"] : [],
        ...has("vnmi") ? ["vpid"] : [],
      ]);
      assertEquals(initFeatCtl(new VmxCapabilities(features)).vmxFlags.includes("vpid"), has("vpid"));
    }));
  });
});
